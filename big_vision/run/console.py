"""Prints messages for the person who watches a run, and never fails."""

from collections.abc import Iterator
import contextlib
import io
import os
import re
import sys
import tempfile

from absl import logging
import jax


# Beginnings of lines that TensorFlow and XLA log: notes and warnings.
_NATIVE_LOG = re.compile(
    rb"[IW]\d{4} |WARNING: All log messages before|To enable the following")


def say(message: str):
  """Prints `message` on the first process only, so that lines appear once."""
  if jax.process_index() == 0:
    print(message, flush=True)


class _Stream(io.FileIO):
  """Drops what cannot be written, because a terminal or a reader is gone."""

  def write(self, data) -> int:
    try:
      super().write(data)
    except OSError:
      pass
    return len(data)


def protect():
  """Keeps a program alive whatever happens to its standard streams.

  Printing then raises no errors, even if the terminal or a pipe's reader is
  gone, the disk is full, or the encoding lacks a character.
  """
  # A file that is opened later must not get the number of a closed stream, or
  # what libraries print would be written into it.
  while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
    pass
  os.close(descriptor)
  for number, name in (1, "stdout"), (2, "stderr"):
    stream = getattr(sys, name)
    setattr(sys, name, io.TextIOWrapper(
        io.BufferedWriter(_Stream(number, "w", closefd=False)),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace", line_buffering=True))


def quiet_libraries():
  """Keeps libraries from printing every step they take.

  Call it before TensorFlow and the devices are used.
  """
  logging.set_verbosity(logging.WARNING)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  show = sys.excepthook

  def hook(kind, error, trace):
    # After one array of a checkpoint could not be read, tensorstore prints
    # this for each of the others, with a traceback.
    if kind is not RuntimeError or str(error) != "Event loop is closed":
      show(kind, error, trace)
  sys.excepthook = hook


@contextlib.contextmanager
def dropping_native_logs() -> Iterator[None]:
  """Drops what C++ libraries log while they are loaded; prints all else.

  TensorFlow's first messages have no switch.
  """
  sys.stderr.flush()
  stderr = os.dup(2)
  with tempfile.TemporaryFile() as file:
    os.dup2(file.fileno(), 2)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(stderr, 2)
      os.close(stderr)
      file.seek(0)
      for line in file:
        if not _NATIVE_LOG.match(line):
          print(line.decode(errors="replace"), end="", file=sys.stderr)
