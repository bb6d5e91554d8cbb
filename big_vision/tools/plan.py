"""Says what a run will need and cost, before anything is paid for.

  python -m big_vision.tools.plan --config FILE.py --topology v5e:16x16
  python -m big_vision.tools.plan --config FILE.py --devices 8 --chip h100

With --topology, the TPU's own compiler compiles the real training step for that
slice (`pip install big_vision[plan]`; no TPU is needed): memory, traffic and
collectives are those of the run. With --devices, the step is compiled for as
many simulated CPU devices: what is split over which device is real, and so are
FLOPs and collectives; memory for activations is not a GPU's, and not shown.

Whatever would stop the launch (an unknown key, a batch that does not divide, an
axis that the mesh lacks) stops here, with exit code 2; so does a step that does
not fit, after saying what would make it fit. A dataset that is not prepared
here is replaced by what is known of its shapes and size, which is said.

  python -m big_vision.tools.plan --table CONFIG.py [CONFIG.py ...]

plans several as their headers say (the line with `tools.plan` in them) and
prints a row of Markdown for each.
"""

import ast
import collections
from collections.abc import Sequence
import copy
import math
import os
import re
import shlex
import sys
from typing import Any, NamedTuple

from absl import app
from absl import flags
import jax
from ml_collections import config_flags

from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import sharding
from big_vision import state as state_lib
from big_vision import tree
from big_vision.datasets.tfds import declared
from big_vision.hardware import chips
from big_vision.hardware import hlo as compiled_lib
from big_vision.run import command_line
from big_vision.run import exit_codes
from big_vision.run import progress
from big_vision.run import watchdog

# Bytes per second that a host writes to storage, where none was measured.
_STORAGE = 0.5e9
# A share of the state below which a group of leaves is not listed.
_LISTED = 0.01


class Hardware(NamedTuple):
  """What a run is planned for.

  Attributes:
    name: "v5e:16x16", "8 x h100".
    devices: jax devices that can be compiled for; a TPU's need not exist.
    chip: its data sheet, or None.
    num_hosts: how many there are.
    is_target: whether programs are compiled for this very hardware.
  """
  name: str
  devices: list
  chip: chips.Chip | None
  num_hosts: int
  is_target: bool


class DoesNotFitError(RuntimeError):
  """The compiler found no way to run the step in the chip's memory."""


class Plan(NamedTuple):
  """A step that was compiled.

  Attributes:
    built: the run.
    program: its step.
    flops: of a step, all devices together, recomputation included.
  """
  built: build_lib.Built
  program: compiled_lib.Program
  flops: float


def describe_topology(topology: str, num_slices: int = 1) -> Hardware:
  """The TPU slice, or several alike, that `topology` ("v5e:4x4") means.

  Raises:
    ConfigError: libtpu is not installed, or knows no such slice.
  """
  from jax.experimental import topologies
  # What a TPU VM would tell libtpu; nothing here is used, only described, so
  # several may do it at once.
  for name, value in (
      ("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost"),
      ("TPU_ACCELERATOR_TYPE", "v5litepod-1"),
      ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")):
    os.environ.setdefault(name, value)
  chip = chips.by_name(topology.partition(":")[0])
  options = dict(num_slices=num_slices) if num_slices > 1 else {}
  try:
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, **options).devices
  except Exception as error:  # Whatever the plugin raises.
    raise config_lib.ConfigError(
        f"The topology {topology!r} cannot be described: {error} It needs `pip "
        "install big_vision[plan]`, and names such as v5e:4x4 or "
        "v5p:4x4x4.") from error
  name = f"{num_slices} x {topology}" if num_slices > 1 else topology
  return Hardware(name, list(devices), chip,
                  len({d.process_index for d in devices}), True)


