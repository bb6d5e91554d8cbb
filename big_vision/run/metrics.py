"""Metrics: where they are written, what a person sees, how time is counted.

`metrics.jsonl` in the workdir is the truth: one line a step, each step once,
also after a run was killed and continued. TensorBoard and Weights & Biases get
copies.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import math
import os
import resource
import sys
import time
from typing import Any

import jax

from big_vision.hardware import chips
from big_vision.run import pictures

_FILE = "metrics.jsonl"


class Writer:
  """Writes a run's metrics, and pictures beside them; a context manager.

  Args:
    workdir: an existing folder.
    resume_step: the step a continued run starts after; later rows are removed,
      for they will be written again. 0 starts afresh.
    config: the resolved config, for Weights & Biases.
    wandb: arguments of `wandb.init`; None to leave it out.
    enabled: whether this process writes; all but the first do not.

  Raises:
    ValueError: the file is damaged at another place than its end.
  """

  def __init__(self, workdir: str, *, resume_step: int = 0,
               config: Mapping[str, Any] | None = None,
               wandb: Mapping[str, Any] | None = None, enabled: bool = True):
    self._enabled = enabled
    self._last_step = -1
    self._wandb = None
    if not enabled:
      return
    # Not above: only the first process needs it.
    import tensorboardX  # pylint: disable=g-import-not-at-top
    self._workdir = workdir
    path = os.path.join(workdir, _FILE)
    rows = [row for row in read_metrics(workdir)
            if resume_step and row["step"] <= resume_step]
    _replace(path, "".join(_to_line(row) for row in rows))
    if rows:
      self._last_step = rows[-1]["step"]
    self._file = open(path, "a", encoding="utf-8")
    self._tensorboard = tensorboardX.SummaryWriter(
        os.path.join(workdir, "tensorboard"),
        purge_step=resume_step + 1 if resume_step else 0)
    if wandb is not None:
      self._wandb = _init_wandb(workdir, wandb, config)

  def write(self, step: int, values: Mapping[str, Any]):
    """Writes one row of numbers, at once; pictures are no part of the row.

    Raises:
      ValueError: the row of this step, or a later one, is there already.
    """
    if not self._enabled:
      return
    if step <= self._last_step:
      raise ValueError(
          f"The metrics of step {step} come after those of step "
          f"{self._last_step}; every step is written once, in order.")
    self._last_step = step
    # Pictures first: a row says that all of its step was written.
    pictures.save_all(self._workdir, step, values)
    numbers = {}
    for name, value in values.items():
      if pictures.is_picture(value):
        self._tensorboard.add_image(name, value, step, dataformats="HWC")
      else:
        numbers[name] = float(value)
        self._tensorboard.add_scalar(name, float(value), step)
    self._file.write(_to_line({"step": step, **numbers}))
    self._file.flush()
    self._tensorboard.flush()
    if self._wandb is not None:
      self._wandb.log(numbers, step=step)

  def close(self):
    if self._enabled:
      self._file.close()
      self._tensorboard.close()
      if self._wandb is not None:
        self._wandb.finish()

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()


def read_metrics(workdir: str) -> list[dict[str, float]]:
  """The rows of a run, as dicts that have "step".

  A last line that was cut off by a kill is left out. There may be no file yet.

  Raises:
    ValueError: another line is damaged; names it.
  """
  path = os.path.join(workdir, _FILE)
  if not os.path.exists(path):
    return []
  with open(path, encoding="utf-8") as file:
    lines = file.read().splitlines(keepends=True)
  rows = []
  for number, line in enumerate(lines, start=1):
    try:
      row = {k: v if k == "step" else float(v)
             for k, v in json.loads(line).items()}
      if not line.endswith("\n"):
        raise ValueError("it has no end")
      rows.append(row)
    except ValueError as error:
      if number == len(lines):
        break
      raise ValueError(
          f"{path} line {number} is damaged ({error}): {line[:80]!r}. Mend or "
          "remove that line.") from error
  return rows


def _to_line(row: Mapping[str, float]) -> str:
  """Strict JSON: not-a-number and infinities become strings."""
  return json.dumps({
      k: v if math.isfinite(v) else str(v) for k, v in row.items()}) + "\n"


def _replace(path: str, text: str):
  """Writes a file so that a kill leaves the old one or the new one."""
  with open(f"{path}.tmp", "w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(f"{path}.tmp", path)


def _init_wandb(workdir: str, kwargs: Mapping[str, Any], config):
  """A Weights & Biases run; a continued one goes on under the same id."""
  try:
    import wandb  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise ImportError(
        "config.wandb is set and wandb is not installed: EXTRAS=wandb.") from (
            error)
  path = os.path.join(workdir, "wandb_id")
  if os.path.exists(path):
    with open(path, encoding="utf-8") as file:
      run_id = file.read().strip()
  else:
    run_id = wandb.util.generate_id()
    _replace(path, run_id)
  return wandb.init(dir=workdir, id=run_id, resume="allow",
                    config=dict(config or {}), **kwargs)


class Chrono:
  """Counts time: how fast a run is, how long it still takes, what it cost.

  What happens within `paused` (evaluation, saving) and before the second step
  (compiling) is part of the run's time, not of its speed.

  Args:
    first_step: the step the run continues after.
    total_steps: the step at which it ends.
    batch_size: examples a step, over all devices.
    num_devices: how many devices there are.
    device_kind: what they call themselves.
    data_size: examples an epoch.
    saved: what `state()` returned before the run was interrupted.
    time_fn: seconds, monotonic.

  Attributes:
    flops: of a step, over all devices; to be set once it is known.
  """

  def __init__(self, first_step: int, total_steps: int, batch_size: int,
               num_devices: int, device_kind: str, data_size: int,
               saved: Mapping[str, float] | None = None,
               time_fn: Callable[[], float] = time.monotonic):
    self._first_step, self._total_steps = first_step, total_steps
    self._batch_size, self._num_devices = batch_size, num_devices
    self._chip, self._data_size = chips.of_device(device_kind), data_size
    self.flops = 0.0
    self._time = time_fn
    self._start = time_fn()
    self._before = dict(saved or {}).get("uptime", 0.0)
    self._paused = 0.0
    self._timings = {}
    # (step, time, paused, waited) at the start of the interval being measured.
    self._mark = None
    self._step_time = None

  @contextlib.contextmanager
  def paused(self, name: str) -> Iterator[None]:
    """Time within is logged as "z/secs/{name}" and not part of the speed."""
    start = self._time()
    try:
      yield
    finally:
      self._timings[name] = self._time() - start
      self._paused += self._timings[name]

  def tick(self, step: int):
    """To be called after every step; the first one compiles."""
    if self._mark is None:
      self._timings["first_step"] = self._time() - self._start - self._paused
      self._mark = (step, self._time(), self._paused, 0.0)

  def measure(self, step: int, waited: float = 0.0) -> dict[str, float]:
    """Measurements of the interval since the last call.

    Args:
      step: the step that just ended, its result waited for.
      waited: seconds the loop has waited for data, since the run started.

    Returns:
      "uptime" (seconds, all sessions), "examples_seen", "epoch", "progress" in
      [0, 1], "core_hours"; from the second step on "img/sec", "img/sec/core",
      "eta" (seconds), "data_stall" (the fraction of time spent waiting for
      data), "tflops/sec/core" and, of chips whose data sheet is known, "mfu"
      (the share of what they could do); "z/secs/..." for what was paused.
    """
    now = self._time()
    uptime = self._before + now - self._start
    values = {
        "uptime": uptime,
        "examples_seen": step * self._batch_size,
        "epoch": step * self._batch_size / self._data_size,
        "progress": step / max(1, self._total_steps),
        "core_hours": uptime * self._num_devices / 3600,
    }
    marked_step, marked_time, marked_paused, marked_waited = self._mark
    seconds = (now - marked_time) - (self._paused - marked_paused)
    if step > marked_step and seconds > 0:
      speed = (step - marked_step) * self._batch_size / seconds
      values["img/sec"] = speed
      values["img/sec/core"] = speed / self._num_devices
      values["data_stall"] = min(1.0, (waited - marked_waited) / seconds)
      flops = self.flops * speed / self._batch_size / self._num_devices
      values["tflops/sec/core"] = flops / 1e12
      if self._chip is not None:
        values["mfu"] = flops / self._chip.flops
      values["eta"] = (
          (self._total_steps - step) * seconds / (step - marked_step))
    self._mark = (step, now, self._paused, waited)
    for name, spent in self._timings.items():
      values[f"z/secs/{name}"] = spent
    self._timings = {}
    return values

  def state(self) -> dict[str, float]:
    """What a checkpoint stores, so that a continued run goes on counting."""
    return {"uptime": self._before + self._time() - self._start}


def memory() -> dict[str, float]:
  """GiB that this process has taken at most: "host_gib", "device_gib".

  Of the first of its devices; CPUs do not say.
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
  """One line for people: where the run is, how it does, how long it takes."""
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
  """One line for people, with the numbers that the evaluators measured."""
  return f"after step {step}: " + "  ".join(
      f"{name} {value:.4f}" for name, value in values.items()
      if not pictures.is_picture(value))


def format_seconds(seconds: float) -> str:
  """ "3s", "2m05s", "1h02m", "3d04h"."""
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
