"""Signals in a process of their own; with training: test_faults.py."""

import signal
import subprocess
import sys

import pytest

from tests import processes


@pytest.mark.parametrize("number, code", [
    (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_is_remembered_and_the_second_one_kills(number, code):
  done = subprocess.run(
      [sys.executable, "-c",
       "import os\n"
       "from big_vision.run import interrupts as interrupts_lib\n"
       "interrupts = interrupts_lib.Interrupts()\n"
       "assert interrupts.exit_code(1) is None\n"
       f"os.kill(os.getpid(), {int(number)})\n"
       f"assert interrupts.exit_code(2) == {code}\n"
       "print('asked', flush=True)\n"
       f"os.kill(os.getpid(), {int(number)})\n"
       "print('not reached')"], capture_output=True, text=True, check=False,
      cwd=processes.ROOT)
  assert done.returncode == -number and done.stdout == "asked\n", done.stderr
