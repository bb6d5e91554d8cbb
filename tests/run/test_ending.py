"""The end of a process whose threads are stuck; with training: test_faults.py.
"""

import subprocess
import sys
import time

import pytest

from tests import processes


def _run(code, **kw):
  return subprocess.Popen(
      [sys.executable, "-c", "import os, sys, threading, time\n"
       "from big_vision.run import ending\n" + code],
      cwd=processes.ROOT, text=True, **kw)


def test_it_says_why_and_where_every_thread_is():
  process = _run(
      "def wait(): time.sleep(60)\n"
      "threading.Thread(target=wait, name='waits').start()\n"
      "ending.end(7, 'Over.', 'Details.', with_stacks=True)",
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  _, stderr = process.communicate(timeout=60)
  assert process.returncode == 7
  assert stderr.startswith("Watchdog: Over.\nDetails.\nThread ")
  assert ("Thread waits (most recent call first):\n"
          '  File "<string>", line 3 in wait\n' in stderr)


def test_what_was_said_is_not_repeated():
  process = _run("ending.end(7, 'Over.', is_said=True)",
                 stderr=subprocess.PIPE)
  assert process.communicate(timeout=60)[1].strip() == ""
  assert process.returncode == 7


@pytest.mark.parametrize("stuck", ["1", "2", "1, 2"])
def test_a_pipe_that_nobody_reads_does_not_keep_a_process(stuck):
  process = _run(
      f"for number in [{stuck}]:\n"
      "  read, write = os.pipe()\n"
      "  os.dup2(write, number)\n"
      "  os.set_blocking(write, False)\n"
      "  try:\n"
      "    while os.write(write, bytes(4096)): pass\n"
      "  except BlockingIOError:\n"
      "    os.set_blocking(write, True)\n"
      "sys.stdout = open(1, 'w', closefd=False)\n"
      "sys.stdout.write('more')\n"
      "ending._PRINT_S = 1\n"
      "ending.end(7, 'Over.', with_stacks=True)")
  start = time.monotonic()
  try:
    process.wait(timeout=60)
  finally:
    process.kill()
  assert process.returncode == 7 and time.monotonic() - start < 40
