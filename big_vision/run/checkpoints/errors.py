"""Errors of checkpoints, and which of them mean that the data is damaged."""

import contextlib
import re

# These say nothing about the stored bytes: memory, permissions, network. A
# checkpoint must not be set aside because of them.
_TRANSIENT_ERRORS = (MemoryError, PermissionError, TimeoutError, ImportError)
# XLA and tensorstore raise plain ValueErrors that begin with a status code.
_TRANSIENT_CODES = re.compile(
    "RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|"
    "UNAUTHENTICATED|CANCELLED|ABORTED")


class StorageError(RuntimeError):
  """A checkpoint could not be written or read; names its path and the cause."""


class CheckpointDamaged(StorageError):
  """The stored data does not match its digest, or cannot be decoded."""


class CheckpointMismatch(StorageError):
  """The checkpoint is intact but has other leaves than the run expects."""


@contextlib.contextmanager
def reading(failure: str):
  """Turns any error while reading into CheckpointDamaged or StorageError.

  Args:
    failure: Beginning of the error message, such as "x cannot be read".

  Raises:
    CheckpointDamaged: The error points to the stored data.
    StorageError: The error may pass, so reading may work later.
  """
  try:
    yield
  except Exception as error:
    if isinstance(error, _TRANSIENT_ERRORS) or (
        _TRANSIENT_CODES.match(str(error))):
      raise StorageError(
          f"{failure} at the moment: {summarize(error)}. The checkpoint may be "
          "intact; it stays where it is.") from error
    raise CheckpointDamaged(f"{failure}: {summarize(error)}.") from error


def summarize(error: Exception) -> str:
  """Shortens an error message, which may be pages long, to 600 characters."""
  text = str(error).split("[tensorstore_spec")[0].strip()
  if len(text) > 600:  # Causes come last.
    text = f"{text[:300]} ... {text[-300:]}"
  return f"{type(error).__name__}: {text}"
