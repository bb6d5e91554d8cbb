"""Ends a run that hangs, or that has lost one of its processes.

What the main thread does next it says by `enter`, which costs an attribute. A
thread of its own looks how long that takes; beyond the limit it prints who is
behind and where every thread is, and ends the process with `EXIT_HUNG`.

With several processes a second thread tells the others, through the key-value
store of jax's coordination service, where this one is, and hears of them: one
that fails, hangs or is gone ends all, and all say which one it was. jax itself
notices the dead only, after its heartbeat time, and never those that live and
do not move.

Time in which the whole process did not run (Ctrl-Z, a debugger that stops all
threads, a laptop that sleeps) does not count. What holds Python's global lock
for ever stops these threads too; then it is the other processes that notice.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import faulthandler
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import Any

import jax

from big_vision import config as config_lib

EXIT_HUNG = 4

# In the order in which a step goes through them: who is at an earlier one keeps
# the others waiting. "compile" is a step of a kind that was not run before.
PHASES = ("start", "data", "compile", "step", "eval", "checkpoint")

_WORDS, _ENDS = "big_vision/words/", "big_vision/ends/"
# Under this key jax's coordination service tells of a SIGTERM to a process.
_PREEMPTED = "RECEIVED_PREEMPTION_NOTICE"
# Seconds for the last words: until others have them, until they have ended too.
_LAST_WORDS_S, _OTHERS_S = 2.0, 10.0

# (phase, step) of the main thread. Always a new tuple: that is how the watching
# thread sees that there was progress.
_position = ("start", 0)
_compiled = set()
_active = None


def enter(phase: str, step: int | None = None):
  """Says what the main thread does from now on.

  Args:
    phase: one of `PHASES`, "/" and details may follow ("eval/test").
    step: the step that this belongs to; None for the one it was.
  """
  global _position
  _position = (phase, _position[1] if step is None else step)


def enter_update(step: int, kind: Any = None):
  """`enter` for the update itself; the first one of a `kind` compiles."""
  enter("step" if kind in _compiled else "compile", step)
  _compiled.add(kind)


@contextlib.contextmanager
def within(phase: str) -> Iterator[None]:
  """`enter`, and back to what it was."""
  before = _position[0]
  enter(phase)
  yield
  # Not after an exception: what follows that is its consequence.
  enter(before)


def fail_together(exit_code: int, message: str, is_expected: bool = True):
  """Ends this process of several, with an error; the others end with it.

  Without this, jax keeps all of them until its shutdown times out.

  Args:
    exit_code: Exit code of this process and of the others.
    message: why; the others print it.
    is_expected: False for an error that may be the consequence of what happened
      to another process; then that is looked for first.
  """
  if _active is not None and not is_expected:
    _active.look_for_cause()
  _end(exit_code, message, is_said=True)


def this_process() -> tuple[int, int]:
  """(index of this process, number of processes); starts no devices."""
  return _service()[1:]


def is_preempted() -> bool:
  """Whether one of several processes got SIGTERM, as far as is known here."""
  client, _, count = _service()
  return count > 1 and _is_there(client, _PREEMPTED)


def leave():
  """This process ends as it should, and on its own: nothing to watch any more.

  For exceptions that leave the watchdog's `with` and are no failure.
  """
  if _active is not None:
    _active.close()


def from_config(config: config_lib.Config) -> "Watchdog":
  """The watchdog that `config.watchdog` describes: its limits; 0 for none."""
  limits = config.get("watchdog", {})
  if not isinstance(limits, Mapping):
    if limits:
      raise config_lib.ConfigError(
          f"config.watchdog is {limits!r}; it is a dict of limits in seconds, "
          "as dict(step_s=600), or 0 to switch it off.")
    limits = {f"{name}_s": 0 for name in (*PHASES, "peer")}
  for name, value in limits.items():
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, (int, float)) or
        value < 0):
      raise config_lib.ConfigError(
          f"config.watchdog.{name} is {value!r}; it is a number of seconds, 0 "
          "for no limit.")
  return config_lib.call(Watchdog, limits, "config.watchdog")


class Watchdog:
  """A context manager; one at a time. All limits are seconds, 0 or None: none.

  Args:
    start_s: until the first step, or between anything that has no limit.
    compile_s: a step that compiles.
    data_s: waiting for a batch.
    step_s: a step, and all that the loop does beside the others.
    eval_s: one evaluator, its compiling included.
    checkpoint_s: until a checkpoint is on its way; at the end, until it is
      written.
    peer_s: without a sign of life from another process.
    grace_s: after a signal that asks the run to stop, until the loop takes
      notice. Saving what there is has the limit of checkpoints. What sends such
      signals kills 30 s later (Kubernetes, SLURM, spot machines), if it was not
      told otherwise.
  """

  def __init__(self, *, start_s: float | None = 3600,
               compile_s: float | None = 3600, data_s: float | None = 3600,
               step_s: float | None = 1800, eval_s: float | None = 7200,
               checkpoint_s: float | None = 3600, peer_s: float | None = 120,
               grace_s: float | None = 25):
    self._limits = dict(
        start=start_s, compile=compile_s, data=data_s, step=step_s,
        eval=eval_s, checkpoint=checkpoint_s)
    self._peer_s, self._grace_s = peer_s, grace_s
    shortest = min(filter(None, (*self._limits.values(), peer_s, grace_s)),
                   default=10)
    self._poll_s = min(1.0, max(0.05, shortest / 10))
    self._stop = threading.Event()
    self._threads = []
    self._asked = False
    # What others say: {process: word}, and seconds since that was news.
    self._words, self._silent = {}, {}
    self._client, self._index, self._count = _service()
    # The service gets `count` words and answers `count` ** 2 a round.
    self._talk_s = self._poll_s * max(1.0, self._count / 64)
    self._spent = 0.0
    self._wakeup = None

  def __enter__(self):
    global _active
    if _active is not None:
      raise RuntimeError("There is a watchdog already.")
    _active = self
    enter("start", 0)
    _compiled.clear()
    # Signals are noticed here even while the main thread is deep in C, where
    # Python's handlers do not run.
    self._wakeup = socket.socketpair()
    for end in self._wakeup:
      end.setblocking(False)
    if threading.current_thread() is threading.main_thread():
      signal.set_wakeup_fd(
          self._wakeup[1].fileno(), warn_on_full_buffer=False)
    self._start(self._watch)
    if self._count > 1:
      self._start(self._talk)
    return self

  def __exit__(self, exception_type, *unused):
    if exception_type is None or self._count == 1:
      self.close()
    # Else `fail_together` or `leave` follows; until then, go on watching.

  def close(self):
    """Stops watching; the others do not wait for words of this process."""
    global _active
    self._stop.set()
    for thread in self._threads:
      thread.join(timeout=5)
    if self._count > 1:
      _in_background(lambda: _publish_end(0, ""), _LAST_WORDS_S)
    if threading.current_thread() is threading.main_thread():
      signal.set_wakeup_fd(-1)
    for end in self._wakeup:
      end.close()
    _active = None

  def _start(self, target: Callable[[], None]):
    thread = threading.Thread(
        target=target, name=f"watchdog{target.__name__}", daemon=True)
    thread.start()
    self._threads.append(thread)

  def _watch(self):
    """The thread that counts; talks to nobody, so nothing can hold it up."""
    seen, waited, heard = None, 0.0, {}
    last = time.monotonic()
    while not self._stop.is_set():
      self._sleep()
      now = time.monotonic()
      passed, last = min(now - last, 3 * self._poll_s), now
      position = _position
      self._spent = 0.0 if position is not seen else self._spent + passed
      seen = position
      phase = position[0].split("/")[0]

      if self._asked and phase != "checkpoint":
        waited += passed
        if self._grace_s and waited > self._grace_s:
          self._give_up(
              f"was asked to stop {waited:.0f} s ago and did not get to where "
              "it can; checkpoints are as they were")
      limit = self._limits.get(phase)
      if limit and self._spent > limit and not self._waits_for_another():
        self._give_up(f"got nowhere for {self._spent:.0f} s; the limit "
                      f"config.watchdog.{phase}_s is {limit:g} s")
      for process in range(self._count if self._count > 1 else 0):
        word = self._words.get(process)
        if word != heard.get(process):
          self._silent[process] = 0.0
        else:
          self._silent[process] = self._silent.get(process, 0.0) + passed
        heard[process] = word
      if self._peer_s and (lost := self._find_lost(self._peer_s)) is not None:
        _end(EXIT_HUNG, self._say_lost(lost), self._table(), with_stacks=True)

  def _sleep(self):
    """One interval, or less if a signal comes."""
    ready, _, _ = select.select([self._wakeup[0]], [], [], self._poll_s)
    if not ready:
      return
    numbers = self._wakeup[0].recv(64)
    if signal.SIGINT in numbers and self._count > 1:
      # To jax, which tells the others, and then us.
      os.kill(os.getpid(), signal.SIGTERM)
    elif signal.SIGINT in numbers or signal.SIGTERM in numbers:
      self._asked = True

  def _talk(self):
    """The thread that tells and hears; may be held up by a lost service."""
    number = 0
    while not self._stop.wait(self._talk_s):
      number += 1
      phase, step = _position
      try:
        self._client.key_value_set(
            f"{_WORDS}{self._index}", json.dumps(dict(
                number=number, phase=phase, step=step,
                seconds=round(self._spent, 1))), allow_overwrite=True)
        words = self._client.key_value_dir_get(_WORDS)
        ends = self._client.key_value_dir_get(_ENDS)
        self._asked |= _is_there(self._client, _PREEMPTED)
      except Exception:  # pylint: disable=broad-exception-caught
        continue  # The silence of all is counted by the other thread.
      self._words = {_process(key): json.loads(word) for key, word in words}
      for key, text in ends:
        end, process = json.loads(text), _process(key)
        self._words.pop(process, None)
        self._words[process] = {"ended": end["exit_code"]}
        if end["exit_code"] and process != self._index and (
            not self._stop.is_set()):
          _end(end["exit_code"],
               f"Process {process} ended with exit code {end['exit_code']}, so "
               f"process {self._index}, {self._where()}, ends too. What it "
               f"said: {end['message']}",
               with_stacks=end["exit_code"] == EXIT_HUNG)

  def look_for_cause(self):
    """Ends the process if another one's end explains an error of this one.

    A collective whose partner died raises here at once; that the partner is
    dead shows a little later.
    """
    patience = 5 * self._talk_s + 1
    until = time.monotonic() + 2 * patience
    while time.monotonic() < until:
      time.sleep(0.1)
      if (lost := self._find_lost(patience)) is not None:
        _end(EXIT_HUNG, self._say_lost(lost), self._table())

  def silent(self) -> set[int]:
    """Processes that should have said something by now."""
    return {process for process, seconds in self._silent.items()
            if seconds > 5 * self._talk_s + 1}

  def _waits_for_another(self) -> bool:
    """Whether a living process is at an earlier point: it has its own limit."""
    mine, silent = _rank(*_position), self.silent()
    return any(
        process not in silent and process != self._index
        and "ended" not in word
        and _rank(word["phase"], word["step"]) < mine
        for process, word in self._words.items())

  def _find_lost(self, limit: float) -> int | None:
    """A process that has been silent for longer; 0 if all have."""
    silent = [process for process, seconds in self._silent.items()
              if seconds > limit and
              "ended" not in self._words.get(process, {})]
    if self._index in silent:
      return 0  # Nothing comes from the service, which lives in process 0.
    return min(silent, default=None)

  def _say_lost(self, process: int) -> str:
    word = self._words.get(process)
    return (
        f"Process {process} has given no sign of life for "
        f"{self._silent[process]:.0f} s: it is dead, stopped, or cannot be "
        "reached. Its last word was "
        + (_say_word(word) if word else "none") + ".")

  def _give_up(self, what: str):
    _end(EXIT_HUNG, f"Process {self._index}, {self._where()}, {what}.",
         self._table(), with_stacks=True)

  def _where(self) -> str:
    return _say_word(dict(zip(("phase", "step"), _position)))

  def _table(self) -> str:
    """Where all processes are, the one that is behind marked."""
    if self._count == 1:
      return ""
    words = {process: word for process, word in self._words.items()
             if "ended" not in word}
    ranks = {p: _rank(word["phase"], word["step"]) for p, word in words.items()}
    lines = []
    for process in range(self._count):
      line = f"  process {process}: "
      if process in words:
        line += (f"{_say_word(words[process])}, for "
                 f"{words[process]['seconds']:.0f} s, heard of "
                 f"{self._silent.get(process, 0):.0f} s ago")
        if ranks[process] == min(ranks.values()) < max(ranks.values()):
          line += "  <- behind"
      else:
        line += "ended" if process in self._words else "not heard of"
      lines.append(line)
    return "\n".join(lines)


def _rank(phase: str, step: int) -> tuple[int, int]:
  """Ascending with what a process has done."""
  return step, PHASES.index(phase.split("/")[0])


def _say_word(word: Mapping[str, Any]) -> str:
  return f"at step {word['step']} in {word['phase']!r}"


def _process(key: str) -> int:
  return int(key.rsplit("/", 1)[-1])


def _service() -> tuple[Any, int, int]:
  """(key-value store of jax's coordination service, this process, how many).

  The store is None and the count 1 where there are not several processes. jax
  has no public way to it. What is used of it is small, orbax uses the same, and
  tests notice if it goes: then each process is watched for itself. Not
  `jax.process_index()`: it waits for the devices, which may be what hangs.
  """
  try:
    from jax._src import distributed  # pylint: disable=g-import-not-at-top
    state = distributed.global_state
    for name in ("key_value_set", "key_value_dir_get", "key_value_try_get"):
      getattr(state.client, name)
    if state.num_processes > 1:
      return state.client, state.process_id, state.num_processes
  except (ImportError, AttributeError):
    pass
  return None, 0, 1


def _is_there(client, key: str) -> bool:
  try:
    client.key_value_try_get(key)
    return True
  except jax.errors.JaxRuntimeError as error:
    if "NOT_FOUND" in str(error):
      return False
    raise


def _publish_end(exit_code: int, message: str):
  client, index, count = _service()
  if count > 1:
    client.key_value_set(f"{_ENDS}{index}", json.dumps(
        dict(exit_code=exit_code, message=message)), allow_overwrite=True)


def _wait_for_others():
  """Process 0, with which the service ends, stays until all have heard."""
  client, index, count = _service()
  if index or count == 1:
    return
  waits_for = set(range(count)) - (_active.silent() if _active else set())
  until = time.monotonic() + _OTHERS_S
  while time.monotonic() < until and waits_for - {
      _process(key) for key, _ in client.key_value_dir_get(_ENDS)}:
    time.sleep(0.1)


def _in_background(fn: Callable[[], None], seconds: float):
  """Gives `fn` some time, whatever it does."""
  def quietly():
    with contextlib.suppress(Exception):
      fn()
  thread = threading.Thread(target=quietly, daemon=True)
  thread.start()
  thread.join(timeout=seconds)


_ending = threading.Lock()


def _end(exit_code: int, message: str, details: str = "", *,
         with_stacks: bool = False, is_said: bool = False):
  """Says why, tells the others, ends this process whatever its threads do."""
  if not _ending.acquire(blocking=False):  # pylint: disable=consider-using-with
    time.sleep(3600)  # Another thread is at it.
  # What sys.stderr was replaced by may be stuck with the main thread.
  stream = sys.__stderr__
  with contextlib.suppress(Exception):
    if not is_said:
      print("\n".join(filter(None, (f"Watchdog: {message}", details))),
            file=stream, flush=True)
    if with_stacks:
      faulthandler.dump_traceback(file=stream, all_threads=True)
    sys.stdout.flush()
    stream.flush()
  _in_background(lambda: _publish_end(exit_code, message), _LAST_WORDS_S)
  _in_background(_wait_for_others, _OTHERS_S)
  os._exit(exit_code)  # pylint: disable=protected-access
