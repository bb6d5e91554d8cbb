"""Writes images that a checkpoint draws, or otherwise predicts.

  python -m big_vision.tools.sample --workdir WORKDIR
  python -m big_vision.tools.sample --workdir WORKDIR \
      --pred "sample(temperature=0.9, top_k=100)" --label 3 --num 64

reads the config stored in the workdir and its newest checkpoint, and writes
WORKDIR/samples/NAME.png, a grid, and beside it NAME/*.png, one file an image;
NAME says the step and what was asked for. What draws is a predict function of
the run's task that returns images in [-1, 1], or a dict with such an "image".
It gets batches of the run's training data, of which a model of codes reads the
labels only, and a key made from --seed and the batch's number. `--pred
reconstruct` shows what an autoencoder makes of the images.
"""

import os
import re

from absl import app
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
  """Writes `num` images; returns the path of the grid.

  Args:
    config: of the run.
    workdir: of the run.
    pred: a predict function, with arguments if need be: "sample(top_k=100)".
    num: how many.
    seed: of what is drawn.
    label: class of all images; None for those of the training data.
    step: which checkpoint; None for the newest.

  Raises:
    ConfigError: no such predict function or checkpoint, or what is predicted
      are no images.
  """
  op, = op_string.parse(pred)
  built = build_lib.build(config)
  predict_fns = built.task.predict_fns
  if op.name not in predict_fns:
    raise config_lib.ConfigError(
        f"--pred: the task has no predict function {op.name!r}"
        f"{config_lib.nearest(op.name, predict_fns)}. It has "
        f"{sorted(predict_fns)}.")
  if label is not None and "label" not in built.info.batch_spec:
    raise config_lib.ConfigError(
        f"--label={label}: the run's batches have no label.")
  directory = os.path.join(workdir, "checkpoints")
  restored = checkpoints.Checkpoints(directory, read_only=True).restore(
      built.shapes, step)
  if restored is None:
    raise config_lib.ConfigError(f"{directory} has no checkpoint.")
  step, state, _ = restored
  frozen = state_lib.put_frozen(built.task, built.strategy, built.mesh)

  def predict(state, batch, batch_idx):
    rng = jax.random.fold_in(jax.random.key(seed), batch_idx)
    if label is not None:
      batch = {**batch, "label": jnp.full_like(batch["label"], label)}
    found = predict_fns[op.name](
        state, batch, *op.args, rng=rng, **op.kwargs)
    image = found.get("image") if isinstance(found, dict) else found
    if getattr(image, "ndim", 0) != 4:
      raise config_lib.ConfigError(
          f"--pred: {op.name!r} does not predict images, but "
          f"{jax.tree.map(jnp.shape, found)}.")
    return image

  images = []
  with sharding.use(built.mesh, built.rules), built.data.start(
      0, built.batch_sharding) as batches:
    predict = harness.jit(predict, built.batch_sharding)
    for i in range(-(-num // built.info.batch_size)):
      images.append(jax.device_get(
          predict({**state, "frozen": frozen}, next(batches), i)))
  shown = pictures.to_uint8(np.concatenate(images)[:num])
  # Named after what was asked: other images do not take their place.
  asked = [f"{step:08d}", pred] + [f"{key}={value}" for key, value in (
      ("label", label), ("seed", seed or None)) if value is not None]
  name = os.path.join(workdir, "samples", re.sub(
      "[^A-Za-z0-9.=-]+", "_", "_".join(asked)).strip("_"))
  columns = max(1, int(np.sqrt(num)))
  rows = len(shown) // columns
  if jax.process_index() == 0:
    pictures.save(f"{name}.png", pictures.grid(
        shown[:rows * columns].reshape(rows, columns, *shown.shape[1:])))
    for i, picture in enumerate(shown):
      pictures.save(os.path.join(name, f"{i:05d}.png"), picture)
  console.say(f"{len(shown)} images: {name}.png and {name}/")
  return f"{name}.png"


def define_flags():
  """Called when this is the program, so that others may import it."""
  flags.DEFINE_string("workdir", None, "The run.")
  flags.DEFINE_string("pred", "sample", "Predict function, with arguments.")
  flags.DEFINE_integer("num", 16, "How many images.", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Of what is drawn.")
  flags.DEFINE_integer("label", None, "Class of all; default: of the data.")
  flags.DEFINE_integer("step", None, "Which checkpoint; default: newest.")
  cluster.define_flags()
  flags.mark_flag_as_required("workdir")


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
  app.run(main, flags_parser=command_line.parse_flags)
