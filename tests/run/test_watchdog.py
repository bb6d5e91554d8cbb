"""The watchdog in small processes; with training: test_faults.py."""

import inspect
import re
import signal
import subprocess
import sys
import threading
import time
import timeit

from big_vision import config as config_lib
from big_vision.run import exit_codes
from big_vision.run import watchdog
import pytest

from tests import processes


def _run(code, *args):
  """Starts a process that has imported `watchdog` and `time`."""
  return subprocess.Popen(
      [sys.executable, "-c", "import os, sys, time\n"
       "from big_vision.run import watchdog\n" + code, *args],
      cwd=processes.ROOT,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process):
  stdout, stderr = process.communicate(timeout=60)
  return process.returncode, stdout, stderr


@pytest.mark.parametrize("phase, limit", [
    ("data", "data_s"), ("step", "step_s"), ("eval/test", "eval_s"),
    ("checkpoint", "checkpoint_s"), ("start", "start_s")])
def test_every_phase_has_its_own_limit(phase, limit):
  code, _, stderr = _finish(_run(
      f"with watchdog.Watchdog({limit}=0.3):\n"
      f"  watchdog.enter({phase!r}, 7)\n"
      "  time.sleep(60)"))
  assert code == exit_codes.HUNG
  assert f"Process 0, at step 7 in {phase!r}, got nowhere" in stderr
  assert f"config.watchdog.{limit} is 0.3 s" in stderr
  assert 'File "<string>", line 5' in stderr  # Where it hangs.


def test_progress_is_what_counts_and_other_limits_do_not():
  code, stdout, stderr = _finish(_run(
      "with watchdog.Watchdog(step_s=0.5, data_s=0, eval_s=None):\n"
      "  for _ in range(10):\n"
      "    watchdog.enter('step', 3)\n"
      "    time.sleep(0.1)\n"
      "  with watchdog.within('eval'): time.sleep(0.8)\n"
      "  with watchdog.within('data'): time.sleep(0.8)\n"
      "time.sleep(0.8)\n"
      "print('done')"))
  assert (code, stdout) == (0, "done\n"), stderr


def test_the_first_step_of_a_kind_compiles():
  code, _, stderr = _finish(_run(
      "with watchdog.Watchdog(compile_s=30, step_s=0.3):\n"
      "  for kind in 'a', 'b', 'a':\n"
      "    watchdog.enter_update(1, kind)\n"
      "    print(kind, flush=True)\n"
      "    time.sleep(0.8)"))
  assert code == exit_codes.HUNG and "in 'step'" in stderr


def test_a_stopped_process_may_go_on():
  """Ctrl-Z, a debugger, a laptop that sleeps: that time does not count."""
  process = _run(
      "with watchdog.Watchdog(step_s=4):\n"
      "  watchdog.enter('step', 1)\n"
      "  print('there', flush=True)\n"
      "  for _ in range(20): time.sleep(0.1)\n"
      "print('done')")
  assert process.stdout.readline() == "there\n"
  time.sleep(1)  # The watching thread has looked before, and looks again.
  process.send_signal(signal.SIGSTOP)
  time.sleep(6)
  process.send_signal(signal.SIGCONT)
  code, stdout, stderr = _finish(process)
  assert (code, stdout) == (0, "done\n"), stderr


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_grace_after_a_signal_even_when_python_runs_no_handlers(number):
  """The main thread is in C, where Python's own handlers wait for ever."""
  process = _run(
      "import threading\n"
      "from big_vision.run import interrupts as interrupts_lib\n"
      "interrupts = interrupts_lib.Interrupts()\n"
      "with watchdog.Watchdog(grace_s=0.5):\n"
      "  watchdog.enter('step', 3)\n"
      "  print('there', flush=True)\n"
      "  import ctypes\n"
      # Locked twice, a mutex waits for itself, and no signal wakes it up.
      "  lock = ctypes.CDLL(None).pthread_mutex_lock\n"
      "  mutex = ctypes.create_string_buffer(64)\n"
      "  while True: lock(mutex)\n")
  assert process.stdout.readline() == "there\n"
  time.sleep(0.2)
  process.send_signal(number)
  code, _, stderr = _finish(process)
  assert code == exit_codes.HUNG, stderr
  assert "was asked to stop" in stderr


def test_saving_after_a_signal_is_not_cut_short():
  code, stdout, stderr = _finish(_run(
      "import signal\n"
      "from big_vision.run import interrupts as interrupts_lib\n"
      "interrupts = interrupts_lib.Interrupts()\n"
      "with watchdog.Watchdog(grace_s=0.4):\n"
      "  os.kill(os.getpid(), signal.SIGTERM)\n"
      "  with watchdog.within('checkpoint'): time.sleep(1.5)\n"
      "print(interrupts.exit_code(1))"))
  assert (code, stdout) == (0, "143\n"), stderr


def test_it_leaves_nothing_behind():
  before = threading.active_count()
  descriptor = signal.set_wakeup_fd(-1)
  with watchdog.from_config(config_lib.Config({"watchdog": {"step_s": 5}})):
    assert threading.active_count() == before + 1
    with pytest.raises(RuntimeError, match="already"):
      watchdog.Watchdog().__enter__()
  assert threading.active_count() == before
  assert signal.set_wakeup_fd(descriptor) == -1
  with pytest.raises(ValueError, match="x"):
    with watchdog.Watchdog():
      raise ValueError("x")
  assert threading.active_count() == before


def test_the_documented_defaults():
  """Any of them 100 times larger would never end a run that hangs."""
  page = (processes.ROOT / "docs" / "faults.md").read_text()
  documented = {name: float(value) for name, value in re.findall(
      r"^\| `(\w+_s)` \| (\d+) \|", page, re.MULTILINE)}
  defaults = {name: parameter.default for name, parameter in
              inspect.signature(watchdog.Watchdog).parameters.items()}
  assert documented == defaults == dict(
      start_s=3600, compile_s=3600, data_s=3600, step_s=1800, eval_s=7200,
      checkpoint_s=3600, peer_s=120, grace_s=25)


def test_the_limits_given_are_the_limits_that_count():
  """Nothing scales them on the way to the threads."""
  limits = dict(start_s=1, compile_s=2, data_s=3, step_s=4, eval_s=5,
                checkpoint_s=6, peer_s=7, grace_s=8)
  dog = watchdog.from_config(config_lib.Config({"watchdog": limits}))
  assert {f"{name}_s": value for name, value in dog._limits.items()} | dict(
      peer_s=dog._peer_s, grace_s=dog._grace_s) == limits


def test_off_means_no_limits():
  code, stdout, _ = _finish(_run(
      "from big_vision import config\n"
      "with watchdog.from_config(config.Config({'watchdog': 0})) as dog:\n"
      "  assert not any(dog._limits.values()) and not dog._peer_s\n"
      "print('done')"))
  assert (code, stdout) == (0, "done\n")


@pytest.mark.parametrize("value, message", [
    ({"step": 3}, "config.watchdog.step does not exist.*step_s"),
    ({"step_s": "3"}, "config.watchdog.step_s is '3'; it must be a number"),
    ({"step_s": -1}, "config.watchdog.step_s is -1"),
    (60, "config.watchdog is 60; it must be limits in seconds")])
def test_mistakes(value, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    watchdog.from_config(config_lib.Config({"watchdog": value}))


def test_a_step_pays_next_to_nothing():
  """A step takes a millisecond at the very least."""
  def step():
    watchdog.enter("data", 3)
    watchdog.enter_update(3, ())
  assert min(timeit.repeat(step, number=1000, repeat=20)) / 1000 < 20e-6
