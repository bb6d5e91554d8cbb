"""Reads finished runs as parts of others: teachers, features, codes."""

from collections.abc import Callable, Sequence
import os
from typing import Any

from big_vision import config as config_lib
from big_vision import modules
from big_vision import tree
from big_vision.run import checkpoints
from big_vision.run import workdir as workdir_lib


def read_config(workdir: str, where: str = "--workdir") -> config_lib.Config:
  """Reads the config of a run.

  Args:
    workdir: Directory of the run.
    where: Flag, or path of the config key, that named it; for messages.

  Raises:
    ConfigError: `workdir` is not the directory of a run.
  """
  config = workdir_lib.load_config(workdir)
  if config is None:
    raise config_lib.ConfigError(
        f"{where}={workdir!r} is not a run's workdir: it has no config.json.")
  return config


def read(workdir: str, entries: Sequence[str], where: str
         ) -> tuple[config_lib.Config, dict[str, Any]]:
  """Reads the config of a run and a part of its newest checkpoint.

  Args:
    workdir: Directory of the run.
    entries: Entries of the state: "params", "ema", ...; those that the state
      lacks are left out.
    where: Path of the config key that named the run, for messages.

  Returns:
    The config, and {entry: tree of NumPy arrays}.

  Raises:
    ConfigError: The run does not exist, has no checkpoint, or has none of the
      entries.
    CheckpointDamaged: The checkpoint cannot be read.
  """
  config = read_config(workdir, where)
  directory = os.path.join(workdir, "checkpoints")
  if not checkpoints.list_steps(directory):
    raise config_lib.ConfigError(
        f"{where}={workdir!r} is a run that has not saved a checkpoint yet.")
  arrays = {}
  for entry in entries:
    arrays |= checkpoints.read_arrays(directory, prefix=f"{entry}/")
  if not arrays:
    raise config_lib.ConfigError(
        f"{where}={workdir!r}: its state has none of the entries "
        f"{list(entries)}.")
  return config, tree.unflatten(arrays)


def classifier(
    workdir: str, where: str, crop: int | None = None
) -> tuple[Callable, dict[str, Any]]:
  """Reads a pretrained classifier and returns it as a function of images.

  Args:
    workdir: Directory of the finished classification run.
    where: Path of the config key that named the run, for messages.
    crop: Side of the square that is cut from the middle of each image; None
      uses whole images.

  Returns:
    classify: Function (variables, image) -> (logits float[b, k], out), where
      `image` is float32[b, h, w, c] in the range the run was trained on.
    variables: Its parameters and other collections, by name.

  Raises:
    ConfigError: See `read`; or the run is not one of the trainer
      "classification".
  """
  config, variables = read(
      workdir, ("params", "batch_stats", "features"), where)
  if (trainer := config.get("trainer", "classification")) != "classification":
    raise config_lib.ConfigError(
        f"{where}={workdir!r} was trained by {trainer!r}, but a run of "
        "'classification' is needed.")
  models = modules.find("model", config.model_name)
  model = config_lib.call(models.Model, config.get("model", {}),
                          "config.model", num_classes=config.num_classes)

  def classify(variables, image):
    if crop is not None:
      top, left = ((size - crop) // 2 for size in image.shape[1:3])
      image = image[:, top:top + crop, left:left + crop]
    return model.apply(variables, image)
  return classify, variables
