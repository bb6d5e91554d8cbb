"""Processes that were started differently do not train together."""

import concurrent.futures
import json
import threading

from big_vision import config as config_lib
from big_vision import modules
from big_vision.run import comparison
from big_vision.run import peers
import pytest

from tests import processes


class Service:
  """The coordination service of two threads that play processes."""

  def __init__(self):
    self._values, self._barrier = {}, threading.Barrier(2, timeout=5)
    self._is_set = threading.Event()

  def key_value_set(self, key, value):
    self._values[key] = value
    self._is_set.set()

  def blocking_key_value_get(self, key, timeout_ms):
    assert self._is_set.wait(5)
    return self._values[key]

  def wait_at_barrier(self, key, timeout_ms):
    self._barrier.wait()


def _compare(monkeypatch, *facts, counts=(2, 2)):
  """Runs the check in two threads; returns the error of each, or None."""
  service, index = Service(), threading.local()
  monkeypatch.setattr(peers, "service", lambda: (
      service, index.value, counts[index.value]))

  def run(i):
    index.value = i
    config, data_size = facts[i]
    try:
      comparison.check_same(config_lib.Config(config), data_size)
    except (config_lib.ConfigError, threading.BrokenBarrierError) as error:
      return error
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    return list(pool.map(run, range(2)))


def test_equal_processes_pass_and_wait_for_each_other(monkeypatch):
  same = {"lr": .1, "model": {"size": [4, 4]}}, 100
  assert _compare(monkeypatch, same, same) == [None, None]


@pytest.mark.parametrize("other, message", [
    (({"lr": .1, "seed": 1}, 100), "config.seed: 0 -> 1"),
    (({"lr": .2, "seed": 0}, 100), "config.lr: 0.1 -> 0.2"),
    (({"lr": .1, "seed": 0, "wd": 0}, 100), "config.wd: absent -> 0"),
    (({"lr": .1, "seed": 0}, 99), "training examples: 100 -> 99")])
def test_a_difference_is_shown_and_process_0_does_not_go_on(
    monkeypatch, other, message):
  first, second = _compare(monkeypatch, ({"lr": .1, "seed": 0}, 100), other)
  assert isinstance(first, threading.BrokenBarrierError)
  assert isinstance(second, config_lib.ConfigError)
  assert message in str(second) and "Process 1 was started diff" in str(second)
  assert len(str(second).splitlines()) == 3  # This difference and no other.


def test_another_number_of_processes_is_shown(monkeypatch):
  same = {"lr": .1}, 100
  error = _compare(monkeypatch, same, same, counts=(2, 3))[1]
  assert "--num_processes: 2 -> 3" in str(error)


def test_other_code_of_a_package_that_the_config_names_is_shown(
    monkeypatch, tmp_path):
  package = tmp_path / "mylab_compared"
  (package / "models").mkdir(parents=True)
  for name in ("__init__.py", "models/__init__.py"):
    (package / name).write_text("")
  (package / "models/gizmo.py").write_text("Model = 1\n")
  monkeypatch.syspath_prepend(tmp_path)
  modules.find("model", "mylab_compared.models.gizmo")
  assert {"big_vision", "mylab_compared"} <= {*modules.packages()}
  before = comparison._describe(100, 2)
  assert before == comparison._describe(100, 2)
  (package / "models/gizmo.py").write_text("Model = 2\n")
  comparison._digest_package.cache_clear()
  after = comparison._describe(100, 2)
  (line,) = config_lib.difference(before, after)
  assert line.startswith("code.mylab_compared: ")
  json.dumps(after)


def test_versions_and_settings_are_those_in_use():
  import jax
  found = comparison._describe(100, 2)
  assert found["version"]["jax"] == jax.__version__
  with jax.enable_x64(True):
    other = comparison._describe(100, 2)
  assert config_lib.difference(found, other) == [
      "setting.jax_enable_x64: 'False' -> 'True'"]


@pytest.mark.parametrize("flags, message", [
    (["--config.lr=0.5"], "config.lr: 0.01 -> 0.5"),
    (["--num_processes=3"], "--num_processes: 2 -> 3")])
def test_real_processes_end_before_the_first_step(tmp_path, flags, message):
  address = f"--coordinator_address=127.0.0.1:{processes.free_port()}"
  first = processes.start(
      tmp_path, address, "--num_processes=2", "--process_id=0")
  second = processes.start(
      tmp_path, address, "--num_processes=2", "--process_id=1", *flags)
  for process in (first, second):
    output = processes.finish(process, code=2)
    assert message in output and "Traceback" not in output
  assert processes.rows(tmp_path) == []
