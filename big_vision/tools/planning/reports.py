"""Reports a plan: as text for one run, or as a row of a table for several."""

import collections
from collections.abc import Iterator

from big_vision import tree
from big_vision.hardware import program as program_lib
from big_vision.hardware import targets
from big_vision.run import progress
from big_vision.tools.planning import plans
from big_vision.tools.planning import sizes

# Assumed speed in bytes per second at which a host writes to storage.
_STORAGE = 0.5e9

TABLE_HEAD = (
    "| config | slice | peak memory | GFLOP per example | "
    "GB accessed per chip | GB over its links | step time |\n"
    "|---|---|---|---|---|---|---|")


def report(plan: plans.Plan, hardware: targets.Hardware,
           price: float | None = None) -> Iterator[str]:
  """Yields the lines of a report.

  Args:
    plan: Plan of the run.
    hardware: Hardware that it was made for.
    price: Price of a chip for an hour, in any currency.
  """
  built = plan.built
  info, num_devices = built.info, len(hardware.devices)
  params = built.shapes.get("params", {})
  yield f"Planned for {hardware.name}: {num_devices} devices of " \
        f"{hardware.num_hosts} host(s), mesh {dict(built.mesh.shape)}."
  yield f"{tree.num_elements(params):,} parameters; {info.total_steps:,} " \
        f"steps of {info.batch_size:,} examples; {info.data_size:,} an epoch."

  yield "\nState, bytes on one device:"
  for name, total, on_device in sizes.entry_bytes(built):
    yield f"  {name:<12} {sizes.format_bytes(on_device):>12}   " \
          f"(all of it: {sizes.format_bytes(total)})"
  yield "  the largest parts of it, per device (* stands for any number):"
  yield from (f"    {line}" for line in sizes.placement_lines(built))

  for phase in plan.phases:
    in_phase = f" in {phase.name}" if len(plan.phases) > 1 else ""
    yield f"\nThe step{in_phase}, on one device:"
    yield from _program_lines(phase, hardware, info.batch_size)
    if hardware.chip is None:
      yield f"\nStep time{in_phase}: no data sheet for this device."
    else:
      yield from _time_lines(phase, hardware, info.batch_size, in_phase)
  if hardware.chip is not None:
    if len(plan.phases) > 1:
      yield f"\nAll {len(plan.phases)} phases together:"
    yield _total_line(plan, hardware, price)

  total = sum(total for _, total, _ in sizes.entry_bytes(built))
  yield f"\nA checkpoint: {sizes.format_bytes(total)}; " \
        f"{total / _STORAGE:.0f} s if one host writes it at an assumed " \
        f"{_STORAGE / 1e9:g} GB/s, in the background."


def _program_lines(phase, hardware, batch_size) -> Iterator[str]:
  """Yields lines on the memory, FLOPs and collectives of a step."""
  program = phase.program
  yield f"  arguments    {sizes.format_bytes(program.argument_bytes):>12}   " \
        "state and batch"
  if hardware.is_target:
    limit = (f" of {sizes.format_bytes(hardware.chip.memory)}: it fits"
             if hardware.chip else "")
    yield f"  peak memory  {sizes.format_bytes(program.peak_bytes):>12}  " \
          f"{limit}"
    yield f"  accessed     {program.bytes_accessed / 1e9:>9.2f} GB"
  else:
    yield ("  peak memory    not known: this program was compiled for CPU, "
           "whose temporaries are not this chip's")
  num_devices = len(hardware.devices)
  yield f"  arithmetic   {phase.flops / num_devices / 1e12:>9.3f} TFLOP   " \
        f"({phase.flops / batch_size / 1e9:,.2f} GFLOP per example, " \
        "forward, backward and recomputed)"
  yield from _collective_lines(program)


def _collective_lines(program: program_lib.Program) -> Iterator[str]:
  """Yields a line for each kind of transfer between devices."""
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


def _time_lines(phase, hardware, batch_size, in_phase) -> Iterator[str]:
  """Yields lines on the time of a step and the speed that follows from it."""
  seconds = plans.step_seconds(phase, hardware)
  low, high = max(seconds.values()), sum(seconds.values())
  parts = ", ".join(f"{k} {v * 1e3:.1f} ms" for k, v in seconds.items())
  ideal = seconds["arithmetic"]
  yield f"\nStep time{in_phase}: {low * 1e3:.1f} ms if all overlaps, " \
        f"{high * 1e3:.1f} ms if nothing does ({parts})."
  if "memory" not in seconds:
    yield "  This bound is not an estimate: memory traffic is not included."
  yield f"  {batch_size / high:,.0f} to {batch_size / low:,.0f} " \
        f"examples/s; MFU {ideal / high:.0%} to {ideal / low:.0%}."
  yield "  The input must deliver up to " \
        f"{batch_size / low / hardware.num_hosts:,.0f} " \
        "examples/s on each host."


def _total_line(plan, hardware, price) -> str:
  """Returns the line on the time and the price of the whole run."""
  low, high = plans.run_seconds(plan, hardware)
  hours = [seconds * len(hardware.devices) / 3600 for seconds in (low, high)]
  return f"  To the end: {progress.format_seconds(low)} " \
         f"to {progress.format_seconds(high)} without " \
         f"evaluation, {hours[0]:,.1f} to {hours[1]:,.1f} chip-hours" + (
             f", {hours[0] * price:,.2f} to {hours[1] * price:,.2f} at "
             f"{price:g} an hour." if price else ".")


def table_row(
    name: str, plan: plans.Plan | None, hardware: targets.Hardware) -> str:
  """Returns a row of Markdown below `TABLE_HEAD`.

  Peak memory is the largest of all phases. All other figures are those of the
  phase whose step takes longest if nothing overlaps.

  Args:
    name: Name of the config.
    plan: Plan of its run, or None if a step does not fit.
    hardware: Hardware with a data sheet.
  """
  if plan is None:
    return f"| {name} | {hardware.name} | does not fit | | | | |"
  slowest = max(plan.phases, key=lambda phase: sum(
      plans.step_seconds(phase, hardware).values()))
  seconds = plans.step_seconds(slowest, hardware)
  low, high = max(seconds.values()), sum(seconds.values())
  links = sum(c.bytes_on_links for c in slowest.program.collectives)
  return (
      f"| {name} | {hardware.name} | {sizes.format_bytes(plan.peak_bytes)} of "
      f"{sizes.format_bytes(hardware.chip.memory)} | "
      f"{slowest.flops / plan.built.info.batch_size / 1e9:,.1f} | "
      f"{slowest.program.bytes_accessed / 1e9:,.1f} | {links / 1e9:.2f} | "
      f"{low * 1e3:.0f} to {high * 1e3:.0f} ms |")
