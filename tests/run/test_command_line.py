"""How commands end, and what they say about wrong arguments and configs."""

import os
import subprocess
import sys

from big_vision.run import exit_codes
import pytest

from tests import processes

TINY = "tests/tiny_config.py"


def _run(code, *args):
  return subprocess.run(
      [sys.executable, "-c", code, *args], capture_output=True, text=True,
      check=False, cwd=processes.ROOT)


def _raise(error):
  return _run(
      "import errno\n"
      "from absl import flags\n"
      "from big_vision import config as config_lib, input_pipeline\n"
      "from big_vision.run import checkpoints, command_line, interrupts\n"
      "from big_vision.run import metrics\n"
      "with command_line.exit_with_code({LookupError: 77}):\n"
      f"  raise {error}")


@pytest.mark.parametrize("error, code", [
    ("config_lib.ConfigError('x')", exit_codes.CONFIG),
    ("flags.Error('x')", exit_codes.CONFIG),
    ("input_pipeline.DataError('x')", exit_codes.DATA),
    ("checkpoints.CheckpointDamaged('x')", exit_codes.STORAGE),
    ("metrics.MetricsDamaged('x')", exit_codes.STORAGE),
    ("OSError(errno.ENOSPC, 'x')", exit_codes.STORAGE),
    ("OSError(errno.EDQUOT, 'x')", exit_codes.STORAGE),
    ("OSError(errno.EROFS, 'x')", exit_codes.STORAGE),
    ("OSError(errno.EIO, 'x')", exit_codes.STORAGE),
    ("OSError(errno.EFBIG, 'x')", exit_codes.STORAGE),
    ("interrupts.Interrupted(3, 143)", exit_codes.PREEMPTED),
    ("KeyboardInterrupt", exit_codes.INTERRUPTED),
    ("LookupError('x')", 77),
    ("KeyError('x')", 77),  # A LookupError too.
    ("OSError(errno.ENOENT, 'x')", exit_codes.ERROR),
    ("ValueError('x')", exit_codes.ERROR)])
def test_every_error_ends_with_its_code_and_only_surprises_with_a_traceback(
    error, code):
  done = _raise(error)
  assert done.returncode == code, done.stderr
  assert ("Traceback" in done.stderr) == (code == exit_codes.ERROR)


def test_messages_are_not_quoted_twice():
  done = _raise("""KeyError('it\\'s "here"')""")
  assert done.stderr == "KeyError: it's \"here\"\n"


def test_a_traceback_does_not_show_the_errors_that_led_to_it():
  done = _raise("ValueError('last') from KeyError('first')")
  assert done.stderr.count("Traceback") == 1 and "first" not in done.stderr


def _train(*args, command="big_vision.train", cwd=processes.ROOT):
  return subprocess.run(
      [sys.executable, "-m", command, *args], capture_output=True, text=True,
      check=False, cwd=cwd, env=processes.environ(
          PYTHONPATH=str(processes.ROOT)))


@pytest.mark.parametrize("flag, message", [
    ("config.lr=0.5", "Unexpected argument 'config.lr=0.5': a flag and its "
     "value are written --flag=value, a key of the config --config.key=value."),
    ("x.py", "Unexpected argument 'x.py'"),
    ("--config.nosuch=1", "The command line sets config.nosuch, but the config "
     "has no such key."),
    ("--config.model.dpeth=1", "The command line sets config.model.dpeth, but "
     'the config has no such key. Did you mean "depth" instead of "dpeth"?'),
    ("--config.lr=fast", "flag --config.lr=fast: could not convert string to "
     "float: 'fast'"),
    ("--wrkdir=x", "Unknown command line flag 'wrkdir'. Did you mean: "
     "workdir ?")])
def test_mistakes_on_the_command_line(tmp_path, flag, message):
  """Each of them trained with the old value, or printed a traceback."""
  done = _train("--config", TINY, "--workdir", str(tmp_path), flag)
  assert done.returncode == exit_codes.CONFIG, done.stderr
  assert message in done.stderr and "Traceback" not in done.stderr
  assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["eval_only", "sample", "plan"])
def test_every_command_refuses_arguments_that_it_does_not_use(command):
  done = _train("--workdir=x" if command != "plan" else f"--config={TINY}",
                "step=3", command=f"big_vision.tools.{command}")
  assert done.returncode == exit_codes.CONFIG, done.stderr
  assert "Unexpected argument 'step=3'" in done.stderr


@pytest.mark.parametrize("text, code, message", [
    ("from big_vision.datasets import core\nraise core.DataError('bad.png')",
     exit_codes.DATA, "DataError: bad.png\n"),
    ("from big_vision import config\n"
     "def get_config():\n  raise config.ConfigError('It\\'s \"odd\".')",
     exit_codes.CONFIG, "ConfigError: It's \"odd\".\n"),
    ("import nosuch", exit_codes.ERROR,
     "Traceback (most recent call last):\n"
     '  File "config.py", line 1, in <module>\n'
     "    import nosuch\n"
     "ModuleNotFoundError: No module named 'nosuch'\n")])
def test_errors_raised_by_a_config_file(tmp_path, text, code, message):
  (tmp_path / "config.py").write_text(text)
  done = _train("--config", "config.py", "--workdir", "w", cwd=tmp_path)
  assert (done.returncode, done.stderr) == (code, message)
  assert os.listdir(tmp_path) == ["config.py"]


def test_help_lists_the_flags():
  done = _train("--help")
  assert done.returncode == exit_codes.DONE and not done.stderr
  for name in ("config", "workdir", "allow_config_change", "process_id"):
    assert f"\n  --{name}: " in done.stdout
  assert "logtostderr" not in done.stdout


def test_a_tilde_in_the_workdir_is_the_home_directory(tmp_path):
  """The shell leaves it where it is in --workdir=~/x."""
  done = subprocess.run(
      [sys.executable, "-m", "big_vision.tools.eval_only", "--workdir=~/x"],
      capture_output=True, text=True, check=False, cwd=tmp_path,
      env=processes.environ(HOME=str(tmp_path), PYTHONPATH=str(processes.ROOT)))
  assert f"--workdir='{tmp_path}/x' is not a run's workdir" in done.stderr
  assert done.returncode == exit_codes.CONFIG and not list(tmp_path.iterdir())
