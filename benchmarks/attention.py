"""Attention's time and memory as the length grows, forward and gradient.

  python -m benchmarks.attention [--lengths 1024,4096] [--causal]

Memory is what the compiled program sets aside beside arguments and results
(`memory_analysis`); nothing runs for that, so that dense attention is read to
the end too. Time is the median of a few runs, the implementations taking
turns, where a program of less than --max_gib would take less than
--max_seconds, going by the square of the length before. Beside the tables: how
both grow from one length to the next, and from which length on an
implementation needs less than dense.
"""

import argparse
import functools
import math
import statistics

from benchmarks import timing
from big_vision.models import attention
from big_vision.models import favor
import jax
import jax.numpy as jnp

LENGTHS = ",".join(str(1024 * 2 ** i) for i in range(7))


def make_programs(length, args):
  """{name: compiled gradient of attention}, and arguments to call them with."""
  shape = (args.batch, length, args.heads, args.head_dim)
  rngs = jax.random.split(jax.random.key(0), 5)
  dtype = jnp.dtype(args.dtype)
  given = jax.eval_shape(lambda: jnp.zeros(shape, dtype))
  projection = favor.draw_projection(
      rngs[4], (args.num_features, args.head_dim))

  def gradient(impl, options, q, k, v, target):
    def loss(q, k, v):
      out = attention.attend(
          q, k, v, impl=impl, causal=args.causal, **options)
      return jnp.sum(out.astype(jnp.float32) * target)
    return jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)

  programs = {}
  for impl in args.impls:
    options = {"projection": projection} if impl == "favor" else {}
    try:
      programs[impl] = jax.jit(functools.partial(
          gradient, impl, options)).lower(given, given, given, given).compile()
    except ValueError as error:  # No such device, or no such length.
      print(f"{impl} is left out at {length}: {error}")
  make = lambda: [jax.random.normal(rng, shape, dtype) for rng in rngs[:4]]
  return programs, make


def measure(args):
  """{impl: {length: (seconds, min, max) or None}}, {impl: {length: bytes}}."""
  seconds = {impl: {} for impl in args.impls}
  memory = {impl: {} for impl in args.impls}
  for shorter, length in zip([None, *args.lengths], args.lengths):
    programs, make = make_programs(length, args)
    candidates = {}
    for impl, program in programs.items():
      memory[impl][length] = program.memory_analysis().temp_size_in_bytes
      expected = 0
      if shorter is not None:  # What was not run then is not run now.
        before = seconds[impl].get(shorter)
        expected = (before[0] * (length / shorter) ** 2 if before else math.inf)
      if (memory[impl][length] <= args.max_gib * 2 ** 30 and
          expected <= args.max_seconds):
        candidates[impl] = functools.partial(
            lambda program, inputs: jax.block_until_ready(program(*inputs)),
            program)
    inputs = make() if candidates else None
    times = timing.alternate(
        {impl: functools.partial(run, inputs)
         for impl, run in candidates.items()}, args.rounds)
    for impl in programs:
      values = times.get(impl)
      seconds[impl][length] = values and (
          statistics.median(values), min(values), max(values))
  made = lambda table: {impl: row for impl, row in table.items() if row}
  return made(seconds), made(memory)


def show(title, cells, lengths):
  """Prints one row for each implementation."""
  print(f"\n{title}")
  print(f"{'':17s}" + "".join(f"{f'{n / 1024:g}k':>11s}" for n in lengths))
  for name, values in cells.items():
    print(f"{name:17s}" + "".join(f"{values.get(n, ''):>11s}" for n in lengths))


def growth(values, lengths):
  """{length: exponent p of length ** p from the length before}."""
  known = [n for n in lengths if values.get(n)]
  return {b: f"{math.log(values[b] / values[a]) / math.log(b / a):.2f}"
          for a, b in zip(known, known[1:])}


def crossing(name, what, table, lengths):
  """Prints from which length on each needs less than dense; none: dense."""
  if not (dense := table.get("dense")):
    return
  for impl, values in table.items():
    both = [n for n in lengths if values.get(n) and dense.get(n)]
    worse = [n for n in both if values[n] >= dense[n]]
    better = [n for n in both if n > max(worse, default=0)]
    if impl != "dense" and both:
      print(f"{name}: {impl} needs less than dense "
            + (f"from {better[0] / 1024:g}k on "
               f"({what(values[better[0]])} to {what(dense[better[0]])})"
               if better else f"at no length up to {both[-1] / 1024:g}k"))


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--lengths", default=LENGTHS)
  parser.add_argument("--impls", default=",".join(attention.IMPLEMENTATIONS))
  parser.add_argument("--causal", action="store_true")
  parser.add_argument("--batch", type=int, default=1)
  parser.add_argument("--heads", type=int, default=1)
  parser.add_argument("--head_dim", type=int, default=64)
  parser.add_argument("--num_features", type=int, default=256)
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--max_gib", type=float, default=2.,
                      help="programs that need more are not run")
  parser.add_argument("--max_seconds", type=float, default=10.,
                      help="programs that would take longer are not run")
  args = parser.parse_args()
  args.lengths = sorted(int(n) for n in args.lengths.split(","))
  args.impls = args.impls.split(",")

  device = jax.devices()[0]
  print(f"{device.device_kind}, batch {args.batch}, {args.heads} head(s) of "
        f"{args.head_dim}, {args.dtype}, causal {args.causal}, "
        f"{args.num_features} features, {args.rounds} rounds")
  spread, memory = measure(args)
  seconds = {impl: {n: value[0] for n, value in values.items() if value}
             for impl, values in spread.items()}
  lengths = args.lengths
  show("temporary memory, MiB", {impl: {
      n: f"{value / 2 ** 20:.1f}" for n, value in values.items()}
      for impl, values in memory.items()}, lengths)
  show("its growth, exponent of the length", {
      impl: growth(values, lengths) for impl, values in memory.items()},
       lengths)
  show("time, ms, median", {impl: {
      n: f"{value * 1e3:.1f}" for n, value in values.items()}
      for impl, values in seconds.items()}, lengths)
  show("its spread, (max - min) / median", {impl: {
      n: f"{(value[2] - value[1]) / value[0]:.2f}"
      for n, value in values.items() if value}
      for impl, values in spread.items()}, lengths)
  show("its growth, exponent of the length", {
      impl: growth(values, lengths) for impl, values in seconds.items()},
       lengths)
  print()
  crossing("memory", lambda x: f"{x / 2 ** 20:.1f} MiB", memory, lengths)
  crossing("time", lambda x: f"{x * 1e3:.1f} ms", seconds, lengths)


if __name__ == "__main__":
  main()