def describe_devices(count: int, chip: str) -> Hardware:
  """`count` simulated devices in the place of chips without such a compiler."""
  data_sheet = None if chip == "cpu" else chips.by_name(chip)
  try:
    jax.config.update("jax_num_cpu_devices", count)
  except RuntimeError:
    pass  # They are made already, as in tests; there may be enough.
  devices = jax.devices("cpu")[:count]
  if len(devices) < count:
    raise config_lib.ConfigError(
        f"{count} devices cannot be simulated, only {len(devices)}: unset "
        "XLA_FLAGS.")
  return Hardware(
      f"{count} x {chip}", devices, data_sheet, math.ceil(count / 8),
      chip == "cpu")


def make_plan(config: config_lib.Config, hardware: Hardware) -> Plan:
  """Builds what `config` says and compiles its step, for `hardware`.

  Raises:
    ConfigError, DataError: what would stop the run.
    DoesNotFitError: the step needs more memory than there is.
  """
  built = build_lib.build(config, hardware.devices)
  build_lib.loop_options(config, built.info)
  build_lib.make_evaluators(config, built)
  watchdog.from_config(config)
  config.check_all_read()
  task, mesh = built.task, built.mesh
  frozen = task.frozen()
  frozen = state_lib.with_shardings(
      frozen, state_lib.infer_frozen(frozen, built.strategy, mesh))
  batch = {
      key: jax.ShapeDtypeStruct(spec.shape, spec.dtype,
                                sharding=built.batch_sharding)
      for key, spec in built.info.batch_spec.items()}
  static = tuple(sorted(task.static(0).items()))
  with sharding.use(mesh, built.rules):
    update = state_lib.make_update(task, built.rng_train, built.shardings, mesh)
    traced = update.trace(built.shapes, frozen, batch, static)
    try:
      compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      raise DoesNotFitError(_used(str(error))) from error
  program = compiled_lib.Program(compiled)
  if hardware.chip and hardware.is_target and (
      program.peak_bytes > hardware.chip.memory):
    raise DoesNotFitError(
        f"Used {_size(program.peak_bytes)} of {_size(hardware.chip.memory)}.")
  return Plan(built, program, compiled_lib.count_flops(traced.jaxpr))


def _used(message: str) -> str:
  """The sentence of the compiler's message that says how much."""
  found = re.search(r"Used [\d.]+\w+ of [\d.]+\w+ hbm[^.]*", message)
  return f"{found[0]}." if found else message.splitlines()[0]


def step_seconds(plan: Plan, hardware: Hardware) -> dict[str, float]:
  """What a step takes at least, by what limits it; {} if unknown.

  Returns:
    "arithmetic", "memory" (where the program is the hardware's own) and
    "links": seconds if that were all. A step takes at least the largest of
    them, and about their sum if nothing overlaps.
  """
  chip = hardware.chip
  if chip is None:
    return {}
  seconds = {"arithmetic": plan.flops / len(hardware.devices) / chip.flops}
  if hardware.is_target:
    seconds["memory"] = plan.program.bytes_accessed / chip.bandwidth
  seconds["links"] = sum(
      c.bytes_on_links for c in plan.program.collectives) / chip.links
  return seconds


def remedies(config: Any) -> list[tuple[str, dict[str, Any]]]:
  """What may make a step fit: (in words, {key: value}), the mildest first."""
  fsdp = {"sharding_strategy": None, "sharding_preset": "fsdp"}
  found = [("sharding_preset='fsdp'", fsdp)]
  if config.get("model_name") == "vit":
    remat = {"model.scan": True, "model.remat_policy": "nothing_saveable"}
    found += [("model.scan=True, model.remat_policy='nothing_saveable'", remat),
              ("both of these", {**fsdp, **remat})]
  for steps in (2, 4, 8):
    found.append((f"fsdp and grad_accum_steps={steps}",
                  {**fsdp, "grad_accum_steps": steps}))

  def outcome(values):
    return {key: value for key, value in changed(config, values).items()
            if value is not None}
  # What the config does already, or an earlier remedy, is not tried again.
  seen, new = [outcome({})], []
  for words, values in found:
    if (after := outcome(values)) not in seen:
      seen.append(after)
      new.append((words, values))
  return new


