"""Lists the pictures below a folder, and says which files are left out."""

from collections.abc import Iterator
import os
from typing import NamedTuple

from big_vision import config as config_lib
from big_vision.datasets import data_files

# The formats that the op "decode" reads.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


class Folder(NamedTuple):
  """A folder and everything below it.

  Attributes:
    pictures: Sorted paths of the pictures that lie in the folder itself.
    folders: {name: Folder} of the folders in it, sorted by name.
    skipped: {reason: paths} of the other entries of the folder itself.
  """
  pictures: list[str]
  folders: dict[str, "Folder"]
  skipped: dict[str, list[str]]

  def walk(self) -> Iterator["Folder"]:
    """Yields this folder and all that are below it."""
    yield self
    for folder in self.folders.values():
      yield from folder.walk()

  def all_pictures(self) -> list[str]:
    """Returns the sorted paths of all pictures, nested ones included."""
    return sorted(path for folder in self.walk() for path in folder.pictures)

  def all_skipped(self) -> dict[str, list[str]]:
    """Returns {reason: paths} of everything that is left out."""
    found = {}
    for folder in self.walk():
      for reason, paths in folder.skipped.items():
        found.setdefault(reason, []).extend(paths)
    return found


def read(root: str) -> Folder:
  """Lists everything below `root`; paths are relative to it.

  Raises:
    ConfigError: `root`, or a folder below it, is not a folder that can be
      listed.
  """
  return _read(root, "", ())


def _read(root, path, ancestors):
  """Lists the folder at `path`; `ancestors` are the inodes it lies in."""
  folders, files, skipped = {}, [], {}
  full = os.path.join(root, path) if path else root
  try:
    status = os.stat(full)
    ancestors = (*ancestors, (status.st_dev, status.st_ino))
    with os.scandir(full) as entries:
      entries = sorted(entries, key=lambda entry: entry.name)
  except OSError as error:
    raise config_lib.ConfigError(
        f"{data_files.printable(full)} is not a folder that can be listed: "
        f"{error.strerror}.") from error
  for entry in entries:
    name = os.path.join(path, entry.name)
    reason = _reason_to_skip(entry, ancestors)
    if reason:
      skipped.setdefault(reason, []).append(name)
    elif entry.is_dir():
      folders[entry.name] = _read(root, name, ancestors)
    else:
      files.append(name)
  return Folder(pictures=files, folders=folders, skipped=skipped)


def _reason_to_skip(entry, ancestors) -> str | None:
  """Returns why an entry of a folder is not used; None if it is."""
  if entry.name.startswith("."):
    return "hidden"
  if entry.is_dir():
    status = entry.stat()
    if (status.st_dev, status.st_ino) in ancestors:
      return "link to a folder around it"
    return None
  if not entry.is_file():
    return "not a regular file"
  suffix = os.path.splitext(entry.name)[1].lower()
  if suffix not in SUFFIXES:
    return suffix or "without a suffix"
  if entry.stat().st_size > data_files.MAX_PICTURE_BYTES:
    return f"larger than {data_files.MAX_PICTURE_BYTES >> 20} MiB"
  return None
