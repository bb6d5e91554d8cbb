"""Runs that are finished, as parts of others: teachers, features, codes."""

from collections.abc import Callable, Sequence
import os
from typing import Any

from big_vision import config as config_lib
from big_vision import modules
from big_vision import tree
from big_vision.run import checkpoints
from big_vision.run import workdir as workdir_lib


def read_config(workdir: str, where: str = "--workdir") -> config_lib.Config:
  """The config of a run; `where` it was named, for the message.

  Raises:
    ConfigError: this is not the workdir of a run.
  """
  config = workdir_lib.load_config(workdir)
  if config is None:
    raise config_lib.ConfigError(
        f"{where}={workdir!r} is not a run's workdir: it has no config.json.")
  return config


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
  config = read_config(workdir, where)
  directory = os.path.join(workdir, "checkpoints")
  if not checkpoints.list_steps(directory):
    raise config_lib.ConfigError(
        f"{where}={workdir!r} is a run that has saved nothing yet.")
  arrays = {}
  for entry in entries:
    arrays |= checkpoints.read_arrays(directory, prefix=f"{entry}/")
  if not arrays:
    raise config_lib.ConfigError(
        f"{where}={workdir!r}: its state has none of {list(entries)}.")
  return config, tree.unflatten(arrays)


def classifier(
    workdir: str, where: str, crop: int | None = None
) -> tuple[Callable, dict[str, Any]]:
  """A finished classification run, as a function of images.

  Args:
    workdir: of that run.
    where: the config's path that named the workdir, for messages.
    crop: side of its images, which are cut from the middle of those it is
      given; None takes them whole.

  Returns:
    A function (variables, image float32[b, h, w, c]) -> (logits, out), and the
    variables.

  Raises:
    ConfigError: see `read`; or the run was of another trainer.
  """
  config, variables = read(
      workdir, ("params", "batch_stats", "features"), where)
  if (trainer := config.get("trainer", "classification")) != "classification":
    raise config_lib.ConfigError(
        f"{where}={workdir!r} is a run of the trainer {trainer!r}; a "
        "classifier is wanted.")
  models = modules.find("model", config.model_name)
  model = config_lib.call(models.Model, config.get("model", {}),
                          "config.model", num_classes=config.num_classes)

  def classify(variables, image):
    if crop is not None:
      top, left = ((size - crop) // 2 for size in image.shape[1:3])
      image = image[:, top:top + crop, left:left + crop]
    return model.apply(variables, image)
  return classify, variables
