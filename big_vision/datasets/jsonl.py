"""Examples in a JSONL file: one flat JSON object on every line."""

from collections.abc import Sequence
import json
import os
from typing import Any

import numpy as np

from big_vision import config as config_lib
from big_vision.datasets import core
from big_vision.datasets import memory
from big_vision.datasets import slicing


def jsonl(
    fname: str, image_keys: Sequence[str] = ("image",),
    start: int | float | None = None, stop: int | float | None = None,
    num_classes: int | None = None) -> core.Source:
  """Examples of a JSONL file.

  All lines have the same keys, and a key has values of one type: strings
  become string[], integers int64[], booleans bool[], and numbers of which any
  has a decimal point float32[]. Empty lines are left out.

  Args:
    fname: the file.
    image_keys: keys whose values are paths of files, relative to the folder of
      `fname`; the examples have the files' bytes instead, string[].
    start: first example; see `slicing.slice_bounds`.
    stop: example to stop before; see `slicing.slice_bounds`.
    num_classes: how many values "label" takes. The file cannot tell.

  Raises:
    ConfigError: no such file or image key, or an empty part was asked for.
    DataError: a line is not a flat JSON object, differs from the first in its
      keys or types, or names a file that is not there; names file and line.
  """
  import tensorflow as tf
  if not tf.io.gfile.exists(fname):
    raise config_lib.ConfigError(f"bv:jsonl: there is no file {fname!r}.")
  with tf.io.gfile.GFile(fname, "rb") as file:
    lines = file.read().split(b"\n")
  rows = [(number, line) for number, line in enumerate(lines, 1)
          if line.strip()]
  if not rows:
    raise core.DataError(f"{fname} has no examples.")
  first, last = slicing.slice_bounds(start, stop, len(rows), fname)
  rows = [(number, _parse(line, fname, number))
          for number, line in rows[first:last]]
  keys = list(rows[0][1])
  for number, row in rows:
    if set(row) != set(keys):
      raise core.DataError(
          f"{fname} line {number} has the keys {sorted(row)}, but line "
          f"{rows[0][0]} has {sorted(keys)}; all lines must have the same.")
  for key in image_keys:
    if key not in keys:
      raise config_lib.ConfigError(
          f"{fname} has no key {key!r}{config_lib.nearest(key, keys)} to read "
          f"images by; it has {sorted(keys)}. Set image_keys to those that are "
          "paths of images, () if none is.")
  numbers = [number for number, _ in rows]
  columns = {
      key: _to_array([row[key] for _, row in rows], key, fname, numbers)
      for key in keys}
  for key in image_keys:
    columns[key] = _to_paths(columns[key], key, fname, numbers)
  return _JsonlSource(fname, numbers, columns, image_keys, num_classes)


class _JsonlSource(core.Source):
  """Columns in memory, some of which are paths of files to read."""

  def __init__(self, fname, numbers, columns, image_keys, num_classes):
    self._fname = fname
    self._numbers = numbers
    self._image_keys = image_keys
    self.num_classes = num_classes
    self._columns = {key: memory.on_cpu(v) for key, v in columns.items()}

  def __len__(self):
    return len(self._numbers)

  def read(self, index):
    import tensorflow as tf
    example = {key: tf.gather(v, index) for key, v in self._columns.items()}
    for key in self._image_keys:
      example[key] = tf.io.read_file(example[key])
    return example

  def describe(self, index):
    return f"{self._fname} line {self._numbers[index]}"


def _parse(line: bytes, fname: str, number: int) -> dict[str, Any]:
  """The object on one line."""
  try:
    row = json.loads(line)
  except ValueError as error:  # Bad JSON, or bytes that are not UTF-8.
    raise core.DataError(
        f"{fname} line {number} is not JSON: {error}.") from error
  if not isinstance(row, dict):
    raise core.DataError(
        f"{fname} line {number} is a {type(row).__name__}; every line must be "
        'an object, such as {"image": "a.jpg", "label": 3}.')
  return row


def _to_array(values, key: str, fname: str, numbers: list[int]) -> np.ndarray:
  """Values of one key as an array; DataError names the line of a misfit."""
  kinds = {bool: "boolean", int: "number", float: "number", str: "string"}
  first = kinds.get(type(values[0]))
  for number, value in zip(numbers, values):
    kind = kinds.get(type(value))
    if kind is None:
      raise core.DataError(
          f"{fname} line {number}: {key!r} is {value!r}; only strings, numbers "
          "and booleans can be read.")
    if kind != first:
      raise core.DataError(
          f"{fname} line {number}: {key!r} is the {kind} {value!r}, but on "
          f"line {numbers[0]} it is the {first} {values[0]!r}.")
    if type(value) is int and not -2**63 <= value < 2**63:
      raise core.DataError(
          f"{fname} line {number}: {key!r} is {value}, too large for int64.")
  if first == "string":
    # Objects, because NumPy's fixed-width strings end at the last non-zero.
    return np.array([value.encode() for value in values], dtype=object)
  if any(isinstance(value, float) for value in values):
    return np.array(values, np.float32)
  return np.array(values)


def _to_paths(
    names: np.ndarray, key: str, fname: str, numbers: list[int]) -> np.ndarray:
  """Paths of the files called `names`; DataError if one is not there."""
  import tensorflow as tf
  if names.dtype != object:
    raise core.DataError(
        f"{fname} line {numbers[0]}: {key!r} must be the path of an image; it "
        "is a number.")
  # Every folder is listed once: on remote storage a look at every file would
  # take hours.
  listings = {}
  paths = [os.path.join(os.path.dirname(fname), name.decode())
           for name in names]
  for number, path in zip(numbers, paths):
    parent, base = os.path.split(path)
    if parent not in listings:
      try:
        listings[parent] = set(tf.io.gfile.listdir(parent or "."))
      except tf.errors.OpError:
        listings[parent] = set()
    if base not in listings[parent]:
      raise core.DataError(
          f"{fname} line {number}: {key!r} is {path}, which is not there. "
          f"Paths are relative to the folder of {fname}.")
  return np.array([path.encode() for path in paths], dtype=object)
