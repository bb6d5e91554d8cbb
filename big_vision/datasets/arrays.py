"""Sources that hold arrays in memory: data of packages, and .npz files."""

from collections.abc import Iterable, Mapping, Sequence
import os
import zipfile

import numpy as np

from big_vision import config as config_lib
from big_vision import ranges
from big_vision.datasets import core
from big_vision.datasets import data_files
from big_vision.datasets import memory
from big_vision.datasets import slicing


def digits(split: str) -> core.Source:
  """Opens the 1,797 handwritten digits that come with scikit-learn.

  Examples have "image", uint8[8, 8, 1] in 0..16 (16 is white), and "label",
  int64[] in 0..9.

  Args:
    split: "test" for a fixed random fifth (359 images), "train" for the other
      1,438.

  Raises:
    ConfigError: There is no such split.

  Source: https://archive.ics.uci.edu/dataset/80, its test part.
  """
  from sklearn import datasets
  data = datasets.load_digits()
  # NumPy guarantees RandomState's sequence (NEP 19): the split never changes.
  order = np.random.RandomState(0).permutation(len(data.target))
  num_test = len(order) // 5
  rows = {"test": order[:num_test], "train": order[num_test:]}
  if split not in rows:
    raise config_lib.ConfigError(
        f"bv:digits has no split {split!r}{config_lib.nearest(split, rows)}; "
        f"it has {sorted(rows)}.")
  rows = np.sort(rows[split])
  arrays = {"image": data.images[rows].astype(np.uint8)[..., None],
            "label": data.target[rows].astype(np.int64)}
  return memory.ArraySource(
      arrays, lambda index: f"scikit-learn's digits record {rows[index]}",
      num_classes=10, class_names=[str(name) for name in data.target_names])


# Photographs that come with scikit-image.
_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def photographs(split: str, size: ranges.Count = 64) -> core.Source:
  """Opens square pieces of the colour photographs that two packages ship.

  "china" and "flower" of scikit-learn and "astronaut", "chelsea", "coffee" and
  "rocket" of scikit-image are cut without overlap, starting at the top left.
  Remainders at the right and the bottom are left out. Examples have "image",
  uint8[size, size, 3].

  Args:
    split: "test" for a fixed random fifth of the pieces, "train" for the
      others. Both have pieces of the same photographs.
    size: Length of a side in pixels.

  Raises:
    ConfigError: There is no such split or no piece of this size, or
      scikit-image is not installed.
  """
  from sklearn import datasets
  try:
    from skimage import data
  except ImportError as error:
    raise config_lib.ConfigError(
        "bv:photographs needs scikit-image: pip install scikit-image.") from (
            error)
  images = [*datasets.load_sample_images().images,
            *(getattr(data, name)() for name in _PHOTOGRAPHS)]
  pieces = [
      image[top:top + size, left:left + size]
      for image in images if size > 0
      for top in range(0, image.shape[0] - size + 1, size)
      for left in range(0, image.shape[1] - size + 1, size)]
  order = np.random.RandomState(0).permutation(len(pieces))
  num_test = len(order) // 5
  rows = {"test": order[:num_test], "train": order[num_test:]}
  if split not in rows or not num_test:
    raise config_lib.ConfigError(
        f"bv:photographs(split={split!r}, size={size}): there are "
        f"{len(pieces)} pieces of that size, in the splits {sorted(rows)}.")
  rows = np.sort(rows[split])
  return memory.ArraySource(
      {"image": np.stack([pieces[row] for row in rows])},
      lambda index: f"piece {rows[index]} of the photographs")


def npz(
    fname: str, keys: Sequence[str] | Mapping[str, str] | None = None,
    start: int | float | None = None, stop: int | float | None = None,
    num_classes: ranges.Count | None = None) -> core.Source:
  """Opens arrays of equal length in an .npz file; example i is their rows i.

  Args:
    fname: Path of the file.
    keys: Arrays to use, as a list of their names or as {feature: name}
      ({"image": "x_train", "label": "y_train"}); all of them by default.
    start: First example; see `slicing.slice_bounds`.
    stop: Example to stop before; see `slicing.slice_bounds`.
    num_classes: Number of values that "label" takes, which the file cannot
      tell.

  Raises:
    ConfigError: There is no such file or array, or the part is empty.
    DataError: The file is damaged, would unfold to too much, or holds pickled
      objects, which could run code and are never loaded; or its arrays differ
      in length.
  """
  import tensorflow as tf
  fname = os.path.expanduser(fname)
  if not tf.io.gfile.exists(fname):
    raise config_lib.ConfigError(f"bv:npz: there is no file {fname!r}.")
  try:
    with data_files.open_file(fname) as file:
      if file.read(6) == b"\x93NUMPY":
        raise core.DataError(
            f"{fname} holds a single array; bv:npz reads .npz files, which "
            "np.savez writes.")
      file.seek(0)
      stored = np.load(file, allow_pickle=False)
      if keys is None:
        keys = stored.files
      names = keys if isinstance(keys, Mapping) else {key: key for key in keys}
      if not names:
        raise config_lib.ConfigError(
            f"{fname}: keys={keys!r} selects nothing; it has "
            f"{sorted(stored.files)}.")
      arrays = {}
      _check_sizes(stored, names.values(), fname)
      for feature, name in names.items():
        if name not in stored.files:
          raise config_lib.ConfigError(
              f"{fname} has no array {name!r}"
              f"{config_lib.nearest(name, stored.files)}; it has "
              f"{sorted(stored.files)}.")
        arrays[feature] = _load_array(stored, name, fname)
  except (OSError, EOFError, ValueError, zipfile.BadZipFile,
          tf.errors.OpError) as error:
    if isinstance(error, config_lib.ConfigError):
      raise
    raise core.DataError(f"{fname} is not a readable .npz: {error}") from error
  lengths = {feature: len(array) for feature, array in arrays.items()}
  if len(set(lengths.values())) != 1:
    raise core.DataError(
        f"{fname}: arrays of equal length are needed; their lengths are "
        f"{lengths}. Choose the arrays to use with `keys`.")
  first, last = slicing.slice_bounds(
      start, stop, next(iter(lengths.values())), fname)
  return memory.ArraySource(
      {feature: array[first:last] for feature, array in arrays.items()},
      lambda index: f"{fname} record {first + index}", num_classes=num_classes)


def _check_sizes(stored, names: Iterable[str], fname: str):
  """Raises DataError if arrays of an open .npz are too large for memory."""
  parts = {part.filename.removesuffix(".npy"): part
           for part in stored.zip.infolist()}
  parts = [parts[name] for name in set(names) if name in parts]
  data_files.check_unfolded_size(
      fname, sum(part.file_size for part in parts),
      sum(part.compress_size for part in parts))


def _load_array(stored, name: str, fname: str) -> np.ndarray:
  """Reads an array of an open .npz; raises DataError unless it has rows."""
  try:
    array = stored[name]
  except Exception as error:  # Damage shows as zlib.error, struct.error, ...
    raise core.DataError(
        f"{fname}: array {name!r} cannot be read: {error}") from error
  if array.ndim == 0:
    raise core.DataError(
        f"{fname}: array {name!r} is a scalar; examples are the rows of "
        "arrays. Choose the arrays to use with `keys`.")
  return array
