"""The source that reads JSONL files: one flat JSON object on every line."""

from collections.abc import Sequence
import json
import os
from typing import Any

import numpy as np

from big_vision import config as config_lib
from big_vision import ranges
from big_vision.datasets import core
from big_vision.datasets import data_files
from big_vision.datasets import memory
from big_vision.datasets import slicing


def jsonl(
    fname: str, image_keys: Sequence[str] = ("image",),
    start: int | float | None = None, stop: int | float | None = None,
    num_classes: ranges.Count | None = None) -> core.Source:
  """Opens the examples of a JSONL file.

  All lines must have the same keys, and all values of a key the same type.
  Strings become string[], booleans bool[], and numbers int64[], or float32[] if
  any of them has a decimal point. Empty lines are ignored.

  Args:
    fname: Path of the file.
    image_keys: Keys whose values are paths of files, relative to the folder of
      `fname`. Examples have the contents of these files in place of the paths,
      string[].
    start: First example; see `slicing.slice_bounds`.
    stop: Example to stop before; see `slicing.slice_bounds`.
    num_classes: Number of values that "label" takes, which the file cannot
      tell.

  Raises:
    ConfigError: There is no such file or image key, or the part is empty.
    DataError: A line is not a flat JSON object, differs from the first line in
      its keys or types, or names a file that does not exist or is not regular.
  """
  import tensorflow as tf
  fname = os.path.expanduser(fname)
  if not tf.io.gfile.exists(fname):
    raise config_lib.ConfigError(f"bv:jsonl: there is no file {fname!r}.")
  with data_files.open_file(fname) as file:
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
          "paths of images, or to () if there are none.")
  numbers = [number for number, _ in rows]
  columns = {
      key: _to_array([row[key] for _, row in rows], key, fname, numbers)
      for key in keys}
  for key in image_keys:
    columns[key] = _to_paths(columns[key], key, fname, numbers)
  return _JsonlSource(fname, numbers, columns, image_keys, num_classes)


class _JsonlSource(core.Source):
  """Examples whose values are in memory, some as paths of files to read."""

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
  """Parses the object on a line."""
  try:
    row = json.loads(line, object_pairs_hook=_to_dict,
                     parse_constant=_refuse_constant)
    if isinstance(row, dict):
      for text in (*row, *row.values()):
        if isinstance(text, str):
          text.encode()  # Escapes of half a character are not text.
  # Bad JSON; bytes or text that are not UTF-8; lists in lists in lists.
  except (ValueError, RecursionError) as error:
    raise core.DataError(
        f"{fname} line {number} is not JSON: {error}.") from error
  if not isinstance(row, dict):
    raise core.DataError(
        f"{fname} line {number} is a {type(row).__name__}; every line must be "
        'an object, such as {"image": "a.jpg", "label": 3}.')
  return row


def _to_dict(pairs):
  """Makes a dict of the pairs of an object; raises ValueError on repeats."""
  row = dict(pairs)
  if len(row) != len(pairs):
    raise ValueError(f"a key is repeated in {[key for key, _ in pairs]}")
  return row


def _refuse_constant(name: str):
  """Refuses NaN and Infinity, which Python would read."""
  raise ValueError(f"{name} is not a number")


def _to_array(values, key: str, fname: str, numbers: list[int]) -> np.ndarray:
  """Makes an array of a key's values; DataError names a line that differs."""
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
    # An array of objects: NumPy's fixed-width strings lose trailing zeros.
    return np.array([value.encode() for value in values], dtype=object)
  if any(isinstance(value, float) for value in values):
    for number, value in zip(numbers, values):
      if abs(value) > float(np.finfo(np.float32).max):
        raise core.DataError(
            f"{fname} line {number}: {key!r} is {value}, too large for "
            "float32.")
    return np.array(values, np.float32)
  return np.array(values)


def _to_paths(
    names: np.ndarray, key: str, fname: str, numbers: list[int]) -> np.ndarray:
  """Returns the files' paths; raises DataError if one cannot be read."""
  if names.dtype != object:
    raise core.DataError(
        f"{fname} line {numbers[0]}: {key!r} must be the path of an image, not "
        "a number.")
  paths = [os.path.join(os.path.dirname(fname), name.decode())
           for name in names]
  unreadable = data_files.find_unreadable(paths)
  if unreadable:
    position, problem = unreadable
    raise core.DataError(
        f"{fname} line {numbers[position]}: {key!r} is {paths[position]}, "
        f"which {problem}. Paths are relative to the folder of {fname}.")
  return np.array([path.encode() for path in paths], dtype=object)
