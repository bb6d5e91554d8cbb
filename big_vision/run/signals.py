"""Notices signals even while the main thread runs C code.

Python calls its signal handlers only between two steps of its interpreter, so
never while the main thread is stuck in C. But it writes the number of each
signal that has a handler to a socket, which another thread can read.
"""

import select
import signal
import socket
import threading


class Listener:
  """Receives the numbers of signals; made and closed by the main thread.

  In any other thread, where Python does not allow it, it receives nothing.
  """

  def __init__(self):
    self._ends = socket.socketpair()
    for end in self._ends:
      end.setblocking(False)
    self._hears = threading.current_thread() is threading.main_thread()
    if self._hears:
      signal.set_wakeup_fd(self._ends[1].fileno(), warn_on_full_buffer=False)

  def wait(self, seconds: float) -> bytes:
    """Waits for a signal; returns the numbers of those that came, if any."""
    ready, _, _ = select.select([self._ends[0]], [], [], seconds)
    return self._ends[0].recv(64) if ready else b""

  def close(self):
    """Stops listening."""
    if self._hears:
      signal.set_wakeup_fd(-1)
    for end in self._ends:
      end.close()
