"""Measures how time and memory of programs grow with the length of their input.

Memory is the temporary memory that the compiler reports (`memory_analysis`),
not counting arguments and results. That needs no run, so it is known for
programs of any size. Time is the median of a few runs in which the candidates
take turns. Only programs that need less than --max_gib are run, and only if
they would take less than --max_seconds, extrapolated from the shorter length by
its square. Also printed are the growth of both from one length to the next, and
the length from which on a candidate needs less than "dense".
"""

import argparse
from collections.abc import Callable
import functools
import math
import statistics

from benchmarks import timing
import jax


def make_parser(doc: str, lengths, impls) -> argparse.ArgumentParser:
  """Makes a parser with the arguments of these benchmarks.

  Args:
    doc: Description for --help.
    lengths: Default lengths.
    impls: Default names of implementations.
  """
  parser = argparse.ArgumentParser(
      description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--lengths", default=",".join(map(str, lengths)))
  parser.add_argument("--impls", default=",".join(impls))
  parser.add_argument("--batch", type=int, default=1)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--max_gib", type=float, default=2.,
                      help="programs that need more are not run")
  parser.add_argument("--max_seconds", type=float, default=10.,
                      help="programs that would take longer are not run")
  return parser


def run(args: argparse.Namespace, make: Callable):
  """Measures and prints the tables.

  Args:
    args: Parsed arguments of `make_parser`.
    make: Function (name of an implementation, length) -> (program, function
      without arguments that makes its tuple of inputs); both are compiled. It
      raises ValueError if there is no such program.
  """
  lengths = sorted(int(n) for n in args.lengths.split(","))
  spread, memory = measure(args, lengths, make)
  seconds = {impl: {n: value[0] for n, value in values.items() if value}
             for impl, values in spread.items()}
  show("temporary memory, MiB", {impl: {
      n: f"{value / 2 ** 20:.1f}" for n, value in values.items()}
      for impl, values in memory.items()}, lengths)
  show("growth, exponent of the length", {
      impl: growth(values, lengths) for impl, values in memory.items()},
       lengths)
  show("time, ms, median", {impl: {
      n: f"{value * 1e3:.1f}" for n, value in values.items()}
      for impl, values in seconds.items()}, lengths)
  show("spread, (max - min) / median", {impl: {
      n: f"{(value[2] - value[1]) / value[0]:.2f}"
      for n, value in values.items() if value}
      for impl, values in spread.items()}, lengths)
  show("growth, exponent of the length", {
      impl: growth(values, lengths) for impl, values in seconds.items()},
       lengths)
  print()
  crossing("memory", lambda x: f"{x / 2 ** 20:.1f} MiB", memory, lengths)
  crossing("time", lambda x: f"{x * 1e3:.1f} ms", seconds, lengths)


def measure(args, lengths, make):
  """{impl: {length: (seconds, min, max) or None}}, {impl: {length: bytes}}."""
  impls = args.impls.split(",")
  seconds = {impl: {} for impl in impls}
  memory = {impl: {} for impl in impls}
  for shorter, length in zip([None, *lengths], lengths):
    candidates = {}
    for impl in impls:
      try:
        fn, make_inputs = make(impl, length)
        program = jax.jit(fn).lower(*jax.eval_shape(make_inputs)).compile()
      except ValueError as error:  # No such device, or no such length.
        print(f"{impl} is left out at {length}: {error}")
        continue
      memory[impl][length] = program.memory_analysis().temp_size_in_bytes
      seconds[impl][length] = None
      expected = 0
      if shorter is not None:  # If that was not run, do not run this.
        before = seconds[impl].get(shorter)
        expected = (before[0] * (length / shorter) ** 2 if before else math.inf)
      if (memory[impl][length] <= args.max_gib * 2 ** 30 and
          expected <= args.max_seconds):
        candidates[impl] = functools.partial(
            lambda program, inputs: jax.block_until_ready(program(*inputs)),
            program, jax.jit(make_inputs)())
    times = timing.alternate(candidates, args.rounds)
    for impl, values in times.items():
      seconds[impl][length] = (
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
  """Returns {length: exponent of the growth since the length before}."""
  known = [n for n in lengths if values.get(n)]
  return {b: f"{math.log(values[b] / values[a]) / math.log(b / a):.2f}"
          for a, b in zip(known, known[1:])}


def crossing(name, what, table, lengths):
  """Prints from which length on each needs less than "dense"."""
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
