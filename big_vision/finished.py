"""Runs that are finished, as parts of others: teachers, features, codes."""

from collections.abc import Sequence
import os
from typing import Any

from big_vision import checkpoint
from big_vision import config as config_lib
from big_vision import tree


def read(workdir: str, entries: Sequence[str], where: str
         ) -> tuple[config_lib.Config, dict[str, Any]]:
  """The config of a run, and a part of its newest checkpoint.

  Args:
    workdir: of the run.
    entries: of the state: "params", "ema", ...; those it does not have are
      left out.
    where: the config's path that named the workdir, for messages.

  Returns:
    The config, and {entry: tree of arrays}.

  Raises:
    ConfigError: there is no such run, it has no checkpoint, or none of the
      entries.
    CheckpointDamaged: what was saved cannot be read.
  """
  config = config_lib.load_workdir(workdir)
  directory = os.path.join(workdir, "checkpoints")
  if config is None or not checkpoint.list_steps(directory):
    raise config_lib.ConfigError(
        f"{where}={workdir!r} is not the workdir of a run with a checkpoint: "
        + ("there is no config.json." if config is None else
           "nothing is saved yet."))
  arrays = {}
  for entry in entries:
    arrays |= checkpoint.read_arrays(directory, prefix=f"{entry}/")
  if not arrays:
    raise config_lib.ConfigError(
        f"{where}={workdir!r}: its state has none of {list(entries)}.")
  return config, tree.unflatten(arrays)


def classifier(workdir: str, where: str) -> tuple[Any, dict[str, Any]]:
  """The model of a finished classification run, and its variables.

  Returns:
    A flax module, and {"params": ..., collections that it has} for its `apply`.

  Raises:
    ConfigError: see `read`; or the run was of another trainer.
  """
  config, variables = read(
      workdir, ("params", "batch_stats", "features"), where)
  if (trainer := config.get("trainer", "classification")) != "classification":
    raise config_lib.ConfigError(
        f"{where}={workdir!r} is a run of the trainer {trainer!r}; a "
        "classifier is wanted.")
  models = config_lib.import_by_name(
      "big_vision.models", config.model_name, "model")
  model = config_lib.call(models.Model, config.get("model", {}),
                          "config.model", num_classes=config.num_classes)
  return model, variables

def crop_center(image, crop: int | None):
  """[b, h, w, c] -> [b, crop, crop, c], from the middle; None for all of it."""
  if crop is None:
    return image
  top, left = ((size - crop) // 2 for size in image.shape[1:3])
  return image[:, top:top + crop, left:left + crop]
