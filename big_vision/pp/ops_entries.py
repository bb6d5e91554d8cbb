"""Ops that choose, copy or rename entries of an example, or parts of them."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from big_vision.pp import registry


@registry.register("keep")
def keep(*keys: str):
  """Keeps the entries with these keys, of any dtype, and drops all others.

  A key that the example does not have is an error.
  """
  return lambda data: {key: registry.value_of(data, key) for key in keys}


@registry.register("drop")
def drop(*keys: str):
  """Drops the entries with these keys, of any dtype, and keeps all others.

  A key that the example does not have is an error.
  """
  def drop_keys(data):
    for key in keys:
      registry.value_of(data, key)
    return {key: value for key, value in data.items() if key not in keys}
  return drop_keys


@registry.register("copy")
def copy(inkey: str, outkey: str):
  """Copies an entry of any dtype. If it is nested, its dicts are copied."""
  def copied(value):
    if isinstance(value, dict):
      return {key: copied(entry) for key, entry in value.items()}
    return value  # Tensors are immutable.
  return lambda data: {**data, outkey: copied(registry.value_of(data, inkey))}


@registry.register("flatten")
def flatten(keys: Sequence[str] | None = None):
  """Replaces nested dicts by entries "outer/inner" of any dtype.

  Args:
    keys: Entries to flatten; the others stay nested. None flattens all.
  """
  def flat(value, name):
    if not isinstance(value, dict):
      return {name: value}
    return {
        full_name: leaf for key, entry in value.items()
        for full_name, leaf in flat(entry, f"{name}/{key}").items()}

  def flatten_keys(data):
    for key in keys or ():
      registry.value_of(data, key)
    result = {}
    for key, value in data.items():
      chosen = keys is None or key in keys
      result.update(flat(value, key) if chosen else {key: value})
    return result
  return flatten_keys


@registry.register("setdefault")
def setdefault(key: str, value: Any):
  """Sets an entry that is missing or empty.

  Args:
    key: Entry of any dtype and shape. If one of its sizes is 0, it is replaced
      by `value` in its dtype. A RaggedTensor is refused.
    value: Number, string or nested list of them.
  """
  def set_key(data):
    if key not in data:
      return {**data, key: tf.constant(value)}
    old = data[key]
    if isinstance(old, tf.RaggedTensor):
      raise ValueError(f"{key!r} is a RaggedTensor; see pad_to_shape.")
    default = tf.constant(value, old.dtype)
    if old.shape.is_fully_defined():
      return {**data, key: old if old.shape.num_elements() else default}
    return {**data, key: tf.cond(
        tf.size(old) > 0, lambda: old, lambda: default)}
  return set_key


@registry.register("choice", random=True)
def choice(
    n: int | str | Sequence[int] = "single",
    key: str | Sequence[str] | None = None, fewer_ok: bool = False,
    inkey: str | Sequence[str] | None = None,
    outkey: str | Sequence[str] | None = None):
  """Chooses random elements of lists without replacement, in their order.

  Any dtype [n, ...] to the same dtype [chosen, ...], or [...] for "single". A
  RaggedTensor stays ragged. Choosing more elements than there are raises an
  InvalidArgumentError.

  Args:
    n: Number of elements to choose; [least, most] for a random number in that
      closed range; "single" for one element without the leading axis.
    key: Entry or entries to choose from. Several must be of the same length;
      the same positions are chosen from all of them.
    fewer_ok: Whether all elements are taken where there are fewer than `n`.
    inkey: Entry or entries to read, instead of `key`.
    outkey: Entry or entries to write, instead of `key`.
  """
  def listed(keys):
    return [keys] if isinstance(keys, str) else list(keys or ())
  inkeys, outkeys = listed(inkey or key), listed(outkey or key)
  if not inkeys or len(inkeys) != len(outkeys):
    raise ValueError(
        "needs key=, or equally many entries in inkey= and outkey=; it got "
        f"{inkeys} and {outkeys}.")
  single = n == "single"
  bounds = (1, 1) if single else (n, n) if isinstance(n, int) else n
  if isinstance(bounds, str) or len(bounds) != 2 or not (
      0 <= bounds[0] <= bounds[1]):
    raise ValueError(f"n={n!r} must be a number, [least, most] or 'single'.")
  least, most = bounds

  def choose(data, seed):
    lists = [registry.value_of(data, name) for name in inkeys]
    lengths = [_length(entry) for entry in lists]
    seed_number, seed_order = tf.unstack(
        tf.random.experimental.stateless_split(seed, 2))
    number = least if least == most else tf.random.stateless_uniform(
        [], seed_number, least, most + 1, dtype=tf.int32)
    if fewer_ok and not single:
      number = tf.minimum(number, lengths[0])
    all_places = registry.checked(
        tf.range(lengths[0]),
        tf.reduce_all(tf.stack(lengths) == lengths[0]) &
        (number <= lengths[0]),
        f"Cannot choose {n} from {inkeys}, which have the lengths:", *lengths)
    order = tf.random.experimental.stateless_shuffle(all_places, seed_order)
    places = tf.sort(order[:number])
    places = places[0] if single else places
    chosen = [tf.gather(entry, places) for entry in lists]
    return {**data, **dict(zip(outkeys, chosen))}
  return choose


def _length(value):
  """Returns the leading size of a dense or ragged tensor, int32[]."""
  if isinstance(value, tf.RaggedTensor):
    return tf.cast(value.nrows(), tf.int32)
  return tf.shape(value)[0]
