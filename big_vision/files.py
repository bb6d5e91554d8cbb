"""Writes files that survive a power cut, and opens regular files only.

A local file system may put names, contents and directories on the disk in any
order, and seconds late: after a power cut, a file that was renamed into place
can be empty, and a file that was removed afterwards is gone. A file must
therefore be synced before any file that relies on it is written. Object stores
(gs://) replace whole files atomically and durably, and need none of this.
"""

import errno
import os
import stat
import time
from typing import BinaryIO

from etils import epath

# Numbers of errors of a disk that is full or broken, or of a quota or a limit
# that is used up.
DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS})

# Object stores take whole files only: a growing file is sent again every time.
_UPLOAD_EVERY_S = 60


def is_remote(path: str | os.PathLike) -> bool:
  """Returns whether `path` is in an object store, such as gs://bucket/a."""
  return "://" in os.fspath(path)


def as_path(path: str | os.PathLike) -> epath.Path:
  """Returns an absolute path, local or in an object store."""
  path = os.fspath(path)
  return epath.Path(path if is_remote(path) else
                    os.path.abspath(os.path.expanduser(path)))


def is_below(path: str | os.PathLike, directory: str | os.PathLike) -> bool:
  """Returns whether a file is inside a directory, after following links."""
  def resolve(path):
    path = os.fspath(as_path(path))
    return os.path.normpath(path) if is_remote(path) else os.path.realpath(path)
  directory = resolve(directory)
  return resolve(path).startswith(os.path.join(directory, ""))


class NotRegularError(OSError):
  """A path leads to a pipe, a device or a folder instead of a file."""


def open_regular(path: str | os.PathLike) -> BinaryIO:
  """Opens a file to read bytes, unless reading it might never end.

  Args:
    path: Path of the file, local or in an object store.

  Raises:
    NotRegularError: The path leads to a pipe, a device or a folder.
    OSError: The file cannot be opened.
  """
  if is_remote(path):
    return as_path(path).open("rb")
  # Without O_NONBLOCK, opening a pipe waits for a process that writes to it.
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
  mode = os.fstat(descriptor).st_mode
  if not stat.S_ISREG(mode):
    os.close(descriptor)
    raise NotRegularError(
        errno.EINVAL, f"not a regular file but a {kind(mode)}",
        os.fspath(path))
  return open(descriptor, "rb")


def kind(mode: int) -> str:
  """Returns a word for what is not a regular file, by its `st_mode`."""
  kinds = [(stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"),
           (stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "device"),
           (stat.S_ISBLK, "device")]
  return next((word for test, word in kinds if test(mode)), "special file")


def write_text(path: str | os.PathLike, text: str):
  """Writes a text file in UTF-8, as durably as `write_bytes`."""
  write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike, content: bytes):
  """Replaces a file; the new one is on the disk when this function returns.

  A kill or a power cut leaves either the old file or the new one.

  Args:
    path: Path of the file; its directory exists.
    content: Content of the file.
  """
  path = as_path(path)
  if is_remote(path):
    path.write_bytes(content)
    return
  target = os.path.realpath(path)  # Keep a link, and replace its target.
  if os.path.exists(target) and not os.path.isfile(target):
    with open(target, "wb") as file:  # A pipe or a device, such as /dev/stdout.
      file.write(content)
    return
  temporary = f"{target}.tmp"
  with open(temporary, "wb") as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, target)
  sync(os.path.dirname(target))


def make_directory(path: str | os.PathLike):
  """Makes a directory and its missing parents, and puts them on the disk."""
  path = as_path(path)
  if path.is_dir():
    return
  if path.parent != path:
    make_directory(path.parent)
  path.mkdir(exist_ok=True)
  sync(path.parent)


def sync(path: str | os.PathLike):
  """Puts a file, or the list of a directory's entries, on the disk."""
  if is_remote(path):
    return
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError as error:
    # Some network file systems cannot sync a directory and do not need to.
    if error.errno not in (errno.EINVAL, errno.ENOTSUP):
      raise
  finally:
    os.close(descriptor)


def sync_tree(directory: str | os.PathLike):
  """Puts all files below a directory, and its own name, on the disk."""
  if is_remote(directory):
    return
  for parent, _, names in os.walk(directory, topdown=False):
    for name in names:
      sync(os.path.join(parent, name))
    sync(parent)
  sync(as_path(directory).parent)


class GrowingFile:
  """A file that grows while a run goes on.

  In an object store, `flush` replaces the file at most once a minute, since it
  has to send all of it.

  Args:
    path: Path of the file; its directory exists.
    content: Beginning of the file, which replaces what it held before.
  """

  def __init__(self, path: str | os.PathLike, content: bytes = b""):
    self._path = as_path(path)
    write_bytes(self._path, content)
    self._file = self._content = None
    if is_remote(self._path):
      self._content = bytearray(content)
      self._next_upload = time.monotonic() + _UPLOAD_EVERY_S
    else:
      self._file = open(self._path, "ab")

  def write(self, content: bytes):
    """Appends to the file; others may not see it before the next `flush`."""
    (self._file.write if self._content is None else self._content.extend)(
        content)

  def flush(self):
    """Makes what was written visible to other processes."""
    if self._file is not None:
      self._file.flush()
    elif time.monotonic() >= self._next_upload:
      self.sync()

  def sync(self):
    """Puts what was written on the disk."""
    if self._file is not None:
      self._file.flush()
      os.fsync(self._file.fileno())
    else:
      write_bytes(self._path, bytes(self._content))
      self._next_upload = time.monotonic() + _UPLOAD_EVERY_S

  def close(self):
    """Syncs and closes the file."""
    self.sync()
    if self._file is not None:
      self._file.close()
