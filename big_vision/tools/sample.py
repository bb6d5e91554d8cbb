"""Writes images that a checkpoint draws, or otherwise predicts.

  python -m big_vision.tools.sample --workdir WORKDIR
  python -m big_vision.tools.sample --workdir WORKDIR \
      --pred "sample(temperature=0.9, top_k=100)" --label 3 --num 64

reads the config stored in the workdir and its newest checkpoint. It writes a
grid, WORKDIR/samples/NAME.png, and each image to a file below
WORKDIR/samples/NAME/; NAME consists of the step and the arguments.

The images come from a predict function of the run's task, which returns images
in [-1, 1] or a dict with such an "image". It gets batches of the run's training
data (a model of codes reads only their labels) and a key made from --seed and
the batch's number. `--pred reconstruct` shows an autoencoder's reconstructions.
"""

import os
import re

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import op_string
from big_vision import sharding
from big_vision import state as state_lib
from big_vision.evaluators import harness
from big_vision.run import checkpoints
from big_vision.run import cluster
from big_vision.run import command_line
from big_vision.run import console
from big_vision.run import pictures
from big_vision.run import pretrained


def sample(config: config_lib.Config, workdir: str, *, pred: str = "sample",
           num: int = 16, seed: int = 0, label: int | None = None,
           step: int | None = None) -> str:
  """Writes images that a run predicts.

  Args:
    config: Config of the run.
    workdir: Directory of the run.
    pred: Predict function, optionally with arguments: "sample(top_k=100)".
    num: Number of images.
    seed: Seed of the draws.
    label: Class of all images; None for the classes of the training data.
    step: Step of the checkpoint; None for the newest.

  Returns:
    The path of the grid.

  Raises:
    ConfigError: No such predict function, checkpoint or class exists, or the
      predictions are not images.
    ValueError: A predicted image is not finite.
  """
  op, = op_string.parse(pred)
  built = build_lib.build(config)
  predict_fns = built.task.predict_fns
  if op.name not in predict_fns:
    raise config_lib.ConfigError(
        f"--pred: the task has no predict function {op.name!r}"
        f"{config_lib.nearest(op.name, predict_fns)}. It has "
        f"{sorted(predict_fns)}.")
  if label is not None:
    _check_label(label, config, built.info.batch_spec)
  directory = os.path.join(workdir, "checkpoints")
  restored = checkpoints.Checkpoints(directory, read_only=True).restore(
      built.shapes, step)
  if restored is None:
    raise config_lib.ConfigError(f"{directory} has no checkpoint.")
  step, state, _ = restored
  frozen = state_lib.put_frozen(built.task, built.strategy, built.mesh)

  def predict(state, batch, number):
    if label is not None:
      batch = {**batch, "label": jnp.full_like(batch["label"], label)}
    found = predict_fns[op.name](
        state, batch, *op.args, rng=harness.make_rng(seed, number),
        **op.kwargs)
    image = found.get("image") if isinstance(found, dict) else found
    if getattr(image, "ndim", 0) != 4:
      raise config_lib.ConfigError(
          f"--pred: {op.name!r} does not predict images [b, h, w, c]; it "
          f"predicts {jax.tree.map(jnp.shape, found)}.")
    return image

  images = []
  predict = harness.Loader(
      built.batch_sharding, built.info.batch_size).jit(predict)
  with sharding.use(built.mesh, built.rules), built.data.start(
      0, built.batch_sharding) as batches:
    for number in range(-(-num // built.info.batch_size)):
      images.append(jax.device_get(predict(
          {**state, "frozen": frozen}, next(batches), np.int32(number))))
  images = np.concatenate(images)[:num]
  harness.check_finite(images, "predicted images")
  # Named after the arguments, so that other samples do not replace these.
  asked = [f"{step:08d}", pred] + [f"{key}={value}" for key, value in (
      ("label", label), ("seed", seed or None)) if value is not None]
  name = os.path.join(workdir, "samples", re.sub(
      "[^A-Za-z0-9.=-]+", "_", "_".join(asked)).strip("_"))
  return _write(name, pictures.to_uint8(images))


def _check_label(label: int, config: config_lib.Config, batch_spec):
  """Raises ConfigError unless the run has classes and `label` is one."""
  if "label" not in batch_spec:
    raise config_lib.ConfigError(
        f"--label={label}: the run's batches have no label; they have "
        f"{sorted(batch_spec)}.")
  num_classes = config.get(
      "num_classes", config.get("model", {}).get("num_classes"))
  if num_classes == 0:
    raise config_lib.ConfigError(
        f"--label={label} has no effect: the model was trained without "
        "classes (num_classes is 0).")
  if label < 0 or num_classes is not None and label >= num_classes:
    classes = "not negative" if num_classes is None else (
        f"from 0 to {num_classes - 1}")
    raise config_lib.ConfigError(
        f"--label={label} is not a class; classes are {classes}.")


def _write(name: str, images: np.ndarray) -> str:
  """Writes uint8[n, h, w, c] as a grid and one by one; returns its path."""
  columns = max(1, int(np.sqrt(len(images))))
  rows = len(images) // columns
  if jax.process_index() == 0:
    pictures.save(f"{name}.png", pictures.grid(
        images[:rows * columns].reshape(rows, columns, *images.shape[1:])))
    for i, image in enumerate(images):
      pictures.save(os.path.join(name, f"{i:05d}.png"), image)
  console.say(f"{len(images)} images: {name}.png and {name}/")
  return f"{name}.png"


def define_flags():
  """Defines the command's flags; importing this module must not."""
  command_line.define_workdir("Directory of the run.")
  flags.DEFINE_string("pred", "sample", "Predict function, with arguments.")
  flags.DEFINE_integer("num", 16, "Number of images.", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Seed of the draws.")
  flags.DEFINE_integer(
      "label", None, "Class of all images; by default those of the data.")
  flags.DEFINE_integer(
      "step", None, "Step of the checkpoint; by default the newest.")
  cluster.define_flags()


def main(argv):
  del argv
  args = flags.FLAGS
  with command_line.exit_with_code():
    cluster.start_processes(
        args.coordinator_address, args.num_processes, args.process_id)
    config = pretrained.read_config(args.workdir)
    sample(config, args.workdir, pred=args.pred, num=args.num, seed=args.seed,
           label=args.label, step=args.step)


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
