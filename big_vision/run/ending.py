"""Ends this process whatever its threads do, and tells the others why."""

from collections.abc import Callable, Collection
import contextlib
import os
import sys
import threading
import time
import traceback
from typing import NoReturn

from big_vision.run import peers

# Seconds for printing and for telling the other processes, and seconds that
# process 0 waits for them to end.
_PRINT_S, _TELL_S, _OTHERS_S = 5.0, 2.0, 10.0

_ending = threading.Lock()


def end(exit_code: int, message: str, details: str = "", *,
        silent: Collection[int] = (), with_stacks: bool = False,
        is_said: bool = False) -> NoReturn:
  """Ends this process; the other processes are told why.

  Args:
    exit_code: Exit code.
    message: Reason, as a sentence.
    details: Further lines to print.
    silent: Processes that do not answer, so this one does not wait for them.
    with_stacks: Whether to print where every thread is.
    is_said: Whether the message has already been printed.
  """
  if not _ending.acquire(blocking=False):  # pylint: disable=consider-using-with
    time.sleep(3600)  # Another thread is ending the process.
  lines = [] if is_said else [f"Watchdog: {message}", details]
  if with_stacks:
    lines.append(_stacks())
  # Printing blocks forever if nobody reads the pipe that it goes to.
  _try(lambda: _print("\n".join(filter(None, lines))), _PRINT_S)
  tell(exit_code, message)
  _try(lambda: _wait_for_others(silent), _OTHERS_S)
  os._exit(exit_code)  # pylint: disable=protected-access


def tell(exit_code: int, message: str):
  """Tells the other processes that this one ends; gives up after a while."""
  _try(lambda: peers.publish_end(exit_code, message), _TELL_S)


def _stacks() -> str:
  """Returns where every thread is.

  `faulthandler` would hold Python's lock for as long as nobody reads what it
  prints.
  """
  names = {thread.ident: thread.name for thread in threading.enumerate()}
  lines = []
  frames = sys._current_frames()  # pylint: disable=protected-access
  for ident, top in frames.items():
    lines.append(
        f"Thread {names.get(ident, ident)} (most recent call first):")
    for frame, number in traceback.walk_stack(top):
      code = frame.f_code
      lines.append(
          f'  File "{code.co_filename}", line {number} in {code.co_name}')
  return "\n".join(lines)


def _print(text: str):
  # The main thread may hold the lock of whatever replaced sys.stderr.
  print(text, file=sys.__stderr__, flush=True)
  sys.stdout.flush()


def _wait_for_others(silent: Collection[int]):
  """Keeps process 0, which runs the service, until the others have ended."""
  index, count = peers.this_process()
  if index > 0 or count == 1:
    return
  waits_for = set(range(count)) - set(silent)
  until = time.monotonic() + _OTHERS_S
  while time.monotonic() < until and waits_for - peers.find_ended():
    time.sleep(0.1)


def _try(fn: Callable[[], None], seconds: float):
  """Runs `fn` for at most `seconds` seconds, and ignores its errors."""
  def quietly():
    with contextlib.suppress(Exception):
      fn()
  thread = threading.Thread(target=quietly, daemon=True)
  thread.start()
  thread.join(timeout=seconds)
