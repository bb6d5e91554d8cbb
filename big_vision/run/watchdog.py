"""Ends a run that hangs, or that has lost one of its processes.

The main thread notes what it does next by `enter`, which costs as little as an
assignment. A second thread measures how long that takes. Beyond the limit it
prints which process is behind and where every thread is, and ends the process
with exit code 4.

With several processes, a third thread exchanges these notes with the other
processes (see `peers.py`). If one of them fails, hangs or is lost, all of them
end and name it.

Time during which the whole process was stopped (Ctrl-Z, a debugger, a laptop
that sleeps) does not count. Code that never releases Python's global lock stops
these threads too; then only the other processes notice.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import os
import signal
import threading
import time
from typing import Any

from big_vision import config as config_lib
from big_vision import ranges
from big_vision.run import ending
from big_vision.run import exit_codes
from big_vision.run import peers
from big_vision.run import signals

# (phase, step) of the main thread. It is always a new tuple, whose identity
# shows the watching thread whether there was progress.
_position = ("start", 0)
_compiled = set()
_active = None


def enter(phase: str, step: int | None = None):
  """Notes what the main thread does from now on.

  Args:
    phase: One of `peers.PHASES`, possibly with details, as in "eval/test".
    step: Step that it belongs to; None for the same as before.
  """
  global _position
  _position = (phase, _position[1] if step is None else step)


def enter_update(step: int, kind: Any = None):
  """Notes that an update begins; the first one of each `kind` compiles."""
  enter("step" if kind in _compiled else "compile", step)
  _compiled.add(kind)


@contextlib.contextmanager
def within(phase: str) -> Iterator[None]:
  """Notes a phase for the duration of a `with` block."""
  before = _position[0]
  enter(phase)
  yield
  # Not after an exception: what follows is part of what went wrong.
  enter(before)


def fail_together(exit_code: int, message: str, is_expected: bool = True):
  """Ends all processes of a run, if it has several.

  Without this, jax keeps all of them until its shutdown times out.

  Args:
    exit_code: Exit code of this process and of the others.
    message: Error, which the others print.
    is_expected: False for an error that may follow from the loss of another
      process; then that process is looked for first.
  """
  silent = set()
  if _active is not None:
    if not is_expected:
      _active.look_for_cause()
    silent = _active.peers.silent()
  ending.end(exit_code, message, silent=silent, is_said=True)


def leave():
  """Stops watching a process that ends early without a failure."""
  if _active is not None:
    _active.close()


def from_config(config: config_lib.Config) -> "Watchdog":
  """Returns a watchdog with the limits of `config.watchdog`; 0 disables it."""
  limits = config.get("watchdog", {})
  if not isinstance(limits, Mapping):
    if limits:
      raise config_lib.ConfigError(
          f"config.watchdog is {limits!r}; it must be limits in seconds, "
          "such as dict(step_s=600), or 0 to switch it off.")
    limits = {f"{name}_s": 0 for name in (*peers.PHASES, "peer")}
  return config_lib.call(Watchdog, limits, "config.watchdog")


class Watchdog:
  """Watches a run; a context manager, one at a time.

  All limits are in seconds; 0 and None mean that there is no limit.

  Args:
    start_s: Limit of everything before the first step.
    compile_s: Limit of a step that compiles.
    data_s: Limit of waiting for a batch.
    step_s: Limit of any other step, and of other work between steps.
    eval_s: Limit of one evaluator, its compilation included.
    checkpoint_s: Limit of starting to save; at the end, of saving.
    peer_s: Time after which a silent process counts as lost.
    grace_s: Time that the loop has to react to a request to stop. Saving does
      not count; `checkpoint_s` limits it. Kubernetes, SLURM and spot machines
      kill a process 30 s after such a request, unless told otherwise.

  Attributes:
    peers: Places of the run's processes.
  """

  def __init__(self, *, start_s: ranges.NotNegative | None = 3600,
               compile_s: ranges.NotNegative | None = 3600,
               data_s: ranges.NotNegative | None = 3600,
               step_s: ranges.NotNegative | None = 1800,
               eval_s: ranges.NotNegative | None = 7200,
               checkpoint_s: ranges.NotNegative | None = 3600,
               peer_s: ranges.NotNegative | None = 120,
               grace_s: ranges.NotNegative | None = 25):
    self._limits = dict(
        start=start_s, compile=compile_s, data=data_s, step=step_s,
        eval=eval_s, checkpoint=checkpoint_s)
    self._peer_s, self._grace_s = peer_s, grace_s
    shortest = min(filter(None, (*self._limits.values(), peer_s, grace_s)),
                   default=10)
    self._poll_s = min(1.0, max(0.05, shortest / 10))
    self.peers = peers.Peers(self._poll_s)
    self._stop = threading.Event()
    self._threads = []
    self._is_asked_to_stop = False
    self._spent_s = 0.0  # At the present position.
    self._signals = None

  def __enter__(self):
    global _active
    if _active is not None:
      raise RuntimeError("There is a watchdog already.")
    _active = self
    enter("start", 0)
    _compiled.clear()
    self._signals = signals.Listener()
    self._start(self._watch)
    if self.peers.count > 1:
      self._start(self._talk)
    return self

  def __exit__(self, exception_type, *unused):
    if exception_type is None or self.peers.count == 1:
      self.close()
    # Otherwise `fail_together` or `leave` follows; watch until then.

  def close(self):
    """Stops watching; the others expect no more reports of this process."""
    global _active
    self._stop.set()
    for thread in self._threads:
      thread.join(timeout=5)
    if self.peers.count > 1:
      ending.tell(exit_codes.DONE, "")
    self._signals.close()
    _active = None

  def _start(self, target: Callable[[], None]):
    thread = threading.Thread(
        target=target, name=f"watchdog{target.__name__}", daemon=True)
    thread.start()
    self._threads.append(thread)

  def _watch(self):
    """Measures time; never asks the service, which could keep it waiting."""
    before, since_request = None, 0.0
    last = time.monotonic()
    while not self._stop.is_set():
      self._sleep()
      now = time.monotonic()
      # A longer pause means that the whole process was stopped.
      passed, last = min(now - last, 3 * self._poll_s), now
      position = _position
      self._spent_s = self._spent_s + passed if position is before else 0.0
      before = position
      phase = position[0].split("/")[0]

      if self._is_asked_to_stop and phase != "checkpoint":
        since_request += passed
        if self._grace_s and since_request > self._grace_s:
          self._give_up(
              f"was asked to stop {since_request:.0f} s ago and has not "
              "reached a point where it can; nothing more is saved")
      limit = self._limits.get(phase)
      if (limit and self._spent_s > limit
          and not self.peers.waits_for_another(*position)):
        self._give_up(f"got nowhere for {self._spent_s:.0f} s; the limit "
                      f"config.watchdog.{phase}_s is {limit:g} s")
      self.peers.add_silence(passed)
      if self._peer_s:
        self._end_if_lost(self._peer_s, with_stacks=True)

  def _sleep(self):
    """Waits for one interval, or until a signal comes."""
    numbers = set(self._signals.wait(self._poll_s))
    if not numbers & {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
      return
    if self.peers.count == 1:
      self._is_asked_to_stop = True
    elif signal.SIGTERM not in numbers:
      # jax tells the others of a SIGTERM, but not of Ctrl-C or SIGHUP.
      os.kill(os.getpid(), signal.SIGTERM)

  def _talk(self):
    """Exchanges reports; waits for as long as the service does not answer."""
    while not self._stop.wait(self.peers.talk_s):
      try:
        self.peers.exchange(*_position, self._spent_s)
        self._is_asked_to_stop |= peers.is_preempted()
      except Exception:  # pylint: disable=broad-exception-caught
        continue  # `_watch` notices that all are silent.
      for process, exit_code, message in self.peers.failed:
        if not self._stop.is_set():
          self._end(
              f"Process {process} ended with exit code {exit_code}, so "
              f"process {self._where()} ends too. Its message: {message}",
              exit_code=exit_code, with_stacks=exit_code == exit_codes.HUNG)

  def look_for_cause(self):
    """Ends the process if the loss of another one explains an error here.

    If a process dies, the collectives of the others raise at once, but its
    silence is noticed only a little later.
    """
    until = time.monotonic() + 2 * self.peers.patience_s
    while time.monotonic() < until:
      time.sleep(0.1)
      self._end_if_lost(self.peers.patience_s)

  def _end_if_lost(self, limit: float, with_stacks: bool = False):
    lost = self.peers.find_lost(limit)
    if lost is not None:
      self._end(self.peers.describe_lost(lost), self.peers.table(),
                with_stacks=with_stacks)

  def _give_up(self, reason: str):
    self._end(f"Process {self._where()} {reason}.", self.peers.table(),
              with_stacks=True)

  def _end(self, message: str, details: str = "", *,
           exit_code: int = exit_codes.HUNG, with_stacks: bool):
    ending.end(exit_code, message, details, silent=self.peers.silent(),
               with_stacks=with_stacks)

  def _where(self) -> str:
    return f"{self.peers.index}, {peers.describe(*_position)},"
