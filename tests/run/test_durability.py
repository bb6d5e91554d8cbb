"""What a checkpoint relies on is on the disk before it, and it holds a copy.

`test_power_cut.py` cuts the power of a real disk.
"""

import json

from big_vision import config as config_lib
from big_vision import files
from big_vision.run import checkpoints
from big_vision.run import metrics
from big_vision.run import workdir as workdir_lib
import jax.numpy as jnp
import pytest


def _save(directory, *steps, meta=None):
  with checkpoints.Checkpoints(str(directory), keep_last=1) as saver:
    for step in steps:
      saver.save(step, {"params": {"w": jnp.arange(5.) + step}}, meta)


def test_a_step_is_on_the_disk_before_its_marker_and_that_before_removals(
    tmp_path, disk_calls):
  directory = tmp_path / "checkpoints"
  _save(directory, 1, 2)
  # Directories of the path to the checkpoints, then the note of the first step.
  assert disk_calls[0] == ("sync", str(tmp_path))
  for step in (1, 2):
    folder = directory / str(step)
    marker = disk_calls.index(("rename", f"{folder}/commit_success.txt"))
    note = max(i for i, call in enumerate(disk_calls[:marker])
               if call == ("rename", f"{directory}/saving.txt"))
    assert ("sync", str(directory)) in disk_calls[note:marker]
    synced = {path for call, path in disk_calls[note:marker] if call == "sync"}
    if step == 2:  # The files of step 1 are gone by now.
      written = {str(path) for path in folder.rglob("*")
                 if path.name != "commit_success.txt"}
      assert len(written) > 5 and f"{folder}/meta/metadata" in written
      assert written <= synced
    assert {str(folder), str(directory)} <= synced
    # The name of the marker is the last thing to reach the disk.
    assert disk_calls[marker + 1] == ("sync", str(folder))
  removal = disk_calls.index(("remove", str(directory / "1")))
  assert disk_calls.index(("sync", str(directory / "2")), marker) < removal


def test_rows_are_on_the_disk_when_sync_returns(tmp_path, disk_calls):
  with metrics.Writer(str(tmp_path)) as writer:
    writer.write(1, {"a": 1})
    del disk_calls[:]
    writer.sync()
    assert disk_calls == [("sync", str(tmp_path / "metrics.jsonl"))]


def test_a_lost_config_is_read_from_the_newest_readable_checkpoint(
    tmp_path, capsys):
  workdir = str(tmp_path)
  assert workdir_lib.load_config(workdir) is None
  for step, lr in ((1, .1), (2, .2)):
    with checkpoints.Checkpoints(str(tmp_path / "checkpoints")) as saver:
      saver.save(step, {"w": jnp.ones(3)}, {"config": {"lr": lr}})
  assert workdir_lib.load_config(workdir).lr == .2
  assert "has no config.json" in capsys.readouterr().out
  with pytest.raises(config_lib.ConfigError, match="lr: 0.2 -> 0.5"):
    workdir_lib.check_config(workdir, config_lib.Config({"lr": .5}))
  (tmp_path / "checkpoints/2/meta/metadata").write_text("")
  assert workdir_lib.load_config(workdir).lr == .1


def test_checkpoints_without_any_config_are_refused(tmp_path):
  _save(tmp_path / "checkpoints", 3)
  with pytest.raises(config_lib.ConfigError, match=(
      r"checkpoints of steps \[3\] but no config.json")):
    workdir_lib.check_config(str(tmp_path), config_lib.Config({"lr": .5}))
  workdir_lib.check_config(
      str(tmp_path), config_lib.Config({"lr": .5}), allow_change=True)


@pytest.mark.parametrize("content, message", [
    (b"[1, 2]", "it holds a list"), (b"\"\xc3(\"", "utf-8"), (b"", "Expecting"),
    (b'{"a": 1', "Expecting")])
def test_a_damaged_config_is_named_and_the_copy_too(tmp_path, content, message):
  (tmp_path / "config.json").write_bytes(content)
  with pytest.raises(config_lib.ConfigError, match=(
      f"(?s)config.json is not a config in JSON: .*{message}.*remove it")):
    workdir_lib.load_config(str(tmp_path))


@pytest.mark.parametrize("kept, last", [((1, 3), 3), ((), None), ((1, 2), 2)])
def test_missing_rows_are_said(tmp_path, capsys, kept, last):
  with metrics.Writer(str(tmp_path)) as writer:
    for step in range(1, 5):
      writer.write(step, {"a": step})
    assert writer.num_rows == 4
  metrics.check_complete(str(tmp_path), 3, 3)
  assert capsys.readouterr().out == ""
  (tmp_path / "metrics.jsonl").write_text("".join(
      json.dumps({"step": step}) + "\n" for step in kept))
  metrics.check_complete(str(tmp_path), 3, 3)
  said = capsys.readouterr().out
  assert f"has {len(kept)} rows up to step 3" in said
  assert f"of step {last}, but the run had written 3" in said


def test_resumed_writers_count_the_rows_they_keep(tmp_path):
  with metrics.Writer(str(tmp_path)) as writer:
    for step in (0, 5, 10):
      writer.write(step, {})
  with metrics.Writer(str(tmp_path), resume_step=5) as writer:
    assert writer.num_rows == 2
    writer.write(7, {})
    assert writer.num_rows == 3


def test_the_files_of_a_workdir_live_in_an_object_store(
    bucket, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  workdir = f"{bucket}/run"
  workdir_lib.make(workdir)
  config = config_lib.Config({"lr": .1, "model": {"depth": 2}})
  workdir_lib.store_config(workdir, config)
  assert workdir_lib.load_config(workdir).to_dict() == config.to_dict()
  with pytest.raises(config_lib.ConfigError, match="lr: 0.1 -> 0.2"):
    workdir_lib.check_config(
        workdir, config_lib.Config({"lr": .2, "model": {"depth": 2}}))
  image = jnp.zeros((4, 5, 3), jnp.uint8)
  for resume_step in (0, 1):
    with metrics.Writer(workdir, resume_step=resume_step) as writer:
      writer.write(resume_step + 1, {"a": 1.5, "grid": image.__array__()})
  assert [row["step"] for row in metrics.read_metrics(workdir)] == [1, 2]
  names = {path.name for path in (
      files.as_path(workdir) / "pictures/grid").iterdir()}
  assert names == {"00000001.png", "00000002.png"}
  events = list((files.as_path(workdir) / "tensorboard").iterdir())
  assert len(events) == 2 and all(len(path.read_bytes()) > 100
                                  for path in events)
  assert list(tmp_path.iterdir()) == []