def changed(config: Any, values: dict[str, Any]):
  """A copy of a ConfigDict with other values."""
  config = copy.deepcopy(config)
  with config.unlocked():
    for path, value in values.items():
      *parents, key = path.split(".")
      place = config
      for parent in parents:
        place = place[parent]
      place[key] = value
  return config


def report(plan: Plan, hardware: Hardware, price: float | None = None):
  """Yields lines that say what the plan means."""
  built, program = plan.built, plan.program
  info, num_devices = built.info, len(hardware.devices)
  params = built.shapes.get("params", {})
  yield f"Planned for {hardware.name}: {num_devices} devices of " \
        f"{hardware.num_hosts} host(s), mesh {dict(built.mesh.shape)}."
  yield f"{tree.num_elements(params):,} parameters; {info.total_steps:,} " \
        f"steps of {info.batch_size:,} examples; {info.data_size:,} an epoch."

  yield "\nState, bytes on one device:"
  for name, total, on_device in entry_bytes(built):
    yield f"  {name:<12} {_size(on_device):>12}   (all of it: {_size(total)})"
  yield "  where it is, per device (the largest; * stands for numbers):"
  yield from (f"    {line}" for line in _placements(built))

  yield "\nThe step, on one device:"
  yield f"  arguments    {_size(program.argument_bytes):>12}   state and batch"
  if hardware.is_target:
    of = f" of {_size(hardware.chip.memory)}: it fits" if hardware.chip else ""
    yield f"  peak memory  {_size(program.peak_bytes):>12}  {of}"
    yield f"  accessed     {program.bytes_accessed / 1e9:>9.2f} GB"
  else:
    yield ("  peak memory    not known: this program was compiled for CPU, "
           "whose temporaries are not this chip's")
  yield f"  arithmetic   {plan.flops / num_devices / 1e12:>9.3f} TFLOP   " \
        f"({plan.flops / info.batch_size / 1e9:,.2f} GFLOP an example, " \
        "forward, backward and recomputed)"
  yield from _collective_lines(program)

  seconds = step_seconds(plan, hardware)
  if not seconds:
    yield "\nStep time: no data sheet for this device."
  else:
    low, high = max(seconds.values()), sum(seconds.values())
    parts = ", ".join(f"{k} {v * 1e3:.1f} ms" for k, v in seconds.items())
    ideal = seconds["arithmetic"]
    yield f"\nStep time: {low * 1e3:.1f} ms if all overlaps, " \
          f"{high * 1e3:.1f} ms if nothing does ({parts})."
    if "memory" not in seconds:
      yield "  Memory traffic is not in it: this is a bound, not an estimate."
    yield f"  {info.batch_size / high:,.0f} to {info.batch_size / low:,.0f} " \
          f"examples/s; MFU {ideal / high:.0%} to {ideal / low:.0%}."
    yield "  The input must deliver " \
          f"{info.batch_size / low / hardware.num_hosts:,.0f} " \
          "examples/s on each host, at most."
    hours = [s * info.total_steps * num_devices / 3600 for s in (low, high)]
    yield f"  To the end: {progress.format_seconds(low * info.total_steps)} " \
          f"to {progress.format_seconds(high * info.total_steps)} without " \
          f"evaluation, {hours[0]:,.1f} to {hours[1]:,.1f} chip-hours" + (
              f", {hours[0] * price:,.2f} to {hours[1] * price:,.2f} at "
              f"{price:g} an hour." if price else ".")

  total = sum(total for _, total, _ in entry_bytes(built))
  yield f"\nA checkpoint: {_size(total)}; {total / _STORAGE:.0f} s if one " \
        f"host writes it at an assumed {_STORAGE / 1e9:g} GB/s, in the " \
        "background."


