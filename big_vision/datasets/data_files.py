"""Opens and lists files of data: regular files of bounded size only.

Reading a pipe, a device or a link to one may never end, and a huge file or one
that unfolds to a huge array fills the memory. All of these end with a DataError
that names the file.
"""

from collections.abc import Iterator, Sequence
import contextlib
import os
import stat

from big_vision import files
from big_vision.datasets import core

# A file or an array in memory may take at most this share of the machine's.
_SHARE_OF_MEMORY = 0.5
MAX_PICTURE_BYTES = 2 ** 28
# Zeros are compressed to a thousandth. Arrays of real data stay far below this
# ratio; small ones are harmless.
_MAX_RATIO, _HARMLESS_BYTES = 500, 2 ** 28


def memory_limit() -> int:
  """Returns the number of bytes that data in memory may take."""
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return int(_SHARE_OF_MEMORY * memory)


@contextlib.contextmanager
def open_file(path: str, max_bytes: int | None = None) -> Iterator:
  """Opens a file to read bytes.

  Args:
    path: Path of the file, local or in an object store.
    max_bytes: Largest size that is accepted; None for `memory_limit()`.

  Yields:
    The open file.

  Raises:
    DataError: The file is not a regular file, or too large.
    OSError: The file cannot be opened.
  """
  if files.is_remote(path):
    import tensorflow as tf
    _check_size(path, tf.io.gfile.stat(path).length, max_bytes)
    with tf.io.gfile.GFile(path, "rb") as file:
      yield file
    return
  try:
    file = files.open_regular(path)
  except files.NotRegularError as error:
    raise core.DataError(
        f"{printable(path)} is {error.strerror}.") from error
  with file:
    _check_size(path, os.fstat(file.fileno()).st_size, max_bytes)
    yield file


def find_unreadable(
    paths: Sequence[str], max_bytes: int | None = MAX_PICTURE_BYTES
) -> tuple[int, str] | None:
  """Finds the first path that is not a regular file of bounded size.

  Args:
    paths: Paths of files, local or in an object store.
    max_bytes: Largest size that is accepted, if there is a limit. Sizes in an
      object store are not checked.

  Returns:
    The path's position and a sentence's end that says why, such as "does not
    exist"; None if all paths can be read.
  """
  listings = {}
  for position, path in enumerate(paths):
    if files.is_remote(path):
      # Each folder is listed once, because asking for each file takes hours.
      parent, name = os.path.split(path)
      if parent not in listings:
        listings[parent] = _list_remote(parent)
      problem = None if name in listings[parent] else "does not exist"
    else:
      problem = _problem_of_local(path, max_bytes)
    if problem:
      return position, problem
  return None


def _list_remote(path):
  import tensorflow as tf
  try:
    return set(tf.io.gfile.listdir(path))
  except tf.errors.OpError:
    return set()


def _problem_of_local(path, max_bytes):
  try:
    status = os.stat(path)
  except (OSError, ValueError):  # A ValueError if the path has a zero byte.
    return "does not exist"
  if not stat.S_ISREG(status.st_mode):
    return f"is a {files.kind(status.st_mode)}"
  if max_bytes is not None and status.st_size > max_bytes:
    return f"is larger than {max_bytes >> 20} MiB"
  return None


def check_unfolded_size(path: str, num_bytes: int, stored_bytes: int):
  """Raises DataError if compressed data would unfold to too much.

  Args:
    path: Path of the file and name of the part, for messages.
    num_bytes: Size after decompression.
    stored_bytes: Size of the stored data.
  """
  _check_size(path, num_bytes, None)
  if num_bytes > max(_HARMLESS_BYTES, _MAX_RATIO * stored_bytes):
    raise core.DataError(
        f"{printable(path)} would unfold from {stored_bytes:,} bytes to "
        f"{num_bytes:,}; more than {_MAX_RATIO} times as much is refused as a "
        "decompression bomb. Store it without compression.")


def printable(path: str) -> str:
  """Returns a path that any console can show, even if it is not UTF-8."""
  return os.fsencode(path).decode("utf-8", "backslashreplace")


def _check_size(path, num_bytes, max_bytes):
  limit = memory_limit() if max_bytes is None else max_bytes
  if num_bytes > limit:
    raise core.DataError(
        f"{printable(path)} has {num_bytes:,} bytes; at most {limit:,} are "
        "read" + (", half of this machine's memory." if max_bytes is None
                  else "."))
