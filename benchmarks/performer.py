"""Compares training steps of a Performer and of softmax by image size.

  python -m benchmarks.performer [--lengths 256,784] [--batch 8]

The model is `configs/fashion_mnist_models.py:model=performer`, which has a
token for each pixel; only the image size and model.attention vary.
`benchmarks/growth.py` says how time and memory are measured.
"""

import math

import jax
import jax.numpy as jnp

from benchmarks import growth
from big_vision import config as config_lib
from big_vision import sharding
from big_vision.configs import fashion_mnist_models
from big_vision.task import Info
from big_vision.trainers import classification


def main():
  args = growth.make_parser(
      __doc__, [64, 256, 784, 1024, 4096],
      ["dense", "memory_efficient", "favor"]).parse_args()
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  rng = jax.random.key(0)

  def make(impl, length):
    """Returns an update, and a maker of a new state and a batch of noise."""
    config = fashion_mnist_models.get_config("model=performer")
    if impl != "favor":  # The config's own, with its number of features.
      config.model.attention = impl
    height = next(h for h in range(math.isqrt(length), 0, -1) if not length % h)
    shape = (args.batch, height, length // height, 1)
    spec = {"image": jax.ShapeDtypeStruct(shape, jnp.float32),
            "labels": jax.ShapeDtypeStruct((args.batch, 10), jnp.float32)}
    info = Info(total_steps=100, batch_size=args.batch, data_size=60_000,
                batch_spec=spec, mesh=mesh)
    task = classification.make_task(config_lib.resolve(config), info)

    def update(state, batch):
      return task.update({**state, "frozen": {}}, batch, rng)

    def inputs():
      batch = {"image": jax.random.normal(rng, shape),
               "labels": jax.nn.one_hot(jnp.arange(args.batch) % 10, 10)}
      state = task.init(rng, batch, {})
      return dict(state, step=jnp.zeros((), jnp.int32)), batch
    return update, inputs

  print(f"{jax.devices()[0].device_kind}, batch {args.batch}, float32, "
        f"{args.rounds} rounds")
  growth.run(args, make)


if __name__ == "__main__":
  main()
