"""Ops that turn names into class numbers, and class numbers into vectors.

Legend: k classes, n labels; [...] is any shape.
"""

import numpy as np
import tensorflow as tf

from big_vision import files
from big_vision.pp import registry


@registry.register("lookup")
@registry.in_key_out_key(None, None)
def lookup(mapping: str, npzkey: str = "fnames", sep: str | None = None):
  """Turns strings into numbers by means of a table in a file.

  string[...] to int32[...]; a string that is not in the table becomes -1. Needs
  `key`, or `inkey` and `outkey`. Refuses a RaggedTensor.

  Args:
    mapping: Path of the table, which is read when the pipeline is built. The
      number of a string is its position in the array `npzkey` of a .npz file,
      or its line in a text file, from 0.
    npzkey: Name of the array in a .npz file.
    sep: Separator, for text files whose lines are "string<sep>number"; the last
      one in a line counts.

  Raises:
    ValueError: A string occurs twice, or a line of a text file with `sep` does
      not end with a number.
  """
  table = _read_table(mapping, npzkey, sep)
  initializer = tf.lookup.KeyValueTensorInitializer(
      tf.constant(list(table), tf.string),
      tf.constant(list(table.values()), tf.int32))
  return tf.lookup.StaticHashTable(initializer, default_value=-1).lookup


def _read_table(path, npzkey, sep):
  """Reads {string: number} from a file, as described in `lookup`."""
  try:
    if path.endswith(".npz"):
      with files.open_regular(path) as file, np.load(file) as arrays:
        names = [tf.compat.as_str(name) for name in arrays[npzkey]]
        pairs = [(name, i) for i, name in enumerate(names)]
    else:
      with files.open_regular(path) as file:
        lines = [line.decode().rstrip("\r\n") for line in file]
      if sep is None:
        pairs = [(line, i) for i, line in enumerate(lines)]
      else:
        pairs = [tuple(line.rsplit(sep, 1)) for line in lines]
        pairs = [(name, int(number)) for name, number in pairs]
  except (KeyError, ValueError, OSError) as error:
    reason = getattr(error, "strerror", None) or error
    raise ValueError(f"Cannot read the table {path}: {reason}.") from error
  table = dict(pairs)
  if len(table) < len(pairs):
    raise ValueError(f"The table {path!r} contains some strings twice.")
  return table


@registry.register("onehot")
def onehot(
    depth: int, key: str = "labels", key_result: str | None = None,
    multi: bool = True, on: float = 1.0, off: float = 0.0):
  """Turns class numbers into vectors.

  int[] to float32[k]; int[n] to one multi-hot float32[k] for all n, or to
  float32[n, k] if not `multi`. Values are `on` and `off`. The class -1, which
  stands for "unknown", sets nothing; neither does an empty int[0]. Refuses a
  RaggedTensor.

  Args:
    depth: Number of classes, k.
    key: Entry with the class numbers. A number other than -1 to k - 1 raises an
      InvalidArgumentError that names it.
    key_result: Entry for the result; None for `key`.
    multi: Whether an int[n] becomes one vector.
    on: Value of the example's classes. For label smoothing, on < 1 and off > 0.
    off: Value of all other classes.
  """
  def to_onehot(data):
    labels = registry.value_of(data, key)
    if isinstance(labels, tf.RaggedTensor) or not labels.dtype.is_integer:
      raise ValueError(
          f"{key!r} must hold integers in a dense tensor; it is {labels}.")
    labels = tf.cast(labels, tf.int64)
    labels = registry.checked(
        labels, tf.reduce_all((labels >= -1) & (labels < depth)),
        f"{key!r} is not in [-1, {depth}):", labels)
    hot = tf.one_hot(labels, depth, on_value=True, off_value=False)
    if multi and labels.shape.rank != 0:
      hot = tf.reduce_any(tf.reshape(hot, [-1, depth]), axis=0)
    return {**data, key_result or key: tf.where(hot, float(on), float(off))}
  return to_onehot
