"""Where a run begins or goes on: its state, and its place in the data."""

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
  """What the loop begins with.

  Attributes:
    step: updates that were done.
    state: of the task, after these.
    batch: number of the batch that comes next, from 0.
    rollbacks: how many there were.
    unevaluated: what was measured after `step`, if its evaluation is still to
      be done; else None.
    chrono: what `metrics.Chrono` counted up to here, or None.
  """
  step: int
  state: Any
  batch: int
  rollbacks: int
  unevaluated: Mapping[str, Any] | None
  chrono: Mapping[str, Any] | None


def find(built: build_lib.Built, saver: checkpoints.Checkpoints,
         resume: str | None) -> Start:
  """This run's last checkpoint, else that of another run, else a new state.

  A new state has what the task loads ("model_init"), and draws the rest.

  Args:
    built: of the run's config.
    saver: this run's own checkpoints.
    resume: workdir of the other run, or None.

  Raises:
    ConfigError: the other run has no checkpoints.
    StorageError: no checkpoint can be read.
  """
  restored = saver.restore(built.shapes)
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
    return Start(0, state, 0, 0, {
        "num_params": tree.num_elements(state.get("params", {}))}, None)
  step, state, saved = restored
  console.say(f"Continuing after step {step}.")
  # A run that was allowed to change its batch size goes on where it was in the
  # data: it skips what is left of a batch and sees no example again.
  batch_size = built.info.batch_size
  batch = -(-saved.get("examples", step * batch_size) // batch_size)
  return Start(step, state, batch, saved.get("rollbacks", 0),
               saved.get("unevaluated"), saved.get("chrono"))
