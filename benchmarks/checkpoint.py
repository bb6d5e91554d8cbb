"""Measures how long saving stalls a run, and how long restoring takes.

  python -m benchmarks.checkpoint [--megabytes 64]

The peer is NumPy, writing (with fsync) and reading the same bytes.
"""

import argparse
import os
import tempfile

from benchmarks import timing
from big_vision.run import checkpoints
from big_vision import sharding
import jax
import jax.numpy as jnp
import numpy as np


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--megabytes", type=int, default=64)
  parser.add_argument("--leaves", type=int, default=32)
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  rows = args.megabytes * 2 ** 20 // 4 // args.leaves // 1024
  state = {f"leaf{i:02d}": jax.random.normal(jax.random.key(i), (rows, 1024))
           for i in range(args.leaves)}
  host = jax.tree.map(np.asarray, state)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype,
                                     sharding=sharding.replicated(mesh)), state)
  with tempfile.TemporaryDirectory() as root:
    saver = checkpoints.Checkpoints(os.path.join(root, "checkpoints"))
    step = [0]
    fname = os.path.join(root, "state.npz")

    def write():
      with open(fname, "wb") as file:
        np.savez(file, **host)
        file.flush()
        os.fsync(file.fileno())

    def save():
      step[0] += 1
      saver.save(step[0], state)

    def read():
      with np.load(fname) as arrays:
        jax.block_until_ready([jnp.asarray(arrays[k]) for k in arrays.files])

    timing.report(timing.alternate(
        {"save: stall": save, "save: until stored": saver.wait,
         "numpy: write and fsync": write}, args.rounds))
    timing.report(timing.alternate(
        {"restore, verified": lambda: jax.block_until_ready(
            saver.restore(shapes)[1]), "numpy: read": read}, args.rounds))
    saver.close()


if __name__ == "__main__":
  main()
