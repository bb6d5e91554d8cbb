"""Finds the classes and splits in a folder of pictures, or makes the splits."""

from collections.abc import Mapping
import os
import re
from typing import NamedTuple
import zlib

import numpy as np

from big_vision.datasets import core
from big_vision.datasets import data_files
from big_vision.datasets import folder_tree

# Names of folders by what they are for.
_ROLES = {"train": ("train", "training"),
          "val": ("val", "valid", "validation", "dev", "eval"),
          "test": ("test", "testing")}
# Words that may stand beside the name of a split, as in "test_set".
_FILLERS = ("set", "data", "split", "images", "img")
_LAYOUTS = ("Pictures are expected as CLASS/NAME.jpg, or as "
            "train/CLASS/NAME.jpg and test/CLASS/NAME.jpg.")


class Splits(NamedTuple):
  """The classes and splits of a folder.

  Attributes:
    class_names: Sorted names of the class folders; a label is a position in it.
    images: {split: [(path of the image relative to the root, label), ...]}.
    notes: Sentences about what was decided and which pictures are not used.
  """
  class_names: list[str]
  images: dict[str, list[tuple[str, int]]]
  notes: list[str]

  def find(self, split: str) -> str | None:
    """Returns the name of a split in `images`, such as "valid" for "val"."""
    if split in self.images:
      return split
    role = _role(split)
    return next((name for name in self.images
                 if role and _role(name) == role), None)


def find(path: str, root: folder_tree.Folder) -> Splits:
  """Finds the classes and splits of a folder.

  Args:
    path: Path of the folder, for messages.
    root: Everything that the folder holds.

  Raises:
    DataError: There are no classes, a class has no images (or only one where a
      fifth must be held out), or the splits cannot be told or differ in their
      classes.
  """
  if not root.folders:
    found = (f"{len(root.pictures)} pictures ({root.pictures[0]}, ...)"
             if root.pictures else describe_skipped(root.skipped) or "nothing")
    raise core.DataError(
        f"{path} has no class folders, but {found}. {_LAYOUTS}")
  roles = _find_roles(path, root)
  if roles:
    return _use_folders(path, root, roles)
  class_names, images, held_out = _hold_out(
      path, _list_classes(path, "", root))
  notes = [held_out, *_describe_stray("the root", root)]
  notes += [f"{name}/ is named like a split but used as a class."
            for name in class_names if _role(name)]
  return Splits(class_names=class_names, images=images, notes=notes)


def describe_skipped(skipped: Mapping[str, list[str]]) -> str:
  """Returns how many files there are of each kind, with an example of each."""
  return "; ".join(
      f"{len(paths):,} x {reason}, such as {data_files.printable(paths[0])}"
      for reason, paths in sorted(skipped.items()))


def _role(name: str) -> str | None:
  """Returns "train", "val" or "test" for the usual names of splits."""
  words = re.findall("[a-z]+", name.lower().removesuffix("set"))
  words = [word for word in words if word not in _FILLERS]
  return next((role for role, names in _ROLES.items()
               if len(words) == 1 and words[0] in names), None)


def _find_roles(path: str, root: folder_tree.Folder) -> dict[str, str]:
  """Returns {role: name} of the folders that are splits, if there are any.

  Raises:
    DataError: There are two folders for one role, or none for training.
  """
  roles = {}
  # A class may be called "train" too; its folder has pictures, not folders.
  for name, folder in root.folders.items():
    role = _role(name)
    if role and folder.folders:
      if role in roles:
        raise core.DataError(
            f"{path} has two folders for one split, {roles[role]!r} and "
            f"{name!r}; keep one of them.")
      roles[role] = name
  if roles and "train" not in roles:
    raise core.DataError(
        f"{path} has folders of splits, {sorted(roles.values())}, but none "
        f"with class folders that is called train. {_LAYOUTS}")
  return roles


def _use_folders(path, root, roles) -> Splits:
  """Lists the images of folders of splits; holds out some if there is one."""
  notes = []
  for name, folder in root.folders.items():
    if name in roles.values():
      notes += _describe_stray(f"{name}/", folder)
    else:
      why = ("has no class folders" if _role(name)
             else f"lies beside {roles['train']}/")
      notes.append(f"{name}/ {why}: its {len(folder.all_pictures()):,} "
                   "pictures are not used.")
  notes += _describe_stray("the root", root)
  found = {name: _list_classes(path, name, root.folders[name])
           for name in roles.values()}
  if len(found) == 1:
    class_names, images, held_out = _hold_out(path, found[roles["train"]])
    return Splits(class_names=class_names, images=images,
                  notes=[held_out, *notes])
  class_names = sorted(found[roles["train"]])
  for name, classes in found.items():
    missing = sorted(set(class_names) - set(classes))
    unknown = sorted(set(classes) - set(class_names))
    if missing or unknown:
      raise core.DataError(
          f"{os.path.join(path, name)} and "
          f"{os.path.join(path, roles['train'])} must have the same classes; "
          f"it lacks {missing}, and has {unknown} that train lacks.")
  images = {
      name: [(fname, label) for label, class_name in enumerate(class_names)
             for fname in classes[class_name]]
      for name, classes in found.items()}
  return Splits(class_names=class_names, images=images, notes=notes)


def _list_classes(path, split, folder) -> dict[str, list[str]]:
  """Returns {class name: paths of its images}; each class must have some."""
  classes = {}
  for name, class_folder in folder.folders.items():
    classes[name] = class_folder.all_pictures()
    if not classes[name]:
      found = describe_skipped(class_folder.all_skipped()) or "no files"
      raise core.DataError(
          f"{os.path.join(path, split, name)} has no images ({found}). Every "
          "folder is a class and holds files ending in "
          f"{', '.join(folder_tree.SUFFIXES)}.")
  return classes


def _describe_stray(where, folder) -> list[str]:
  """Returns a sentence about pictures outside class folders, if any."""
  if not folder.pictures:
    return []
  return [f"{len(folder.pictures):,} pictures in {where} "
          f"({data_files.printable(folder.pictures[0])}, ...) are not used, "
          "because they are in no class folder."]


def _hold_out(path: str, classes: Mapping[str, list[str]]):
  """Holds out a fixed random fifth of each class, at least one image.

  Returns:
    class_names: Sorted names of the classes.
    images: {split: [(fname, label), ...]} with the splits "train" and "test".
    note: Sentence that says so.
  """
  class_names = sorted(classes)
  splits = {"train": [], "test": []}
  for label, name in enumerate(class_names):
    fnames = classes[name]
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
  return class_names, splits, (
      "A random fifth of each class, always the same, is held out as \"test\".")
