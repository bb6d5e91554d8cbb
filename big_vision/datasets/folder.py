"""The source that reads pictures in folders, one folder for each class.

  root/class/*.jpg               a fixed random fifth of each class is "test"
  root/{train,test}/class/*.jpg  the folders are the splits

A class may have folders in it. Folders of splits go by their usual names, such
as train, training, val, valid, dev and test. `scan` needs no TensorFlow, so
that a config can look at the data.
"""

import functools
import os
import statistics
from typing import NamedTuple

import jax

from big_vision import config as config_lib
from big_vision.datasets import core
from big_vision.datasets import data_files
from big_vision.datasets import folder_splits
from big_vision.datasets import folder_tree
from big_vision.datasets import memory

# Number of classes that are listed.
_NUM_SHOWN = 20


class Contents(NamedTuple):
  """The classes, splits and images of a folder.

  Attributes:
    class_names: Sorted names of the class folders; a label is a position in it.
    splits: {split: [(path of the image relative to the root, label), ...]}.
    image_size: (h, w) in pixels, the medians over up to 50 training images.
    held_out: Name of the split to evaluate on.
  """

  class_names: list[str]
  splits: dict[str, list[tuple[str, int]]]
  image_size: tuple[int, int]
  held_out: str


def scan(path: str) -> Contents:
  """Lists the images in the folder `path`, and reads the sizes of some.

  Raises:
    ConfigError: `path` is not a folder that can be listed.
    DataError: There are no classes, a class has no images (or only one where a
      fifth must be held out), the splits differ in their classes, or no image
      can be read.
  """
  path = os.path.expanduser(path)
  splits = folder_splits.find(path, folder_tree.read(path))
  train = [fname for fname, _ in splits.images[splits.find("train")]]
  return Contents(
      class_names=[data_files.printable(name) for name in splits.class_names],
      splits=splits.images,
      image_size=_typical_size([os.path.join(path, fname) for fname in train]),
      held_out=splits.find("val") or splits.find("test"))


def folder(path: str, split: str) -> core.Source:
  """Opens the images of one split of a folder; prints what is not used.

  Examples have "image", string[] (the file's bytes), "label", int64[], and
  "fname", string[], the path relative to `path`.

  Args:
    path: Root of the data.
    split: "train", "val" or "test", or the name of a folder of a split.

  Raises:
    ConfigError: `path` is not a folder that can be listed, or there is no such
      split.
    DataError: There are no classes, a class has no images (or only one where a
      fifth must be held out), or the splits differ in their classes.
  """
  path = os.path.expanduser(path)
  root = folder_tree.read(path)
  splits = folder_splits.find(path, root)
  name = splits.find(str(split))
  if name is None:
    raise config_lib.ConfigError(
        f"{path} has no split {split!r}"
        f"{config_lib.nearest(split, splits.images)}; it has "
        f"{sorted(splits.images)}.")
  if jax.process_index() == 0:
    _print_once(_describe(path, root, splits))
  return _FolderSource(
      path, splits.images[name],
      [data_files.printable(name) for name in splits.class_names])


class _FolderSource(core.Source):
  """Examples that are image files and their labels."""

  def __init__(
      self, path: str, files: list[tuple[str, int]], class_names: list[str]):
    import tensorflow as tf
    self._path = path
    self._files = files
    self.num_classes = len(class_names)
    self.class_names = class_names
    self._fnames = memory.on_cpu([os.fsencode(fname) for fname, _ in files])
    self._labels = memory.on_cpu([label for _, label in files], tf.int64)
    self._root = os.fsencode(os.path.join(path, ""))

  def __len__(self):
    return len(self._files)

  def read(self, index):
    import tensorflow as tf
    fname = tf.gather(self._fnames, index)
    return {"image": tf.io.read_file(self._root + fname),
            "label": tf.gather(self._labels, index), "fname": fname}

  def describe(self, index):
    return data_files.printable(os.path.join(self._path, self._files[index][0]))


def _describe(path, root, splits) -> str:
  """Returns lines about what a folder holds and what of it is not used."""
  numbers = ", ".join(f"{name} {len(images):,} images"
                      for name, images in splits.images.items())
  counts = [0] * len(splits.class_names)
  for images in splits.images.values():
    for _, label in images:
      counts[label] += 1
  classes = [f"{data_files.printable(name)} {count:,}"
             for name, count in zip(splits.class_names, counts)]
  more = [f"... {len(classes) - _NUM_SHOWN:,} more"] * (
      len(classes) > _NUM_SHOWN)
  lines = [f"{path}: {numbers}. {len(classes):,} classes: "
           f"{', '.join(classes[:_NUM_SHOWN] + more)}.", *splits.notes]
  skipped = folder_splits.describe_skipped(root.all_skipped())
  if skipped:
    lines.append(f"Files that are not used: {skipped}.")
  return "\n  ".join(lines)


@functools.cache
def _print_once(text: str):
  """Prints a text that several sources of one folder share."""
  print(text, flush=True)


def _typical_size(fnames: list[str]) -> tuple[int, int]:
  """Returns the median height and width of up to 50 images."""
  from PIL import Image
  heights, widths, failure = [], [], None
  for i in range(min(50, len(fnames))):
    fname = fnames[i * len(fnames) // min(50, len(fnames))]
    try:
      with Image.open(fname) as image:
        width, height = image.size
    except Exception as error:  # Pillow raises SyntaxError, struct.error, ...
      failure = f"{fname}: {error}"
      continue
    heights.append(height)
    widths.append(width)
  if not heights:
    raise core.DataError(f"No image could be read, for example {failure}.")
  return statistics.median_low(heights), statistics.median_low(widths)
