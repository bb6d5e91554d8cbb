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
