"""Tests the order of writes and syncs on a disk, and files in object stores."""

import os
import stat
import subprocess
import sys
import threading

from big_vision import files
import deadline
from etils import epath
import pytest


def test_content_is_on_the_disk_before_its_name_and_both_at_the_end(
    tmp_path, disk_calls):
  path = tmp_path / "a.json"
  path.write_text("old")
  files.write_text(path, "new é")
  assert path.read_bytes() == "new é".encode()
  assert disk_calls == [("sync", f"{path}.tmp"), ("rename", str(path)),
                   ("sync", str(tmp_path))]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "a"
  path.write_text("old")
  def fail(descriptor):
    raise OSError(28, "No space left on device")
  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(OSError, match="No space"):
    files.write_text(path, "new")
  assert path.read_text() == "old"


def test_links_stay_links_and_pipes_are_written_to(tmp_path):
  (tmp_path / "target").write_text("old")
  (tmp_path / "link").symlink_to(tmp_path / "target")
  files.write_text(tmp_path / "link", "new")
  assert (tmp_path / "link").is_symlink()
  assert (tmp_path / "target").read_text() == "new"
  os.mkfifo(tmp_path / "pipe")
  read = []
  reader = threading.Thread(
      target=lambda: read.append((tmp_path / "pipe").read_text()),
      daemon=True)
  reader.start()
  files.write_text(tmp_path / "pipe", "through")
  reader.join(10)
  assert read == ["through"]
  assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_reading_never_waits_for_a_pipe_or_a_device(tmp_path):
  (tmp_path / "file").write_bytes(b"content")
  (tmp_path / "link").symlink_to(tmp_path / "file")
  for name in "file", "link":
    with files.open_regular(tmp_path / name) as file:
      assert file.read() == b"content"
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "zero").symlink_to("/dev/zero")
  for name, kind in ("pipe", "pipe"), ("zero", "device"), ("", "folder"):
    with deadline.within(20), pytest.raises(
        files.NotRegularError, match=f"but a {kind}"):
      files.open_regular(tmp_path / name)
  with pytest.raises(FileNotFoundError):
    files.open_regular(tmp_path / "missing")


def test_new_directories_are_on_the_disk_in_their_parents(tmp_path, disk_calls):
  files.make_directory(tmp_path / "a" / "b")
  assert disk_calls == [("sync", str(tmp_path)), ("sync", str(tmp_path / "a"))]
  files.make_directory(tmp_path / "a" / "b")
  assert len(disk_calls) == 2
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError):
    files.make_directory(tmp_path / "file" / "b")


def test_a_tree_is_synced_from_its_leaves_to_its_name(tmp_path, disk_calls):
  (tmp_path / "tree" / "b").mkdir(parents=True)
  for name in ("a", "b/c"):
    (tmp_path / "tree" / name).write_text(name)
  files.sync_tree(tmp_path / "tree")
  root = str(tmp_path)
  assert {path for _, path in disk_calls} == {
      root, f"{root}/tree", f"{root}/tree/a", f"{root}/tree/b",
      f"{root}/tree/b/c"}
  position = {path: i for i, (_, path) in enumerate(disk_calls)}
  for path, i in position.items():
    if path != root:
      assert i < position[os.path.dirname(path)], disk_calls


def test_a_growing_file_is_visible_at_once_and_synced_on_demand(
    tmp_path, disk_calls):
  path = tmp_path / "rows"
  file = files.GrowingFile(path, b"1\n")
  file.write(b"2\n")
  file.flush()
  assert path.read_bytes() == b"1\n2\n"
  del disk_calls[:]
  file.sync()
  assert disk_calls == [("sync", str(path))]
  file.write(b"3\n")
  file.close()
  assert path.read_bytes() == b"1\n2\n3\n"


def test_an_object_store_gets_whole_files(bucket, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  files.make_directory(f"{bucket}/run/a")
  files.write_text(f"{bucket}/run/a/config.json", "{}")
  assert epath.Path(f"{bucket}/run/a/config.json").read_text() == "{}"
  file = files.GrowingFile(f"{bucket}/run/rows", b"1\n")
  file.write(b"2\n")
  file.flush()  # Too early for another upload.
  assert epath.Path(f"{bucket}/run/rows").read_text() == "1\n"
  file.sync()
  with files.open_regular(f"{bucket}/run/rows") as stored:
    assert stored.read() == b"1\n2\n"
  monkeypatch.setattr(files, "_UPLOAD_EVERY_S", 0)
  file.sync()
  file.write(b"3\n")
  file.flush()
  assert epath.Path(f"{bucket}/run/rows").read_text() == "1\n2\n3\n"
  file.write(b"4\n")
  file.close()
  assert epath.Path(f"{bucket}/run/rows").read_text() == "1\n2\n3\n4\n"
  assert os.listdir(tmp_path) == []


def test_reading_a_workdir_does_not_import_tensorflow():
  code = ("import sys; from big_vision import files; "
          "assert 'tensorflow' not in sys.modules")
  subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_what_is_below_a_directory(tmp_path, monkeypatch):
  inside, outside = tmp_path / "run", tmp_path / "runs"
  inside.mkdir()
  outside.mkdir()
  (inside / "link").symlink_to(outside)
  monkeypatch.chdir(inside)
  for path in ("a", inside / "a", inside / "b" / ".." / "a"):
    assert files.is_below(path, inside), path
  for path in (inside, outside / "a", inside / ".." / "a", "link/a", "/a",
               "gs://bucket/run/a"):
    assert not files.is_below(path, inside), path
  assert files.is_below("gs://bucket/run/a", "gs://bucket/run")
  assert not files.is_below("gs://bucket/run/../a", "gs://bucket/run")


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert os.fspath(files.as_path("~/x")) == str(tmp_path / "x")
  assert os.fspath(files.as_path("a~/x")) == os.path.abspath("a~/x")
