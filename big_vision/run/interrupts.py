"""Stops a run when a signal asks for it, after a step and with its state saved.
"""

from collections.abc import Callable
import os
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from big_vision.run import exit_codes
from big_vision.run import peers


def stop_signals() -> list[signal.Signals]:
  """Returns the signals that ask a run to stop.

  A terminal that is closed sends SIGHUP, which a run under `nohup` ignores.
  """
  signals = [signal.SIGTERM, signal.SIGINT]
  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    signals.append(signal.SIGHUP)
  return signals


class Interrupted(Exception):
  """The run was asked to stop, saved its state and stopped.

  Attributes:
    exit_code: Exit code of the process.
  """

  def __init__(self, step: int, exit_code: int):
    super().__init__(
        f"Stopped on request after step {step}; the state is saved. The same "
        "command continues the run.")
    self.exit_code = exit_code


class _Abandoned(BaseException):
  """Leaves `Interrupts.call_unless_stopped`.

  A BaseException, so that no `except Exception` on the way catches it.
  """


class Interrupts:
  """Remembers signals to stop, which the loop asks for after every step.

  With several processes, jax's coordination service makes all of them stop
  after the same step. A second signal ends a single process at once.
  """

  def __init__(self):
    self._signal = None
    self._exit_code = None
    self._may_abandon = False
    self._several = jax.process_count() > 1
    for number in stop_signals():
      if not self._several:
        signal.signal(number, self._remember)
      elif number != signal.SIGTERM:
        # jax listens for SIGTERM itself, and tells the other processes.
        signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))

  def _remember(self, number, frame):
    del frame
    self._signal = number
    signal.signal(number, signal.SIG_DFL)
    if self._may_abandon:
      raise _Abandoned

  def exit_code(self, step: int) -> int | None:
    """Returns the exit code if the run must stop after `step`, else None.

    All processes of a run get the same answer.
    """
    if self._several and self._exit_code is None:
      # Must be called for every step: jax chooses a step at which to stop, and
      # orbax asks the same service about steps.
      if multihost_utils.reached_preemption_sync_point(step):
        self._exit_code = exit_codes.PREEMPTED
    elif not self._several:
      self._exit_code = {
          None: None, signal.SIGTERM: exit_codes.PREEMPTED,
          signal.SIGHUP: exit_codes.PREEMPTED,
          signal.SIGINT: exit_codes.INTERRUPTED}[self._signal]
    return self._exit_code

  def call_unless_stopped(self, fn: Callable[[], Any]) -> Any:
    """Returns what `fn` returns, or None if the run is asked to stop.

    A single process abandons the call at once, and does not begin it if the
    request came before; several processes, which must all do the same, abandon
    it at `check`.
    """
    try:
      self._may_abandon = not self._several
      if self._signal is not None:
        return None
      return fn()
    except _Abandoned:
      return None
    finally:
      self._may_abandon = False

  def check(self, step: int):
    """Leaves `call_unless_stopped` if the run must stop after `step`.

    Several processes agree by a collective, which waits for everything that
    the devices have to do: do not call this for every step or batch.
    """
    if self._several and multihost_utils.broadcast_one_to_all(
        np.asarray(peers.is_preempted())):
      self._exit_code = exit_codes.PREEMPTED
    if self.exit_code(step):
      raise _Abandoned