def _size(num_bytes: float) -> str:
  """ "1.25 GiB", "300.00 MiB", "1.00 KiB"."""
  unit, name = next(((1 << shift, name) for shift, name in (
      (30, "GiB"), (20, "MiB")) if num_bytes >= 1 << (shift - 1)),
                    (1 << 10, "KiB"))
  return f"{num_bytes / unit:,.2f} {name}"


def _leaf_bytes(leaf) -> tuple[int, int]:
  """Bytes of a leaf, whole and on one device."""
  shard = leaf.sharding.shard_shape(leaf.shape)
  return (leaf.size * leaf.dtype.itemsize,
          math.prod(shard) * leaf.dtype.itemsize)


def entry_bytes(built) -> list[tuple[str, int, int]]:
  """(entry of the state, bytes of it, bytes on one device)."""
  rows = []
  for name, entry in built.shapes.items():
    pairs = [_leaf_bytes(leaf) for leaf in jax.tree.leaves(entry)]
    rows.append((name, *(sum(column) for column in zip(*pairs))))
  return rows


def _placements(built):
  """Lines: a group of alike parameters, where it is, and by which rule.

  What belongs to a parameter (moments, averages) counts with it.
  """
  params = {name for name, _ in tree.flatten_with_names(
      built.shapes.get("params", {}))}
  leaves = tree.flatten_with_names(built.shapes)
  rules = tree.first_match(
      [name for name, _ in leaves], [pattern for pattern, _ in built.strategy])
  groups = collections.defaultdict(list)
  for name, leaf in leaves:
    parts = name.split("/")
    param = next((p for p in ("/".join(parts[i:]) for i in range(len(parts)))
                  if p in params), name)
    groups[re.sub(r"\d+", "*", param), leaf.shape, leaf.sharding.spec,
           rules[name]].append((parts[0], *_leaf_bytes(leaf)))
  total = sum(whole for group in groups.values() for _, whole, _ in group)
  for (name, shape, spec, rule), group in sorted(
      groups.items(), key=lambda item: -sum(whole for _, whole, _ in item[1])):
    entries, wholes, parts = zip(*group)
    if sum(wholes) < _LISTED * total:
      continue
    place = f"split as {tuple(spec)}" if any(spec) else "a copy on each"
    why = "no rule" if rule is None else " ".join(
        map(repr, built.strategy[rule]))
    yield f"{_size(sum(parts)):>11}  {len(group)} x {list(shape)} {name} " \
          f"({', '.join(dict.fromkeys(entries))}): {place}, by {why}"


def _collective_lines(program):
  kinds = collections.defaultdict(lambda: [0, 0., 0.])
  for c in program.collectives:
    row = kinds[c.kind]
    row[0] += c.count
    row[1] += c.num_bytes * c.count
    row[2] += c.bytes_on_links
  if not kinds:
    yield "  collectives  none"
  for kind, (count, size, links) in sorted(kinds.items()):
    yield f"  {kind:<18} {count:>5} x, {size / 1e9:.3f} GB; " \
          f"{links / 1e9:.3f} GB over the links"


def table_row(name: str, plan: Plan | None, hardware: Hardware) -> str:
  """A row of Markdown; `plan` None is one that does not fit."""
  if plan is None:
    return f"| {name} | {hardware.name} | does not fit | | | | |"
  seconds = step_seconds(plan, hardware)
  low, high = max(seconds.values()), sum(seconds.values())
  links = sum(c.bytes_on_links for c in plan.program.collectives)
  return (
      f"| {name} | {hardware.name} | {_size(plan.program.peak_bytes)} of "
      f"{_size(hardware.chip.memory)} | "
      f"{plan.flops / plan.built.info.batch_size / 1e9:,.1f} | "
      f"{plan.program.bytes_accessed / 1e9:,.1f} | {links / 1e9:.2f} | "
      f"{low * 1e3:.0f} to {high * 1e3:.0f} ms |")


