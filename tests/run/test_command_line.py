"""How commands end; what they say of wrong flags: tests/tools/test_plan.py."""

import subprocess
import sys

from big_vision.run import exit_codes
import pytest

from tests import processes


@pytest.mark.parametrize("error, code", [
    ("config_lib.ConfigError('x')", exit_codes.CONFIG),
    ("checkpoints.CheckpointDamaged('x')", exit_codes.STORAGE),
    ("interrupts.Interrupted(3, 143)", exit_codes.PREEMPTED),
    ("LookupError('x')", 77),
    ("KeyError('x')", 77),  # A LookupError too.
    ("ValueError('x')", exit_codes.ERROR)])
def test_every_error_ends_with_its_code_and_only_surprises_with_a_traceback(
    error, code):
  done = subprocess.run(
      [sys.executable, "-c",
       "from big_vision import config as config_lib\n"
       "from big_vision.run import checkpoints, command_line, interrupts\n"
       "with command_line.exit_with_code({LookupError: 77}):\n"
       f"  raise {error}"], capture_output=True, text=True, check=False,
      cwd=processes.ROOT)
  assert done.returncode == code, done.stderr
  assert ("Traceback" in done.stderr) == (code == exit_codes.ERROR)
