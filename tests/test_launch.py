"""Starting and stopping processes."""

import os
import signal
import subprocess
import sys

from big_vision import config as config_lib
from big_vision import launch
import pytest


def test_half_of_the_coordinator_s_flags_is_an_error():
  with pytest.raises(config_lib.ConfigError, match="all of.*or none"):
    launch.start_processes("127.0.0.1:1", 2)


def test_one_machine_needs_nothing(monkeypatch):
  for name in ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
    monkeypatch.delenv(name, raising=False)
  launch.start_processes()  # Would hang or raise if it looked for others.


def test_workdir_that_cannot_be_made(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(config_lib.ConfigError, match="cannot be written"):
    launch.check_workdir(str(tmp_path / "file" / "workdir"))
  launch.check_workdir(str(tmp_path / "a" / "b"))
  assert os.listdir(tmp_path / "a" / "b") == []


@pytest.mark.parametrize("error, code", [
    ("config_lib.ConfigError('x')", launch.EXIT_CONFIG),
    ("launch.Interrupted(3, 143)", launch.EXIT_PREEMPTED),
    ("KeyError('x')", launch.EXIT_ERROR)])
def test_exit_codes_and_tracebacks(error, code):
  done = subprocess.run(
      [sys.executable, "-c",
       "from big_vision import launch, config as config_lib\n"
       "with launch.exit_codes({config_lib.ConfigError: launch.EXIT_CONFIG}):\n"
       f"  raise {error}"], capture_output=True, text=True, check=False)
  assert done.returncode == code
  assert ("Traceback" in done.stderr) == (code == launch.EXIT_ERROR)


@pytest.mark.parametrize("number, code", [
    (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_becomes_a_question_and_the_second_one_kills(number, code):
  done = subprocess.run(
      [sys.executable, "-c",
       "import os\n"
       "from big_vision import launch\n"
       "interrupts = launch.Interrupts()\n"
       "assert interrupts.exit_code(1) is None\n"
       f"os.kill(os.getpid(), {int(number)})\n"
       f"assert interrupts.exit_code(2) == {code}\n"
       "print('asked', flush=True)\n"
       f"os.kill(os.getpid(), {int(number)})\n"
       "print('not reached')"], capture_output=True, text=True, check=False)
  assert done.returncode == -number and done.stdout == "asked\n", done.stderr
