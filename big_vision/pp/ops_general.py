"""Ops for entries of any kind: numbers, labels, keys.

Legend: k classes, n entries; [...] is any shape.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from big_vision.pp import registry


@registry.register("value_range")
@registry.in_key_out_key()
def value_range(
    vmin: float = -1, vmax: float = 1,
    in_min: float | Sequence[float] = 0,
    in_max: float | Sequence[float] = 255.0, clip_values: bool = False):
  """Maps [in_min, in_max] to [vmin, vmax], linearly.

  Any number dtype [...] in [in_min, in_max] to float32[...] in [vmin, vmax].
  Shapes may be unknown; refuses a RaggedTensor.

  Args:
    vmin: Result for an input of `in_min`.
    vmax: Result for an input of `in_max`.
    in_min: Lower end of the input range: one number, or one for each entry of
      the last axis.
    in_max: Upper end of the input range, in the same form.
    clip_values: whether values outside of [in_min, in_max] are clipped; if
      not, they end outside of [vmin, vmax].
  """
  if np.any(np.asarray(in_min) >= np.asarray(in_max)):
    raise ValueError(f"in_min={in_min} must be less than in_max={in_max}.")

  def scale(value):
    low = tf.constant(in_min, tf.float32)
    high = tf.constant(in_max, tf.float32)
    value = (tf.cast(value, tf.float32) - low) / (high - low)
    value = vmin + value * (vmax - vmin)
    return tf.clip_by_value(value, vmin, vmax) if clip_values else value
  return scale


@registry.register("lookup")
@registry.in_key_out_key(None, None)
def lookup(mapping: str, npzkey: str = "fnames", sep: str | None = None):
  """Turns strings into numbers, by a table in a file.

  string[...] to int32[...]; what is not in the table becomes -1. Needs
  `key`, or `inkey` and `outkey`. Refuses a RaggedTensor.

  Args:
    mapping: path of the table, read when the pipeline is built. A .npz file
      counts the strings of its array `npzkey`; a text file counts its lines.
    npzkey: see `mapping`.
    sep: for text files whose lines are "string<sep>number"; the last `sep` of
      a line counts.

  Raises:
    ValueError: a string is there twice, or what should be a number is none.
  """
  table = _read_table(mapping, npzkey, sep)
  initializer = tf.lookup.KeyValueTensorInitializer(
      tf.constant(list(table), tf.string),
      tf.constant(list(table.values()), tf.int32))
  return tf.lookup.StaticHashTable(initializer, default_value=-1).lookup


def _read_table(path, npzkey, sep):
  """{string: number} of a file, as described in `lookup`."""
  try:
    if path.endswith(".npz"):
      with tf.io.gfile.GFile(path, "rb") as file, np.load(file) as arrays:
        names = [tf.compat.as_str(name) for name in arrays[npzkey]]
        pairs = [(name, i) for i, name in enumerate(names)]
    else:
      with tf.io.gfile.GFile(path) as file:
        lines = [line.rstrip("\r\n") for line in file]
      if sep is None:
        pairs = [(line, i) for i, line in enumerate(lines)]
      else:
        pairs = [tuple(line.rsplit(sep, 1)) for line in lines]
        pairs = [(name, int(number)) for name, number in pairs]
  except (KeyError, ValueError, tf.errors.OpError) as error:
    raise ValueError(f"Cannot read the table {path!r}: {error}") from error
  table = dict(pairs)
  if len(table) < len(pairs):
    raise ValueError(f"The table {path!r} has strings that are there twice.")
  return table


@registry.register("onehot")
def onehot(
    depth: int, key: str = "labels", key_result: str | None = None,
    multi: bool = True, on: float = 1.0, off: float = 0.0):
  """Turns class numbers into vectors.

  int[] to float32[k]; int[n] to one multi-hot float32[k] for all n, or to
  float32[n, k] if not `multi`. Values are `on` and `off`. The class -1, which
  stands for "unknown", sets nothing; so does an empty int[0]. Refuses a
  RaggedTensor.

  Args:
    depth: k.
    key: entry with the class numbers; others than -1 to k - 1 raise an
      InvalidArgumentError that names them.
    key_result: entry for the result, `key` if None.
    multi: whether an int[n] becomes one vector.
    on: value of the classes that are there; label smoothing is on < 1, off > 0.
    off: value of the others.
  """
  def to_onehot(data):
    labels = registry.value_of(data, key)
    if isinstance(labels, tf.RaggedTensor) or not labels.dtype.is_integer:
      raise ValueError(f"{key!r} must hold integers, densely; it is {labels}.")
    labels = tf.cast(labels, tf.int64)
    labels = registry.checked(
        labels, tf.reduce_all((labels >= -1) & (labels < depth)),
        f"{key!r} is not in [-1, {depth}):", labels)
    hot = tf.one_hot(labels, depth, on_value=True, off_value=False)
    if multi and labels.shape.rank != 0:
      hot = tf.reduce_any(tf.reshape(hot, [-1, depth]), axis=0)
    return {**data, key_result or key: tf.where(hot, float(on), float(off))}
  return to_onehot


@registry.register("keep")
def keep(*keys: str):
  """Keeps these entries, of any kind, and drops the others.

  A key that the example does not have is an error.
  """
  return lambda data: {key: registry.value_of(data, key) for key in keys}


@registry.register("drop")
def drop(*keys: str):
  """Drops these entries, of any kind, and keeps the others.

  A key that the example does not have is an error.
  """
  def drop_keys(data):
    for key in keys:
      registry.value_of(data, key)
    return {key: value for key, value in data.items() if key not in keys}
  return drop_keys


@registry.register("copy")
def copy(inkey: str, outkey: str):
  """Copies an entry, of any kind. In a nested entry the dicts are copied."""
  def copied(value):
    if isinstance(value, dict):
      return {key: copied(entry) for key, entry in value.items()}
    return value  # Tensors do not change.
  return lambda data: {**data, outkey: copied(registry.value_of(data, inkey))}


@registry.register("reshape")
@registry.in_key_out_key()
def reshape(new_shape: Sequence[int]):
  """Any dtype [...] to `new_shape`, of which one size may be -1.

  Refuses a RaggedTensor.
  """
  return lambda value: tf.reshape(value, new_shape)


@registry.register("pad_to_shape")
@registry.in_key_out_key(ragged=True)
def pad_to_shape(
    shape: Sequence[int | None], pad_value: float = 0, where: str = "after"):
  """Pads up to a shape.

  Number dtype of any shape of the same rank to that dtype [shape]. A
  RaggedTensor becomes dense, its rows padded, too; only with "after".

  Args:
    shape: sizes of the result; None leaves an axis as it is. A value that is
      larger raises an InvalidArgumentError with both shapes.
    pad_value: Value of the added entries.
    where: "after", "before", or "both", which gives the end the odd one.
  """
  if where not in ("after", "before", "both"):
    raise ValueError(
        f"where={where!r} is none of ['after', 'before', 'both'].")
  shape = list(shape)

  def pad(value):
    if value.shape.rank != len(shape):
      raise ValueError(
          f"a value of shape {value.shape} cannot be padded to {shape}.")
    fill = tf.constant(pad_value, value.dtype)
    if isinstance(value, tf.RaggedTensor):
      if where != "after":
        raise ValueError(
            f"a RaggedTensor is padded 'after' its rows, not {where!r}.")
      value = value.to_tensor(fill)
    old = tf.shape(value)
    wanted = tf.stack([
        old[axis] if size is None else size for axis, size in enumerate(shape)])
    missing = registry.checked(
        wanted - old, tf.reduce_all(old <= wanted),
        "The shape", old, "is larger than what it is padded to:", wanted)
    before = {
        "after": tf.zeros_like(missing), "before": missing,
        "both": missing // 2}[where]
    padded = tf.pad(
        value, tf.stack([before, missing - before], axis=1),
        constant_values=fill)
    static = [
        known if size is None else size
        for size, known in zip(shape, value.shape)]
    return tf.ensure_shape(padded, static)
  return pad


@registry.register("flatten")
def flatten(keys: Sequence[str] | None = None):
  """Replaces nested dicts by entries "outer/inner", of any kind.

  Args:
    keys: the entries to flatten; the others stay nested. None: all.
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
    key: an entry of any dtype and shape. An empty one (a size is 0) is replaced
      by `value` in its dtype. A RaggedTensor is refused.
    value: number, string or nested list of them.
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
  """Chooses random entries of lists, none twice, and keeps their order.

  Any dtype [n, ...] to the same dtype [chosen, ...], or [...] for "single". A
  RaggedTensor stays ragged. Choosing more than there are raises an
  InvalidArgumentError.

  Args:
    n: how many: a number, [least, most], both possible, or "single" for one
      entry without the leading axis.
    key: entry or entries to choose from. From several the same places are
      chosen; they must be of the same length.
    fewer_ok: whether all are taken where there are fewer than `n`.
    inkey: instead of `key`, what is read.
    outkey: instead of `key`, what is written.
  """
  def listed(keys):
    return [keys] if isinstance(keys, str) else list(keys or ())
  inkeys, outkeys = listed(inkey or key), listed(outkey or key)
  if not inkeys or len(inkeys) != len(outkeys):
    raise ValueError(
        "needs key=, or as many inkey= as outkey=; it got "
        f"{inkeys} and {outkeys}.")
  single = n == "single"
  bounds = (1, 1) if single else (n, n) if isinstance(n, int) else n
  if isinstance(bounds, str) or len(bounds) != 2 or not (
      0 <= bounds[0] <= bounds[1]):
    raise ValueError(f"n={n!r} is not a number, [least, most] or 'single'.")
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
        f"Cannot choose {n} of {inkeys}, of the lengths:", *lengths)
    order = tf.random.experimental.stateless_shuffle(all_places, seed_order)
    places = tf.sort(order[:number])
    places = places[0] if single else places
    chosen = [tf.gather(entry, places) for entry in lists]
    return {**data, **dict(zip(outkeys, chosen))}
  return choose


def _length(value):
  """The leading size of a dense or ragged tensor, int32."""
  if isinstance(value, tf.RaggedTensor):
    return tf.cast(value.nrows(), tf.int32)
  return tf.shape(value)[0]
