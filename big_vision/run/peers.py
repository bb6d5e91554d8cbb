"""Lets the processes of a run know how far each of them is.

Each process keeps publishing a report, its phase and step, and in the end how
it ended. They use the key-value store of jax's coordination service, which runs
in process 0. jax itself only notices processes that died, after its heartbeat
time; it never notices one that is alive but stuck.
"""

from collections.abc import Mapping
import json
from typing import Any

import jax

# In the order in which a step goes through them: a process in an earlier phase
# keeps the others waiting. "compile" is the first step of its kind.
PHASES = ("start", "data", "compile", "step", "eval", "checkpoint")

_REPORTS, _ENDS = "big_vision/reports/", "big_vision/ends/"
# jax's coordination service sets this key when a process gets SIGTERM.
_PREEMPTED = "RECEIVED_PREEMPTION_NOTICE"


def this_process() -> tuple[int, int]:
  """Returns (index of this process, number of processes).

  Unlike `jax.process_index()`, it does not start the devices.
  """
  return service()[1:]


def is_preempted() -> bool:
  """Returns whether one of several processes is known to have got SIGTERM."""
  client, _, count = service()
  return count > 1 and _has_key(client, _PREEMPTED)


def publish_end(exit_code: int, message: str):
  """Tells the other processes that this one ends, and why."""
  client, index, count = service()
  if count > 1:
    client.key_value_set(f"{_ENDS}{index}", json.dumps(
        dict(exit_code=exit_code, message=message)), allow_overwrite=True)


def find_ended() -> set[int]:
  """Returns the processes that have published their end."""
  client, _, count = service()
  if count == 1:
    return set()
  return {_process(key) for key, _ in client.key_value_dir_get(_ENDS)}


def describe(phase: str, step: int) -> str:
  """Returns the place of a process as part of a sentence."""
  return f"at step {step} in {phase!r}"


def rank(phase: str, step: int) -> tuple[int, int]:
  """Returns a key that sorts places by how much of the run is done."""
  return step, PHASES.index(phase.split("/")[0])


class Peers:
  """Tracks where all processes of a run are, from their reports.

  Only `exchange` talks to the service, which may keep it waiting; everything
  else uses the last reports.

  Args:
    poll_s: Seconds between two exchanges; more if there are many processes.

  Attributes:
    index: Index of this process.
    count: Number of processes.
    talk_s: Seconds between two exchanges.
    patience_s: Seconds without news after which a process counts as silent.
    failed: (process, exit code, message) of each other process that has
      published an end with an error.
  """

  def __init__(self, poll_s: float):
    self._client, self.index, self.count = service()
    # In a round, the service receives `count` reports and sends `count` ** 2.
    self.talk_s = poll_s * max(1.0, self.count / 64)
    self.patience_s = 5 * self.talk_s + 1
    self.failed = []
    self._number = 0
    # Last report of each process, None after its end; the one that
    # `add_silence` saw last; and seconds since that changed.
    self._reports, self._seen, self._silent_s = {}, {}, {}

  def exchange(self, phase: str, step: int, seconds: float):
    """Publishes the place of this process and reads the places of all.

    Args:
      phase: Phase of the main thread.
      step: Step that it belongs to.
      seconds: Time that it has spent there.
    """
    self._number += 1
    self._client.key_value_set(
        f"{_REPORTS}{self.index}", json.dumps(dict(
            number=self._number, phase=phase, step=step,
            seconds=round(seconds, 1))), allow_overwrite=True)
    reports = {_process(key): json.loads(report)
             for key, report in self._client.key_value_dir_get(_REPORTS)}
    ends = {_process(key): json.loads(end)
            for key, end in self._client.key_value_dir_get(_ENDS)}
    self._reports = {**reports, **dict.fromkeys(ends)}
    self.failed = [
        (process, end["exit_code"], end["message"])
        for process, end in ends.items()
        if end["exit_code"] and process != self.index]

  def add_silence(self, seconds: float):
    """Counts time during which a process has reported nothing new."""
    for process in range(self.count if self.count > 1 else 0):
      report = self._reports.get(process)
      is_news = report != self._seen.get(process)
      self._silent_s[process] = 0.0 if is_news else (
          self._silent_s.get(process, 0.0) + seconds)
      self._seen[process] = report

  def silent(self, limit: float | None = None) -> set[int]:
    """Returns the processes that have not ended but give no sign of life.

    Args:
      limit: Seconds of silence; `patience_s` by default.
    """
    limit = self.patience_s if limit is None else limit
    return {process for process, seconds in self._silent_s.items()
            if seconds > limit and not self._has_ended(process)}

  def find_lost(self, limit: float) -> int | None:
    """Returns a process that has been silent for longer than `limit` seconds.

    If not even this process's own reports come back, the service is gone, and
    with it process 0.
    """
    lost = self.silent(limit)
    return 0 if self.index in lost else min(lost, default=None)

  def describe_lost(self, process: int) -> str:
    """Returns a sentence about a process that `find_lost` found."""
    report = self._reports.get(process)
    return (
        f"Process {process} has given no sign of life for "
        f"{self._silent_s[process]:.0f} s: it is dead, stopped or out of "
        "reach. It " + (
            f"last reported {describe(report['phase'], report['step'])}."
            if report else "has never reported."))

  def waits_for_another(self, phase: str, step: int) -> bool:
    """Returns whether a living process has done less than (phase, step)."""
    mine, silent = rank(phase, step), self.silent()
    return any(
        rank(report["phase"], report["step"]) < mine
        for process, report in self._reports.items()
        if report and process != self.index and process not in silent)

  def table(self) -> str:
    """Returns one line for each of several processes; marks those behind."""
    if self.count == 1:
      return ""
    ranks = {process: rank(report["phase"], report["step"])
             for process, report in self._reports.items() if report}
    return "\n".join(
        f"  process {process}: {self._describe_report(process)}" + (
            "  <- behind" if process in ranks and
            ranks[process] == min(ranks.values()) < max(ranks.values()) else "")
        for process in range(self.count))

  def _describe_report(self, process: int) -> str:
    report: Mapping[str, Any] | None = self._reports.get(process)
    if report is None:
      return "ended" if self._has_ended(process) else "has never reported"
    return (f"{describe(report['phase'], report['step'])} for "
            f"{report['seconds']:.0f} s, last heard from "
            f"{self._silent_s.get(process, 0):.0f} s ago")

  def _has_ended(self, process: int) -> bool:
    return process in self._reports and self._reports[process] is None


def _process(key: str) -> int:
  return int(key.rsplit("/", 1)[-1])


def service() -> tuple[Any, int, int]:
  """Returns (key-value store, index of this process, number of processes).

  The store is None and the number 1 if the process runs alone. jax has no
  public access to the store. Only functions that orbax uses too are used here,
  and tests fail if they disappear; each process is then watched on its own.
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


def _has_key(client, key: str) -> bool:
  try:
    client.key_value_try_get(key)
    return True
  except jax.errors.JaxRuntimeError as error:
    if "NOT_FOUND" in str(error):
      return False
    raise
