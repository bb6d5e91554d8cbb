"""Cuts the power of a disk: what was not synced is lost. Needs root rights.

ext4 can be told to stop at once, without writing anything more to its disk.
After mounting it again, it holds what a disk holds after a power cut.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import struct
import subprocess

import pytest

from tests import processes

# From linux/fs/ext4/ext4.h; 2 means that the journal is not flushed first.
_EXT4_IOC_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2


class Disk:
  """A file system on a disk of its own, which can lose its power."""

  def __init__(self, directory):
    self._image, self.path = directory / "disk", directory / "mounted"
    self.path.mkdir()
    with open(self._image, "wb") as file:
      file.truncate(64 << 20)
    self._call("mkfs.ext4", "-q", self._image)
    self.mount()

  def _call(self, *command):
    subprocess.run(list(map(str, command)), check=True, timeout=60,
                   capture_output=True)

  def mount(self):
    self._call("mount", "-o", "loop", self._image, self.path)

  def cut_power(self, *running):
    """Cuts the power, kills the processes that were running, and mounts."""
    descriptor = os.open(self.path, os.O_RDONLY)
    fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN,
                struct.pack("I", _NO_LOG_FLUSH))
    os.close(descriptor)
    for process in running:
      process.kill()
      process.wait()
    self.unmount()
    self.mount()

  def unmount(self):
    self._call("umount", self.path)


@pytest.fixture
def disk(tmp_path):
  try:
    disk = Disk(tmp_path)
  except (OSError, subprocess.CalledProcessError) as error:
    pytest.skip(f"File systems cannot be mounted here: {error}")
  yield disk
  with contextlib.suppress(subprocess.CalledProcessError):
    disk.unmount()


def _is_committed(workdir, step):
  return (pathlib.Path(workdir) / f"checkpoints/{step}/commit_success.txt"
          ).exists()


def test_what_was_not_synced_is_lost(disk):
  """Tests the oracle itself: a file that was only closed is not on the disk."""
  (disk.path / "closed").write_text("content")
  with open(disk.path / "synced", "w", encoding="utf-8") as file:
    file.write("content")
    file.flush()
    os.fsync(file.fileno())
  (disk.path / "closed later").write_text("content")
  disk.cut_power()
  assert (disk.path / "synced").read_text() == "content"
  lost = disk.path / "closed later"
  assert not lost.exists() or lost.read_text() == ""


def test_a_run_survives_power_cuts(tmp_path, disk):
  processes.finish(processes.start(tmp_path / "uncut"))
  workdir = disk.path / "run"

  process = processes.start(workdir)
  processes.wait_until(lambda: _is_committed(workdir, 8), process)
  disk.cut_power(process)
  assert json.loads((workdir / "config.json").read_text())["total_steps"] == 12

  process = processes.start(workdir)
  output = processes.finish(process)
  disk.cut_power()
  # Step 8 counts if its marker had reached the disk; step 4 was older.
  assert ("Continuing after step 8" in output
          or "Continuing after step 4" in output)
  output = processes.finish(processes.start(workdir))
  assert "Continuing after step 12" in output and "damaged" not in output
  processes.assert_same(tmp_path / "uncut", workdir)
