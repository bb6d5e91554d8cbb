"""Fails a test that hangs, for example in reading a pipe."""

from collections.abc import Iterator
import contextlib
import signal


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
  """Raises TimeoutError if the body takes longer than that."""
  def fail(signal_number, frame):
    raise TimeoutError(f"This took longer than {seconds} s.")

  previous = signal.signal(signal.SIGALRM, fail)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)
