"""Words and silence over a dict in place of jax's service.

With real processes: test_faults.py.
"""

import json

from big_vision.run import peers
import pytest


class Service:
  """The key-value store of jax's coordination service, as a dict."""

  def __init__(self):
    self.values = {}

  def key_value_set(self, key, value, allow_overwrite):
    assert allow_overwrite
    self.values[key] = value

  def key_value_dir_get(self, prefix):
    return [item for item in self.values.items() if item[0].startswith(prefix)]

  def say(self, process, phase, step, number=0):
    self.values[f"big_vision/reports/{process}"] = json.dumps(
        dict(number=number, phase=phase, step=step, seconds=3.2))

  def end(self, process, exit_code, message=""):
    self.values[f"big_vision/ends/{process}"] = json.dumps(
        dict(exit_code=exit_code, message=message))


@pytest.fixture(name="service")
def _service(monkeypatch):
  """Makes this process number 1 of 3."""
  service = Service()
  monkeypatch.setattr(peers, "service", lambda: (service, 1, 3))
  return service


def test_places_are_ordered_by_how_much_is_done():
  order = [("checkpoint", 3), ("data", 4), ("compile", 4), ("step", 4),
           ("eval/test", 4), ("checkpoint", 4), ("data", 5)]
  ranks = [peers.rank(*where) for where in order]
  assert ranks == sorted(ranks) and len(set(ranks)) == len(ranks)


def test_the_process_that_is_behind_is_marked(service):
  known = peers.Peers(0.1)
  service.say(0, "step", 4)
  service.end(2, 0)
  known.exchange("eval/test", 3, 7.0)
  known.add_silence(5.0)
  known.add_silence(2.0)
  assert known.table() == (
      "  process 0: at step 4 in 'step' for 3 s, last heard from 2 s ago\n"
      "  process 1: at step 3 in 'eval/test' for 7 s, last heard from 2 s ago"
      "  <- behind\n"
      "  process 2: ended")
  service.say(0, "eval/test", 3)
  del service.values["big_vision/ends/2"]
  known.exchange("eval/test", 3, 7.0)
  assert "behind" not in known.table()  # All are at the same place.
  assert "process 2: has never reported" in known.table()


def test_a_silent_process_is_lost_and_one_that_ended_is_not(service):
  known = peers.Peers(0.1)
  for number in range(4):
    service.say(0, "step", 4)
    known.exchange("step", 4, 0.0)
    known.add_silence(1.0)
  assert known.silent() == {0, 2}  # Patience is 1.5 s.
  assert known.find_lost(5) is None and known.find_lost(3.5) == 2
  assert known.find_lost(2.5) == 0
  assert known.describe_lost(0) == (
      "Process 0 has given no sign of life for 3 s: it is dead, stopped or out "
      "of reach. It last reported at step 4 in 'step'.")
  assert known.describe_lost(2).endswith("for 4 s: it is dead, stopped or out "
                                         "of reach. It has never reported.")
  service.end(2, 0)
  service.say(0, "step", 4, number=1)
  known.exchange("step", 4, 0.0)
  known.add_silence(1.0)
  assert known.silent() == set()
  for _ in range(10):
    known.add_silence(1.0)
  # This process' own words do not come back: the service is gone.
  assert known.find_lost(9) == 0 and known.silent() == {0, 1}


def test_only_a_living_process_that_is_behind_is_waited_for(service):
  known = peers.Peers(0.1)
  service.say(0, "data", 4)
  known.exchange("step", 4, 0.0)
  known.add_silence(0.1)
  assert known.waits_for_another("step", 4)
  assert not known.waits_for_another("data", 4)
  # Its own older word does not count.
  assert not known.waits_for_another("data", 4)
  for _ in range(3):
    known.exchange("step", 4, 0.0)
    known.add_silence(1.0)
  assert not known.waits_for_another("step", 4)
  service.say(0, "data", 4, number=1)
  service.end(0, 0)
  known.exchange("step", 4, 0.0)
  assert not known.waits_for_another("step", 4)


def test_failures_of_others_are_known(service):
  known = peers.Peers(0.1)
  service.end(0, 0)
  service.end(1, 5, "mine")
  service.end(2, 6, "no image")
  known.exchange("step", 4, 0.0)
  assert known.failed == [(2, 6, "no image")]
  assert peers.find_ended() == {0, 1, 2}


def test_many_processes_talk_less_often(monkeypatch):
  monkeypatch.setattr(peers, "service", lambda: (None, 0, 640))
  assert peers.Peers(0.5).talk_s == 5


def test_a_process_alone_knows_nobody():
  known = peers.Peers(0.1)
  known.add_silence(1000)
  assert peers.this_process() == (0, 1) and known.table() == ""
  assert known.find_lost(1) is None and known.silent() == set()
  assert not known.waits_for_another("step", 4) and not peers.is_preempted()
