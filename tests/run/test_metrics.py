"""Metrics on disk, after kills too, and the counting of time."""

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
import numpy as np
import pytest
from tensorboardX.proto import event_pb2
import tensorflow as tf

ROOT = pathlib.Path(__file__).parents[2]


def test_rows_are_there_at_once_and_each_step_once(tmp_path):
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


def test_resuming_drops_later_rows_and_a_torn_end(tmp_path):
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


def test_killed_writers_leave_whole_rows(tmp_path):
  code = (
      "import sys; from big_vision import metrics\n"
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


def test_other_processes_write_nothing(tmp_path):
  with metrics.Writer(str(tmp_path), enabled=False) as writer:
    writer.write(1, {"a": 1})
  assert not list(tmp_path.iterdir())


def test_wandb_continues_under_the_same_id(tmp_path, monkeypatch):
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


def test_chrono_in_closed_form():
  now = [100.]
  chrono = metrics.Chrono(10, 20, 8, 4, "cpu", 40, saved={"uptime": 50.},
                          time_fn=lambda: now[0])
  now[0] += 7  # Compiling.
  chrono.tick(11)
  chrono.flops = 6e12
  first = chrono.measure(11)
  assert "img/sec" not in first and first["z/secs/first_step"] == 7
  for step in (12, 13):
    now[0] += 2
    chrono.tick(step)
  with chrono.paused("eval/test"):
    now[0] += 30
  values = chrono.measure(13, waited=1.)
  assert values == {
      "uptime": 50 + 7 + 4 + 30, "examples_seen": 104, "epoch": 2.6,
      "progress": .65, "core_hours": 91 * 4 / 3600, "img/sec": 2 * 8 / 4,
      "img/sec/core": 1., "data_stall": .25, "eta": 7 * 2.,
      "tflops/sec/core": 6 / 2 / 4,
      "z/secs/eval/test": 30}
  now[0] += 3
  assert "z/secs/eval/test" not in chrono.measure(14, waited=1.)
  assert chrono.state() == {"uptime": 94.}


def test_mfu_is_the_share_of_what_the_chips_could_do():
  now = [0.]
  chrono = metrics.Chrono(0, 20, 8, 4, "TPU v5 lite", 40,
                          time_fn=lambda: now[0])
  chrono.flops = 4 * 197e12
  chrono.tick(1)
  now[0] += 5
  assert chrono.measure(2)["mfu"] == pytest.approx(1 / 5)


def test_memory_grows_with_what_is_held():
  before = metrics.memory()["host_gib"]
  held = np.ones(2 ** 26)  # Half a GiB, touched.
  assert metrics.memory()["host_gib"] >= max(before, .5)
  assert held.nbytes == 2 ** 29


@pytest.mark.parametrize("seconds, text", [
    (3.4, "3s"), (125, "2m05s"), (3720, "1h02m"),
    (3 * 86400 + 4 * 3600, "3d04h")])
def test_seconds_for_people(seconds, text):
  assert metrics.format_seconds(seconds) == text


def test_lines_for_people():
  line = metrics.format_progress(150, 1200, {
      "training_loss": .2312, "training_prec@1": .934, "img/sec": 1204.4,
      "eta": 65})
  assert line == ("step  150/1200   12%  loss 0.2312  accuracy 93.4%  "
                  "1,204 img/s  ETA 1m05s")
  assert metrics.format_evals(7, {"a": .5, "b/c": 2}) == (
      "after step 7: a 0.5000  b/c 2.0000")
