"""Signals in a process of their own; with training: test_faults.py."""

import signal
import subprocess
import sys

import pytest

from tests import processes


def _run(code):
  return subprocess.run(
      [sys.executable, "-c",
       "import os, signal\n"
       "from big_vision.run import interrupts as interrupts_lib\n" + code],
      capture_output=True, text=True, check=False, cwd=processes.ROOT)


@pytest.mark.parametrize("number, code", [
    (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_the_first_signal_is_remembered_and_the_second_one_kills(number, code):
  done = _run(
      "interrupts = interrupts_lib.Interrupts()\n"
      "assert interrupts.exit_code(1) is None\n"
      f"os.kill(os.getpid(), {int(number)})\n"
      f"assert interrupts.exit_code(2) == {code}\n"
      "print('asked', flush=True)\n"
      f"os.kill(os.getpid(), {int(number)})\n"
      "print('not reached')")
  assert done.returncode == -number and done.stdout == "asked\n", done.stderr


def test_a_terminal_that_closes_means_nothing_under_nohup():
  done = _run(
      "signal.signal(signal.SIGHUP, signal.SIG_IGN)  # As nohup does.\n"
      "interrupts = interrupts_lib.Interrupts()\n"
      "os.kill(os.getpid(), signal.SIGHUP)\n"
      "print(interrupts.exit_code(1))\n")
  assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_signal_skips_or_abandons_what_may_be_abandoned(when):
  """A signal during a step comes before the evaluation that follows it."""
  done = _run(
      "interrupts = interrupts_lib.Interrupts()\n"
      "def evaluate():\n"
      "  print('begun')\n"
      f"  if {when == 'within'}: os.kill(os.getpid(), signal.SIGTERM)\n"
      "  print('ended')\n"
      "  return 1\n"
      f"if {when == 'before'}: os.kill(os.getpid(), signal.SIGTERM)\n"
      "assert interrupts.call_unless_stopped(evaluate) is None\n"
      "assert interrupts.exit_code(1) == 143\n")
  assert done.returncode == 0, done.stderr
  assert done.stdout == ("begun\n" if when == "within" else "")


def test_a_call_without_a_signal_returns_its_result():
  done = _run("print(interrupts_lib.Interrupts().call_unless_stopped("
              "lambda: 5))\n")
  assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr
