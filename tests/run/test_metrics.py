"""Metrics on disk, after kills too."""

import glob
import json
import math
import pathlib
import signal
import subprocess
import sys
import time
import types

from big_vision.run import metrics
import pytest
from tensorboardX.proto import event_pb2
import tensorflow as tf

ROOT = pathlib.Path(__file__).parents[2]


def test_rows_are_written_at_once_and_each_step_once(tmp_path):
  with metrics.Writer(str(tmp_path)) as writer:
    writer.write(0, {"a": 1, "bad": math.nan, "worse": -math.inf})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 0, "a": 1.0, "bad": "nan", "worse": "-inf"}
    writer.write(2, {"a": 2})
    for step in (2, 1):
      with pytest.raises(ValueError, match=f"step {step} come after .* step 2"):
        writer.write(step, {"a": 3})
  rows = metrics.read_metrics(str(tmp_path))
  assert [row["step"] for row in rows] == [0, 2]
  assert math.isnan(rows[0]["bad"]) and rows[0]["worse"] == -math.inf


def test_resuming_drops_later_rows_and_a_line_that_was_cut_off(tmp_path):
  with metrics.Writer(str(tmp_path)) as writer:
    for step in range(6):
      writer.write(step, {"a": step})
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text() + '{"step": 6, "a"')
  with metrics.Writer(str(tmp_path), resume_step=3) as writer:
    writer.write(4, {"a": 40})
  assert [(row["step"], row["a"]) for row in metrics.read_metrics(
      str(tmp_path))] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 40)]
  with metrics.Writer(str(tmp_path)):
    pass
  assert metrics.read_metrics(str(tmp_path)) == []


def test_damage_in_the_middle_is_an_error(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(
      '{"step": 0}\n{"step": 1,\n{"step": 2}\n')
  with pytest.raises(ValueError, match="line 2 is damaged"):
    metrics.Writer(str(tmp_path), resume_step=2)


def test_killed_writers_leave_complete_rows(tmp_path):
  code = (
      "import sys; from big_vision.run import metrics\n"
      "rows = metrics.read_metrics(sys.argv[1])\n"
      "start = rows[-1]['step'] if rows else 0\n"
      "w = metrics.Writer(sys.argv[1], resume_step=start)\n"
      "for step in range(start + 1, 10**9): w.write(step, {'a': step})")
  reached = 0
  for _ in range(2):
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    until = time.monotonic() + 60
    while time.monotonic() < until:
      rows = metrics.read_metrics(str(tmp_path))
      if rows and rows[-1]["step"] > reached + 20:
        break
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = metrics.read_metrics(str(tmp_path))
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    reached = len(rows)
  assert reached > 40


def test_tensorboard_files_hold_the_values(tmp_path):
  with metrics.Writer(str(tmp_path)) as writer:
    writer.write(0, {"a": 0.5})
    writer.write(3, {"a": 1.5, "b/c": 2})
  files = glob.glob(str(tmp_path / "tensorboard" / "*tfevents*"))
  found = set()
  for record in tf.data.TFRecordDataset(files).as_numpy_iterator():
    event = event_pb2.Event.FromString(record)
    for value in event.summary.value:
      found.add((event.step, value.tag, value.simple_value))
  assert found == {(0, "a", .5), (3, "a", 1.5), (3, "b/c", 2.)}


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path):
  with metrics.Writer(str(tmp_path), enabled=False) as writer:
    writer.write(1, {"a": 1})
  assert not list(tmp_path.iterdir())


def test_wandb_resumes_under_the_same_id(tmp_path, monkeypatch):
  calls, logged = [], []
  def init(**kwargs):
    calls.append(kwargs)
    return types.SimpleNamespace(
        log=lambda values, step: logged.append((step, values)),
        finish=lambda: logged.append("finished"))
  ids = iter(["first", "second"])
  monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(
      init=init, util=types.SimpleNamespace(generate_id=lambda: next(ids))))
  for resume_step in (0, 1):
    with metrics.Writer(
        str(tmp_path), resume_step=resume_step, config={"lr": 1},
        wandb={"project": "p"}) as writer:
      writer.write(resume_step + 1, {"a": 2.})
  assert [call["id"] for call in calls] == ["first", "first"]
  assert calls[0]["project"] == "p" and calls[0]["config"] == {"lr": 1}
  assert calls[0]["resume"] == "allow"
  assert logged == [(1, {"a": 2.}), "finished", (2, {"a": 2.}), "finished"]
