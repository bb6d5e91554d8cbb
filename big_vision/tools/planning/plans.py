"""Compiles every phase of a run, and bounds the time of its steps."""

from collections.abc import Mapping
import re
from typing import Any, NamedTuple

import jax

from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import sharding
from big_vision import state as state_lib
from big_vision.hardware import flops as flops_lib
from big_vision.hardware import program as program_lib
from big_vision.hardware import targets
from big_vision.run import watchdog
from big_vision.tools.planning import sizes


class DoesNotFitError(RuntimeError):
  """A step needs more memory than the chip has."""


class PhasePlan(NamedTuple):
  """The compiled step of one phase of a run.

  Attributes:
    first_step: Number of updates done before the phase begins.
    num_steps: Number of steps in the phase, at least 1.
    static: Compile-time choices of its steps, see `Task.static`.
    program: Compiled step.
    flops: Floating-point operations of a step, all devices together,
      recomputation included.
  """
  first_step: int
  num_steps: int
  static: dict[str, Any]
  program: program_lib.Program
  flops: float

  @property
  def name(self) -> str:
    """A description such as "steps 1 to 200, adversarial_now=False"."""
    return _phase_name(self.first_step, self.num_steps, self.static)


class Plan(NamedTuple):
  """A run whose steps are compiled.

  Attributes:
    built: The run.
    phases: Its phases in order; together they have `info.total_steps` steps.
  """
  built: build_lib.Built
  phases: tuple[PhasePlan, ...]

  @property
  def peak_bytes(self) -> int:
    """Peak memory of a device in bytes, the largest of all phases."""
    return max(phase.program.peak_bytes for phase in self.phases)


def make_plan(config: config_lib.Config, hardware: targets.Hardware) -> Plan:
  """Builds the run that a config describes and compiles its steps.

  Raises:
    ConfigError, DataError: The run would not start.
    DoesNotFitError: The step of a phase does not fit into the chip's memory.
  """
  built = build_lib.build(config, hardware.devices)
  build_lib.loop_options(config, built.info)
  build_lib.make_evaluators(config, built)
  watchdog.from_config(config)
  config.check_all_read()
  plan = Plan(built=built, phases=_compile_phases(built))
  check_fits(plan, hardware)
  return plan


def check_fits(plan: Plan, hardware: targets.Hardware) -> None:
  """Checks that the largest phase fits, where its memory is known.

  Raises:
    DoesNotFitError: It does not fit.
  """
  if hardware.chip is None or not hardware.is_target:
    return
  if plan.peak_bytes > hardware.chip.memory:
    worst = max(plan.phases, key=lambda phase: phase.program.peak_bytes)
    where = f" ({worst.name})" if len(plan.phases) > 1 else ""
    raise DoesNotFitError(
        f"Used {sizes.format_bytes(plan.peak_bytes)} of "
        f"{sizes.format_bytes(hardware.chip.memory)}{where}.")


def _compile_phases(built: build_lib.Built) -> tuple[PhasePlan, ...]:
  """Compiles the step of each phase; equal choices are compiled once."""
  total_steps = built.info.total_steps
  # A phase that would begin at the end or later has no steps.
  phases = [phase for phase in built.task.phases(total_steps)
            if phase.first_step < total_steps]
  ends = [phase.first_step for phase in phases[1:]] + [total_steps]
  frozen = built.task.frozen()
  frozen = state_lib.with_shardings(
      frozen, state_lib.infer_frozen(frozen, built.strategy, built.mesh))
  batch = {
      key: jax.ShapeDtypeStruct(spec.shape, spec.dtype,
                                sharding=built.batch_sharding)
      for key, spec in built.info.batch_spec.items()}
  update = state_lib.make_update(
      built.task, built.rng_train, built.shardings, built.mesh)
  compiled, found = {}, []
  for phase, end in zip(phases, ends):
    num_steps = end - phase.first_step
    where = (f" ({_phase_name(phase.first_step, num_steps, phase.static)})"
             if len(phases) > 1 else "")
    static = tuple(sorted(phase.static.items()))
    if static not in compiled:
      with sharding.use(built.mesh, built.rules):
        compiled[static] = _compile(
            update.trace(built.shapes, frozen, batch, static), where)
    program, flops = compiled[static]
    found.append(PhasePlan(
        first_step=phase.first_step, num_steps=num_steps,
        static=phase.static, program=program, flops=flops))
  return tuple(found)


def _phase_name(
    first_step: int, num_steps: int, static: Mapping[str, Any]) -> str:
  """Returns a description like "steps 1 to 200, adversarial_now=False"."""
  choices = [f"{key}={value}" for key, value in static.items()]
  return ", ".join(
      [f"steps {first_step + 1:,} to {first_step + num_steps:,}", *choices])


def _compile(traced, where: str) -> tuple[program_lib.Program, float]:
  """Compiles a traced step.

  Args:
    traced: Traced step.
    where: Phase of the step for the error, in parentheses; "" if there is only
      one.

  Returns:
    The program, and its FLOPs on all devices.

  Raises:
    DoesNotFitError: The compiler found too little memory.
  """
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise DoesNotFitError(f"{_memory_use(str(error))}{where}.") from error
  return program_lib.Program(compiled), flops_lib.count(traced.jaxpr)


def _memory_use(message: str) -> str:
  """Extracts the sentence about memory, without its full stop."""
  found = re.search(r"Used [\d.]+\w+ of [\d.]+\w+ hbm[^.]*", message)
  return found[0] if found else message.splitlines()[0].rstrip(".")


def step_seconds(
    phase: PhasePlan, hardware: targets.Hardware) -> dict[str, float]:
  """Bounds the time of a step by each resource that limits it.

  Returns:
    {"arithmetic", "memory", "links": seconds}, the time if that resource were
    the only limit; {} without a data sheet. "memory" is left out where the
    program was compiled for other hardware. A step takes at least the largest
    of them, and about their sum if nothing overlaps.
  """
  chip = hardware.chip
  if chip is None:
    return {}
  seconds = {"arithmetic": phase.flops / len(hardware.devices) / chip.flops}
  if hardware.is_target:
    seconds["memory"] = phase.program.bytes_accessed / chip.bandwidth
  seconds["links"] = sum(
      c.bytes_on_links for c in phase.program.collectives) / chip.links
  return seconds


def run_seconds(
    plan: Plan, hardware: targets.Hardware) -> tuple[float, float]:
  """Bounds the time of all steps of a run, each phase by its own step.

  Args:
    plan: Plan of the run.
    hardware: Hardware with a data sheet.

  Returns:
    Seconds without evaluation if everything overlaps, and if nothing does.
  """
  low, high = 0.0, 0.0
  for phase in plan.phases:
    seconds = step_seconds(phase, hardware).values()
    low += phase.num_steps * max(seconds)
    high += phase.num_steps * sum(seconds)
  return low, high
