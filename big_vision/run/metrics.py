"""Writes and reads the metrics of a run.

`metrics.jsonl` in the workdir is the source of truth: one line for each logged
step, and no step twice, even if the run was killed and resumed. TensorBoard and
Weights & Biases get copies.
"""

from collections.abc import Mapping
import json
import math
from typing import Any

from big_vision import files
from big_vision.run import console
from big_vision.run import pictures

_FILE = "metrics.jsonl"


class MetricsDamaged(ValueError):
  """A line of `metrics.jsonl` is not what a run has written."""


class Writer:
  """Writes a run's metrics and pictures; a context manager.

  Args:
    workdir: Directory that exists.
    resume_step: Step after which a resumed run continues. Later rows are
      removed, because they will be written again; 0 removes all.
    config: Resolved config, for Weights & Biases.
    wandb: Arguments of `wandb.init`; None disables Weights & Biases.
    enabled: Whether this process writes; only the first one does.

  Attributes:
    num_rows: Number of rows in the file.

  Raises:
    MetricsDamaged: A line other than the last is damaged.
  """

  def __init__(self, workdir: str, *, resume_step: int = 0,
               config: Mapping[str, Any] | None = None,
               wandb: Mapping[str, Any] | None = None, enabled: bool = True):
    self._enabled = enabled
    self._last_step = -1
    self.num_rows = 0
    self._wandb = None
    if not enabled:
      return
    self._workdir = files.as_path(workdir)
    rows = [row for row in read_metrics(workdir)
            if resume_step and row["step"] <= resume_step]
    if rows:
      self._last_step, self.num_rows = rows[-1]["step"], len(rows)
    self._file = files.GrowingFile(
        self._workdir / _FILE, "".join(map(_to_line, rows)).encode())
    self._tensorboard = _open_tensorboard(
        self._workdir / "tensorboard",
        purge_step=resume_step + 1 if resume_step else 0)
    if wandb is not None:
      self._wandb = _init_wandb(workdir, wandb, config)

  def write(self, step: int, values: Mapping[str, Any]):
    """Writes one row of numbers, and pictures to files of their own.

    Args:
      step: Step after which the values were measured.
      values: Numbers and pictures by name.

    Raises:
      ValueError: This step, or a later one, was written already.
    """
    if not self._enabled:
      return
    if step <= self._last_step:
      raise ValueError(
          f"The metrics of step {step} come after those of step "
          f"{self._last_step}; each step is written once, in order.")
    self._last_step = step
    # Pictures come first: a row shows that its step was written in full.
    pictures.save_all(self._workdir, step, values)
    numbers = {}
    for name, value in values.items():
      if pictures.is_picture(value):
        self._tensorboard.add_image(name, value, step, dataformats="HWC")
      else:
        numbers[name] = float(value)
        self._tensorboard.add_scalar(name, float(value), step)
    self._file.write(_to_line({"step": step, **numbers}).encode())
    self.num_rows += 1
    self._file.flush()
    self._tensorboard.flush()
    if self._wandb is not None:
      self._wandb.log(numbers, step=step)

  def sync(self):
    """Puts all rows on the disk, before a checkpoint relies on them."""
    if self._enabled:
      self._file.sync()

  def close(self):
    """Closes the files, and the run at Weights & Biases."""
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
  """Reads the rows of a run, each of which has "step".

  A last line that a kill has cut off is left out. A run without a file has no
  rows.

  Raises:
    MetricsDamaged: A line other than the last is damaged; the error names it.
  """
  path = files.as_path(workdir) / _FILE
  if not path.exists():
    return []
  lines = path.read_bytes().splitlines(keepends=True)
  rows = []
  for number, line in enumerate(lines, start=1):
    try:
      row = {k: v if k == "step" else float(v)
             for k, v in json.loads(line).items()}
      if not line.endswith(b"\n"):
        raise ValueError("its end is missing")
      if type(row.get("step")) is not int:
        raise ValueError("it has no step")
      rows.append(row)
    except (AttributeError, TypeError, ValueError) as error:
      if number == len(lines):
        break
      raise MetricsDamaged(
          f"{path} line {number} is damaged ({error}): {line[:80]!r}. Repair "
          "or remove that line.") from error
  return rows


def check_complete(workdir: str, step: int, num_rows: int):
  """Prints a warning if rows that the run has written are missing.

  Args:
    workdir: Directory of the run.
    step: Step of a checkpoint.
    num_rows: Number of rows up to this step when it was saved.
  """
  steps = [row["step"] for row in read_metrics(workdir) if row["step"] <= step]
  if len(steps) != num_rows:
    console.say(
        f"{files.as_path(workdir) / _FILE} has {len(steps)} rows up to step "
        f"{step}, the last of them of step {steps[-1] if steps else None}, but "
        f"the run had written {num_rows}: somebody has changed the file. The "
        "run continues without the missing rows.")


def _to_line(row: Mapping[str, float]) -> str:
  """Returns a line of strict JSON; NaN and infinities become strings."""
  return json.dumps({
      k: v if math.isfinite(v) else str(v) for k, v in row.items()}) + "\n"


class _TensorboardFiles:
  """Opens files in object stores for tensorboardX, without further packages."""

  def open(self, path):
    return files.GrowingFile(path)

  def directory_check(self, path):
    """Does nothing: object stores have no directories."""


def _open_tensorboard(directory, purge_step):
  # Imported here because only the first process needs it.
  import tensorboardX  # pylint: disable=g-import-not-at-top
  from tensorboardX import record_writer  # pylint: disable=g-import-not-at-top
  if files.is_remote(directory):
    scheme = str(directory).partition(":")[0]
    record_writer.register_writer_factory(scheme, _TensorboardFiles())
  # Without the suffix, two files begun in the same second share a name.
  return tensorboardX.SummaryWriter(
      str(directory), purge_step=purge_step, filename_suffix=f".{purge_step}")


def _init_wandb(workdir: str, kwargs: Mapping[str, Any], config):
  """Starts a Weights & Biases run, or resumes it under its old id."""
  try:
    import wandb  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise ImportError(
        "config.wandb is set, but wandb is not installed; set EXTRAS=wandb."
    ) from error
  path = files.as_path(workdir) / "wandb_id"
  if path.exists():
    run_id = path.read_text().strip()
  else:
    run_id = wandb.util.generate_id()
    files.write_text(path, run_id)
  return wandb.init(dir=workdir, id=run_id, resume="allow",
                    config=dict(config or {}), **kwargs)
