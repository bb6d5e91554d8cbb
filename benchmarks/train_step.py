"""Compares a ViT's training step with timm on PyTorch.

  python -m benchmarks.train_step [--variant Ti/16] [--size 96] [--batch 8]

Both have the same architecture, batch, loss and optimizer (AdamW, float32) and
take turns in one process. If torch or timm is missing, only ours is measured.
"""

import argparse

from benchmarks import peers
from benchmarks import timing
from big_vision import config as config_lib
from big_vision import sharding
from big_vision import state as state_lib
from big_vision.task import Info
from big_vision.trainers import classification
import jax
import jax.numpy as jnp
import numpy as np


def make_ours(variant, size, batch):
  """Returns a function that does one step and waits for it."""
  config = config_lib.Config(dict(
      model_name="vit", num_classes=1000, loss="softmax_xent",
      model=dict(variant=variant, pool_type="tok"),
      optax_name="scale_by_adam", lr=1e-3, wd=1e-4))
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  spec = {"image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32),
          "labels": jax.ShapeDtypeStruct((batch, 1000), jnp.float32)}
  info = Info(total_steps=100, batch_size=batch, data_size=1000,
              batch_spec=spec, mesh=mesh)
  rng = jax.random.key(0)
  task = classification.make_task(config, info)
  shapes = state_lib.infer_shapes(task, info, rng)
  shardings = sharding.infer(shapes, sharding.DEFAULT_STRATEGY, mesh)
  state = state_lib.make(task, info, rng, shapes, shardings)
  update = state_lib.make_update(task, rng, shardings, mesh)
  generator = np.random.default_rng(0)
  data = {"image": jnp.asarray(generator.normal(size=spec["image"].shape),
                               jnp.float32),
          "labels": jax.nn.one_hot(generator.integers(0, 1000, batch), 1000)}
  box = [state]

  def step():
    box[0], _, ok = update(box[0], {}, data, ())
    jax.block_until_ready(ok)
  return step


def make_timm(variant, size, batch):
  """Returns the same for timm; without it, prints why and returns None."""
  try:
    torch, timm = peers.import_timm()
  except ImportError as error:
    print(f"timm on torch is left out: {error}")
    return None
  name = {"Ti": "tiny", "S": "small", "B": "base"}[variant.split("/")[0]]
  patch = variant.split("/")[1]
  model = timm.create_model(
      f"vit_{name}_patch{patch}_224", img_size=size, num_classes=1000)
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
  image = torch.randn(batch, 3, size, size)
  label = torch.randint(0, 1000, (batch,))

  def step():
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(image), label).backward()
    optimizer.step()
  return step


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--variant", default="Ti/16",
                      help="Ti, S or B, and the patch size")
  parser.add_argument("--size", type=int, default=96)
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--rounds", type=int, default=15)
  args = parser.parse_args()
  candidates = {"ours": make_ours(args.variant, args.size, args.batch)}
  if (peer := make_timm(args.variant, args.size, args.batch)) is not None:
    candidates["timm on torch"] = peer
  timing.report(timing.alternate(candidates, args.rounds, warmup=2))


if __name__ == "__main__":
  main()
