"""The source that reads images in folders, one folder for each class.

  root/class/*.jpg               a fixed random fifth of each class is "test"
  root/{train,test}/class/*.jpg  the folders are the splits; val, validation too

`scan` needs no TensorFlow, so that a config can look at the data.
"""

from collections.abc import Mapping
import os
import statistics
from typing import NamedTuple
import zlib

import numpy as np

from big_vision import config as config_lib
from big_vision.datasets import core
from big_vision.datasets import memory

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# Splits to evaluate on; the first that exists is used.
_HELD_OUT_NAMES = ("val", "validation", "test")


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
  class_names, splits = _list_images(path)
  held_out = next(name for name in _HELD_OUT_NAMES if name in splits)
  train = [fname for fname, _ in splits["train"]]
  size = _typical_size([os.path.join(path, fname) for fname in train])
  return Contents(class_names=class_names, splits=splits, image_size=size,
                  held_out=held_out)


def folder(path: str, split: str) -> core.Source:
  """Opens the images of one split of a folder.

  Examples have "image", string[] (the file's bytes), "label", int64[], and
  "fname", string[], the path relative to `path`.

  Args:
    path: Root of the data.
    split: "train" or "test", or the name of a folder of a split.

  Raises:
    ConfigError: `path` is not a folder that can be listed, or there is no such
      split.
    DataError: There are no classes, a class has no images (or only one where a
      fifth must be held out), or the splits differ in their classes.
  """
  class_names, splits = _list_images(path)
  if split not in splits:
    raise config_lib.ConfigError(
        f"{path} has no split {split!r}{config_lib.nearest(split, splits)}; "
        f"it has {sorted(splits)}.")
  return _FolderSource(path, splits[split], class_names)


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
    return os.path.join(self._path, self._files[index][0])


def _list_images(
    path: str) -> tuple[list[str], dict[str, list[tuple[str, int]]]]:
  """Returns the class names, and {split: [(fname, label), ...]}."""
  folders, files = _list(path)
  if not folders:
    found = f"{len(files)} files ({files[0]}, ...)" if files else "nothing"
    raise core.DataError(
        f"{path} has no class folders, but {found}. Images are expected as "
        "CLASS/NAME.jpg, or as train/CLASS/NAME.jpg and test/CLASS/NAME.jpg.")
  # A class may also be called "train"; its folder has images, not folders.
  split_folders = [
      name for name in ("train", *_HELD_OUT_NAMES)
      if name in folders and _list(os.path.join(path, name))[0]]
  if "train" not in split_folders:
    return _hold_out(path, _list_classes(path, folders))
  if split_folders == ["train"]:
    folders = [os.path.join("train", name)
               for name in _list(os.path.join(path, "train"))[0]]
    return _hold_out(path, _list_classes(path, folders))

  splits = {}
  for split in split_folders:
    folders, _ = _list(os.path.join(path, split))
    splits[split] = _list_classes(
        path, [os.path.join(split, name) for name in folders])
  class_names = sorted(splits["train"])
  for split, images in splits.items():
    missing = sorted(set(class_names) - set(images))
    unknown = sorted(set(images) - set(class_names))
    if missing or unknown:
      raise core.DataError(
          f"{os.path.join(path, split)} and {os.path.join(path, 'train')} must "
          f"have the same classes; it lacks {missing}, and has {unknown} that "
          "train lacks.")
  return class_names, {
      split: [(fname, label) for label, name in enumerate(class_names)
              for fname in images[name]]
      for split, images in splits.items()}


def _hold_out(
    path: str, images: Mapping[str, list[str]]
) -> tuple[list[str], dict[str, list[tuple[str, int]]]]:
  """Holds out a fixed random fifth of each class, at least one image."""
  class_names = sorted(images)
  splits = {"train": [], "test": []}
  for label, name in enumerate(class_names):
    fnames = images[name]
    if len(fnames) < 2:
      raise core.DataError(
          f"Class {name!r} in {path} has a single image; at least 2 are "
          "needed, because a fifth is held out for testing.")
    # Seeded by the class name, so that other classes do not change the choice.
    # NumPy guarantees RandomState's sequence (NEP 19).
    rng = np.random.RandomState(zlib.crc32(os.fsencode(name)))
    test = set(rng.permutation(len(fnames))[:max(1, len(fnames) // 5)])
    for i, fname in enumerate(fnames):
      splits["test" if i in test else "train"].append((fname, label))
  return class_names, splits


def _list_classes(path: str, folders: list[str]) -> dict[str, list[str]]:
  """Returns {class name: sorted fnames relative to `path`}."""
  images = {}
  for name in folders:
    _, files = _list(os.path.join(path, name))
    fnames = [os.path.join(name, file) for file in files
              if file.lower().endswith(_IMAGE_SUFFIXES)]
    if not fnames:
      found = f"{len(files)} other files ({files[0]}, ...)" if files else (
          "no files")
      raise core.DataError(
          f"{os.path.join(path, name)} has no images ({found}). Every folder "
          f"is a class and holds files ending in {', '.join(_IMAGE_SUFFIXES)}.")
    images[os.path.basename(name)] = fnames
  return images


def _list(path: str) -> tuple[list[str], list[str]]:
  """Returns the sorted names of folders and files; leaves out hidden ones."""
  folders, files = [], []
  try:
    with os.scandir(path) as entries:
      for entry in entries:
        if not entry.name.startswith("."):
          (folders if entry.is_dir() else files).append(entry.name)
  except OSError as error:
    raise config_lib.ConfigError(
        f"{path} is not a folder that can be listed: {error.strerror}.") from (
            error)
  return sorted(folders), sorted(files)


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
