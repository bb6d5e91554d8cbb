"""Places batches and host arrays on the mesh."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np

from big_vision import config as config_lib


def batch_sharding(
    mesh: Mesh, rules: Sequence[tuple[str, Any]]) -> NamedSharding:
  """Returns the sharding of a batch, by the rule for "act_batch"."""
  return NamedSharding(mesh, P(dict(rules).get("act_batch")))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding with a whole copy on every device."""
  return NamedSharding(mesh, P())


def num_shards(sharding: NamedSharding) -> int:
  """Returns the number of parts that the first axis of an array is split into.
  """
  axes = sharding.spec[0] if len(sharding.spec) else None
  axes = (axes,) if isinstance(axes, str) else (axes or ())
  return int(np.prod([sharding.mesh.shape[axis] for axis in axes]))


def check_divides(batch_size: int, sharding: NamedSharding, where: str):
  """Raises ConfigError if the shards of a batch would have unequal sizes.

  Args:
    batch_size: Number of examples in the batch.
    sharding: Sharding of the batch.
    where: Config key of the batch size; the error names it, and the nearest
      sizes that divide.
  """
  shards = num_shards(sharding)
  if batch_size % shards:
    below = batch_size // shards * shards
    near = [size for size in (below, below + shards) if size]
    raise config_lib.ConfigError(
        f"{where} is {batch_size}, which does not divide over {shards} "
        f"shards of the batch; the nearest sizes that do are {near}.")


def put(values, shardings):
  """Places host arrays on the devices; each process only places its own shards.

  Args:
    values: Tree of arrays, the same on every process.
    shardings: Tree of the same structure, a sharding at each leaf.

  Returns:
    The tree of jax arrays.
  """
  # A callback, since jax.device_put would first check over the network that
  # all processes pass the same values.
  def place(value, sharding):
    value = np.asarray(value)
    return jax.make_array_from_callback(
        value.shape, sharding, lambda index: value[index])
  return jax.tree.map(place, values, shardings)
