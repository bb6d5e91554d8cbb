"""Measures the progress and speed of a run, and formats them for people."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import resource
import sys
import time
from typing import Any, NamedTuple

import jax

from big_vision.hardware import chips
from big_vision.hardware import flops as flops_lib
from big_vision.run import pictures


class FlopCounter:
  """Counts the floating-point operations of a step, as the loop calls it.

  A step does different work when `static` changes (a GAN whose discriminator
  has started), so each value of `static` is counted once.

  Args:
    update: Step made by `state.make_update`.
  """

  def __init__(self, update: Callable[..., Any]):
    self._update = update
    self._flops = {}

  def __call__(self, state, frozen, batch, static) -> float:
    """Returns the operations of one step over all devices.

    Call it before `update`, which donates the state. jax keeps the trace, so
    counting adds little to the time that compiling takes.

    Args:
      state: State of the task.
      frozen: Frozen arrays of the task.
      batch: Global batch.
      static: Compile-time choices, a tuple of (name, hashable).
    """
    if static not in self._flops:
      self._flops[static] = flops_lib.count(
          self._update.trace(state, frozen, batch, static).jaxpr)
    return self._flops[static]


class _Mark(NamedTuple):
  """The start of the interval that is being measured; times in seconds."""
  step: int
  time: float
  paused: float
  waited: float


class Chrono:
  """Measures how fast a run is, how long it still takes and what it has cost.

  Time spent within `paused` (evaluation, saving) and before the end of the
  first step (compiling) counts towards the time of the run, but not its speed.

  Args:
    first_step: Step after which the run continues; 0 for a new run.
    total_steps: Last step of the run.
    batch_size: Examples in a step, over all devices.
    num_devices: Number of devices.
    device_kind: `jax.Device.device_kind` of the devices.
    data_size: Examples in an epoch.
    saved: Value of `state()` when the run was interrupted; None for a new run.
    time_fn: Function that returns seconds and never goes back.
  """

  def __init__(self, *, first_step: int, total_steps: int, batch_size: int,
               num_devices: int, device_kind: str, data_size: int,
               saved: Mapping[str, float] | None = None,
               time_fn: Callable[[], float] = time.monotonic):
    self._first_step, self._total_steps = first_step, total_steps
    self._batch_size, self._num_devices = batch_size, num_devices
    self._chip, self._data_size = chips.of_device(device_kind), data_size
    self._time = time_fn
    self._start = time_fn()
    self._uptime_before = dict(saved or {}).get("uptime", 0.0)
    self._paused = 0.0
    self._timings = {}
    self._mark = None
    self._flops = 0.0  # Since the mark, over all devices.

  @contextlib.contextmanager
  def paused(self, name: str) -> Iterator[None]:
    """Leaves a block's time out of the speed; logs it as "z/secs/{name}"."""
    start = self._time()
    try:
      yield
    finally:
      self._timings[name] = self._time() - start
      self._paused += self._timings[name]

  def tick(self, step: int, flops: float = 0.0, waited: float = 0.0):
    """Notes the end of a step; call it after each one.

    Args:
      step: Step that ended.
      flops: Floating-point operations of the step, over all devices.
      waited: Seconds that the loop has waited for data since the session
        started.
    """
    if self._mark is None:  # This step has compiled.
      self._timings["first_step"] = self._time() - self._start - self._paused
      self._mark = _Mark(
          step=step, time=self._time(), paused=self._paused, waited=waited)
    else:
      self._flops += flops

  def measure(self, step: int, waited: float = 0.0) -> dict[str, float]:
    """Measures the interval since the last call.

    Args:
      step: Step that just ended; its result has arrived.
      waited: Seconds that the loop has waited for data since the session
        started.

    Returns:
      "uptime" (seconds, over all sessions), "examples_seen", "epoch",
      "progress" in [0, 1] and "core_hours". From the second step on also
      "img/sec", "img/sec/core", "eta" (seconds), "data_stall" (fraction of the
      time spent waiting for data), "tflops/sec/core" and, for chips with a
      known data sheet, "mfu" (fraction of their peak). "z/secs/..." are the
      seconds spent in `paused`.
    """
    now = self._time()
    uptime = self._uptime_before + now - self._start
    values = {
        "uptime": uptime,
        "examples_seen": step * self._batch_size,
        "epoch": step * self._batch_size / self._data_size,
        "progress": step / max(1, self._total_steps),
        "core_hours": uptime * self._num_devices / 3600,
    }
    steps = step - self._mark.step
    seconds = (now - self._mark.time) - (self._paused - self._mark.paused)
    if steps > 0 and seconds > 0:
      speed = steps * self._batch_size / seconds
      values["img/sec"] = speed
      values["img/sec/core"] = speed / self._num_devices
      values["data_stall"] = min(1.0, (waited - self._mark.waited) / seconds)
      flops = self._flops / seconds / self._num_devices
      values["tflops/sec/core"] = flops / 1e12
      if self._chip is not None:
        values["mfu"] = flops / self._chip.flops
      values["eta"] = (self._total_steps - step) * seconds / steps
    self._mark = _Mark(step=step, time=now, paused=self._paused, waited=waited)
    self._flops = 0.0
    for name, spent in self._timings.items():
      values[f"z/secs/{name}"] = spent
    self._timings = {}
    return values

  def state(self) -> dict[str, float]:
    """Returns the values with which a resumed run continues to count."""
    return {"uptime": self._uptime_before + self._time() - self._start}


def memory() -> dict[str, float]:
  """Returns the peak memory of this process in GiB: host and first device.

  The keys are "host_gib" and "device_gib"; CPU devices do not report theirs.
  """
  # Kilobytes on Linux, bytes on macOS.
  unit = 2 ** 10 if sys.platform == "darwin" else 1
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
  values = {"host_gib": peak / 2 ** 20}
  stats = jax.local_devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    values["device_gib"] = stats["peak_bytes_in_use"] / 2 ** 30
  return values


def format_progress(
    step: int, total_steps: int, values: Mapping[str, float]) -> str:
  """Returns one line: the step, the loss, the speed and the time left.

  Args:
    step: Step that just ended.
    total_steps: Last step of the run.
    values: Row of metrics; names that it lacks are left out.
  """
  parts = [f"step {step:>{len(str(total_steps))}}/{total_steps}",
           f"{step / max(1, total_steps):4.0%}"]
  if "training_loss" in values:
    parts.append(f"loss {values['training_loss']:.4f}")
  if "training_prec@1" in values:
    parts.append(f"accuracy {values['training_prec@1']:.1%}")
  if "img/sec" in values:
    parts.append(f"{values['img/sec']:,.0f} img/s")
  if "mfu" in values:
    parts.append(f"MFU {values['mfu']:.0%}")
  if "eta" in values:
    parts.append(f"ETA {format_seconds(values['eta'])}")
  return "  ".join(parts)


def format_evals(step: int, values: Mapping[str, Any]) -> str:
  """Returns one line with the numbers that the evaluators measured."""
  return f"after step {step}: " + "  ".join(
      f"{name} {value:.4f}" for name, value in values.items()
      if not pictures.is_picture(value))


def format_seconds(seconds: float) -> str:
  """Returns a duration as "3s", "2m05s", "1h02m" or "3d04h"."""
  seconds = round(seconds)
  minutes, seconds = divmod(seconds, 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  if days:
    return f"{days}d{hours:02d}h"
  if hours:
    return f"{hours}h{minutes:02d}m"
  if minutes:
    return f"{minutes}m{seconds:02d}s"
  return f"{seconds}s"