TABLE_HEAD = (
    "| config | slice | peak memory | GFLOP an example | GB accessed a chip | "
    "GB over its links | step time |\n|---|---|---|---|---|---|---|")


def header_command(path: str) -> list[str]:
  """The arguments of the plan command in a config's header.

  Raises:
    ConfigError: there is none.
  """
  with open(path, encoding="utf-8") as file:
    head = ast.get_docstring(ast.parse(file.read())) or ""
  found = re.search(r"^ *python -m big_vision\.tools\.plan (.*)$", head, re.M)
  if not found:
    raise config_lib.ConfigError(
        f"{path} has no line `python -m big_vision.tools.plan ...` on top.")
  return shlex.split(found[1])


def _find_fit(config, hardware) -> None:
  """Tries remedies until one fits, and says so."""
  print("What would make it fit, tried in this order:", flush=True)
  for words, values in remedies(config):
    try:
      plan = make_plan(
          config_lib.resolve(changed(config, values)), hardware)
    except (DoesNotFitError, config_lib.ConfigError) as error:
      print(f"  {words}: no. {error}", flush=True)
      continue
    print(f"  {words}: yes, {_size(plan.program.peak_bytes)}.", flush=True)
    return
  print("  A larger slice, a smaller config.input.batch_size or model.")


def _hardware() -> Hardware:
  args = flags.FLAGS
  if (args.topology is None) == (args.devices is None):
    raise config_lib.ConfigError(
        "Say for what to plan: either --topology=v5e:4x4 or --devices=8 "
        "--chip=h100.")
  if args.topology is not None:
    return describe_topology(args.topology, args.num_slices)
  return describe_devices(args.devices, args.chip or "cpu")


def _plan_table(paths: Sequence[str]):
  print(TABLE_HEAD)
  for path in paths:
    # Flags are parsed anew, as if this were the command.
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["plan", *header_command(path)])
    hardware = _hardware()
    try:
      plan = make_plan(config_lib.resolve(flags.FLAGS.config), hardware)
    except DoesNotFitError:
      plan = None
    name = next(argument.removeprefix("--config=")
                for argument in header_command(path) if ".py" in argument)
    print(table_row(os.path.basename(name), plan, hardware), flush=True)


def define_flags():
  """Called when this is the program, so that others may import it."""
  config_flags.DEFINE_config_file(
      "config", None, "What to plan: FILE.py or FILE.py:arg=value,...",
      lock_config=True)
  flags.DEFINE_string(
      "topology", None, "A TPU slice, such as v5e:16x16, v5p:8x8x16, v6e:4x4.")
  flags.DEFINE_integer("num_slices", 1, "How many such slices.")
  flags.DEFINE_integer(
      "devices", None, "How many devices, where there is no topology.")
  flags.DEFINE_string("chip", None, "What they are: h100, h200, a100 or cpu.")
  flags.DEFINE_float("price", None, "Of a chip for an hour.")
  flags.DEFINE_bool(
      "table", False, "A row for each config file that is named after it.")


def main(argv):
  args = flags.FLAGS
  # Nothing is computed but on the host.
  jax.config.update("jax_platforms", "cpu")
  with (command_line.exit_with_code({DoesNotFitError: exit_codes.CONFIG}),
        declared.declared_if_missing() as missing):
    if args.table:
      _plan_table(argv[1:])
      return
    if args.config is None:
      raise config_lib.ConfigError("--config says what to plan.")
    hardware = _hardware()
    try:
      plan = make_plan(config_lib.resolve(args.config), hardware)
    except DoesNotFitError as error:
      print(f"It does not fit {hardware.name}: {error}", file=sys.stderr)
      _find_fit(args.config, hardware)
      raise
    for line in report(plan, hardware, args.price):
      print(line)
    if missing:
      print(f"\nNot prepared here: {sorted(missing)}. Their shapes and sizes "
            "are as declared; the run needs the data.")


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command_line.parse_flags)
