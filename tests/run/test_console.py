"""Printing in small processes whose standard streams are broken.

With training: test_faults.py.
"""

import os
import subprocess
import sys

import pytest

from tests import processes

_PRINT = """
import os, sys, warnings
from absl import logging
from big_vision.run import console
console.protect()
console.quiet_libraries()
with open(sys.argv[1], "w") as file:
  print("a line that is longer than a buffer " + 9000 * "x")
  print("to stderr " + 9000 * "y", file=sys.stderr)
  sys.stdout.write("no end of line")
  sys.stdout.flush()
  print("\\u65e5\\u672c", "\\ud800")
  warnings.warn("a warning")
  logging.error("an error")
  os.system("echo from a child; echo and its errors >&2")
  file.write(str(os.isatty(1)))
"""


def _run(path, redirection, **env):
  done = subprocess.run(
      ["bash", "-c", f'set -o pipefail; "$0" "$@" {redirection}',
       sys.executable, "-c", _PRINT, str(path)], cwd=processes.ROOT,
      capture_output=True, check=False, timeout=100,
      env={**os.environ, "PYTHONUNBUFFERED": "", **env})
  return done


def _run_code(code):
  return subprocess.run(
      [sys.executable, "-c", code], cwd=processes.ROOT, capture_output=True,
      text=True, check=False)


@pytest.mark.parametrize("redirection", [
    "| head -c 10", ">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full 2>&1",
    "2> /dev/full"])
def test_printing_never_ends_a_program(tmp_path, redirection):
  """Nor does what is printed get into files that are opened later."""
  path = tmp_path / "file"
  done = _run(path, redirection)
  assert done.returncode == 0, done.stderr
  assert path.read_text() == "False"
  assert b"Traceback" not in done.stderr and b"Errno" not in done.stderr


def test_letters_that_the_encoding_lacks_are_escaped(tmp_path):
  done = _run(tmp_path / "file", "", LC_ALL="C", PYTHONUTF8="0",
              PYTHONCOERCECLOCALE="0")
  assert done.returncode == 0, done.stderr
  assert rb"\u65e5\u672c \ud800" in done.stdout


def test_all_that_can_be_written_is_written(tmp_path):
  done = _run(tmp_path / "file", "")
  lines = done.stdout.decode().split("\n")
  assert [len(line) for line in lines[:1]] == [36 + 9000]
  assert lines[1].startswith("no end of line日本")
  assert lines[2:] == ["from a child", ""]
  assert b"a warning" in done.stderr and b"an error" in done.stderr
  assert b"and its errors" in done.stderr


def test_a_stream_that_recovers_is_used_again(tmp_path):
  """As when somebody makes room on the disk that the log is on."""
  code = (
      "import os, sys\n"
      "from big_vision.run import console\n"
      "full = os.open('/dev/full', os.O_WRONLY)\n"
      "right = os.dup(1)\n"
      "console.protect()\n"
      "os.dup2(full, 1)\n"
      "print('lost')\n"
      "os.dup2(right, 1)\n"
      "print('kept')\n")
  done = _run_code(code)
  assert done.returncode == 0, done.stderr
  assert done.stdout == "kept\n"


def test_libraries_do_not_repeat_that_a_loop_is_closed():
  """tensorstore prints this once for each array that it could not read."""
  code = (
      "import sys\n"
      "from big_vision.run import console\n"
      "console.quiet_libraries()\n"
      "sys.excepthook(RuntimeError, RuntimeError('Event loop is closed'), "
      "None)\n"
      "raise RuntimeError('Event loop is open')\n")
  done = _run_code(code)
  assert "closed" not in done.stderr and "is open" in done.stderr


def test_only_the_logs_of_native_libraries_are_dropped():
  code = (
      "import os, sys\n"
      "from big_vision.run import console\n"
      "with console.dropping_native_logs():\n"
      "  os.write(2, b'I0000 00:00:1.2 3 a.cc:4] note\\nreal error\\n')\n"
      "  print('from Python', file=sys.stderr)\n"
      "  os.write(2, b'E0000 00:00:1.2 3 a.cc:4] native error\\n')\n"
      "os.write(2, b'I0000 afterwards\\n')\n"
      "with console.dropping_native_logs():\n"
      "  raise ValueError('passes')\n")
  done = _run_code(code)
  assert done.stderr.startswith(
      "real error\nfrom Python\nE0000 00:00:1.2 3 a.cc:4] native error\n"
      "I0000 afterwards\nTraceback"), done.stderr
  assert done.stderr.endswith("ValueError: passes\n")
