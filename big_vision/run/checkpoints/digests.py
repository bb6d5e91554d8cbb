"""Computes checksums of arrays and metadata, which reveal any damage."""

from collections.abc import Mapping
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision import tree


def name_arrays(state) -> dict[str, jax.Array]:
  """Returns the leaves of `state` by name, as jax arrays on all processes.

  Raises:
    TypeError: A leaf is not an array or a number, or its dtype cannot be
      stored.
    ValueError: A number overflows its dtype, or two leaves share a name.
  """
  flat = tree.flatten_with_names(state)
  named = {name: _as_array(name, leaf) for name, leaf in flat}
  # orbax joins names with dots, so "a/b" and "a.b" would share a file.
  if len({name.replace("/", ".") for name in named}) < len(flat):
    names = sorted(name.replace("/", ".") for name, _ in flat)
    twice = sorted({a for a, b in zip(names, names[1:]) if a == b})
    raise ValueError(f"Several leaves of the state are called {twice}.")
  return named


def _as_array(name, leaf) -> jax.Array:
  """Converts a leaf to the jax array that is stored.

  NumPy arrays are converted as well, because orbax restores them without
  checking their shapes.
  """
  several = jax.process_count() > 1
  if isinstance(leaf, jax.Array):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
      raise TypeError(f"{name} has the dtype {leaf.dtype}, which cannot be "
                      "stored; store its jax.random.key_data().")
    if not (several and leaf.is_fully_addressable):
      return leaf
  given = np.asarray(leaf)
  try:
    array = jnp.asarray(given)
  except TypeError as error:
    raise TypeError(f"{name} cannot be stored: {error}") from error
  if given.dtype.kind in "iu" and np.any(np.asarray(array) != given):
    raise ValueError(f"{name} does not fit into {array.dtype}: {leaf!r}.")
  if not several:
    return array
  # Every process has its own copy. A replicated global array tells orbax that
  # the copies are equal, so that it writes only one of them.
  everywhere = jax.sharding.NamedSharding(
      jax.sharding.Mesh(np.asarray(jax.devices()), ("all",)),
      jax.sharding.PartitionSpec())
  return jax.make_array_from_callback(
      array.shape, everywhere, lambda index: np.asarray(array)[index])


def describe(named: Mapping[str, jax.Array]) -> dict[str, list]:
  """Returns {name: [shape, dtype, digest]}, which JSON can hold.

  The leaves are digested one after the other: on CPU, programs in flight at
  the same time may run in a different order on each device, and collectives of
  different programs would then wait for each other forever.
  """
  return {name: [list(x.shape), str(x.dtype), int(digest(x))]
          for name, x in named.items()}


@jax.jit  # Per leaf: leaves of equal shape share one compiled program.
def digest(x):
  """Returns a uint32 that any flipped bit or swapped pair of values changes.

  The digest is a sum of hashes of (value, position). Because a sum does not
  depend on order, shards can be added up wherever they are, and the digest does
  not depend on the sharding. The hash is the finalizer of MurmurHash3
  (Appleby, public domain), which is one-to-one: two values at one position
  never collide.

  Args:
    x: Array of any shape and any dtype of 1, 2, 4, 8 or 16 bytes.
  """
  if jnp.iscomplexobj(x):
    x = jnp.stack([x.real, x.imag], -1)
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  # 64 bits become two words, along a new last dimension.
  words = jax.lax.bitcast_convert_type(x, {
      1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32
  }[jnp.dtype(x.dtype).itemsize])
  # The index into the flattened array. It wraps around after 2^32 words.
  position = jnp.zeros((), jnp.uint32)
  for dim, size in enumerate(words.shape):
    position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(
        jnp.uint32, words.shape, dim)
  # The golden ratio keeps position 0 from hashing to 0.
  h = words.astype(jnp.uint32) ^ _mix(position + jnp.uint32(0x9E3779B9))
  return jnp.sum(_mix(h), dtype=jnp.uint32)


def _mix(h):
  h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
  return h ^ (h >> 16)


def seal(content: Mapping[str, Any]) -> dict[str, str]:
  """Packs `content` as JSON text with its checksum.

  Needed because text with a flipped bit may still be valid JSON.
  """
  text = json.dumps(content)
  return {"text": text, "sha256": _checksum(text)}


def unseal(sealed: Mapping[str, str]) -> dict[str, Any]:
  """Inverts `seal`; raises ValueError if the checksum is wrong."""
  if _checksum(sealed["text"]) != sealed["sha256"]:
    raise ValueError("its checksum is wrong")
  return json.loads(sealed["text"])


def _checksum(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()
