"""Finds where a run starts: its state, and its place in the data."""

from collections.abc import Mapping
import os
from typing import Any, NamedTuple

from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import state as state_lib
from big_vision import tree
from big_vision.run import checkpoints
from big_vision.run import console


class Start(NamedTuple):
  """The point from which the loop starts.

  Attributes:
    step: Number of updates done so far.
    state: State of the task after them.
    batch: Number of the next batch, from 0.
    rollbacks: Number of rollbacks so far.
    unevaluated: Row of metrics after `step` if its evaluators still have to
      run; else None.
    chrono: `progress.Chrono.state()` at `step`; None for a new run.
    num_rows: Number of rows of metrics that this run had written up to `step`;
      None if that is unknown.
  """
  step: int
  state: Any
  batch: int
  rollbacks: int
  unevaluated: Mapping[str, Any] | None
  chrono: Mapping[str, Any] | None
  num_rows: int | None


def find(built: build_lib.Built, saver: checkpoints.Checkpoints,
         resume: str | None) -> Start:
  """Restores this run's last checkpoint, or another run's, or makes a state.

  A new state holds what the task loads ("model_init"); the rest is drawn at
  random.

  Args:
    built: Mesh, data and task that the run's config describes.
    saver: Checkpoints of this run; they come first.
    resume: Directory of another run to continue from; None for a new run.

  Raises:
    ConfigError: The other run has no checkpoints.
    StorageError: No checkpoint can be read.
  """
  restored = saver.restore(built.shapes)
  is_own = restored is not None
  if restored is None and resume is not None:
    restored = checkpoints.Checkpoints(
        os.path.join(resume, "checkpoints"), read_only=True).restore(
            built.shapes)
    if restored is None:
      raise config_lib.ConfigError(
          f"config.resume={resume!r} has no checkpoints to continue from.")
  if restored is None:
    state = state_lib.make(built.task, built.info, built.rng_init,
                           built.shapes, built.shardings)
    num_params = tree.num_elements(state.get("params", {}))
    return Start(
        step=0, state=state, batch=0, rollbacks=0,
        unevaluated={"num_params": num_params}, chrono=None, num_rows=None)
  step, state, saved = restored
  console.say(f"Continuing after step {step}.")
  # A run that was allowed to change its batch size continues at the same place
  # in the data. It skips the rest of a batch, so it sees no example twice.
  batch_size = built.info.batch_size
  batch = -(-saved.get("examples", step * batch_size) // batch_size)
  return Start(
      step=step, state=state, batch=batch, rollbacks=saved.get("rollbacks", 0),
      unevaluated=saved.get("unevaluated"), chrono=saved.get("chrono"),
      num_rows=saved.get("num_rows") if is_own else None)
