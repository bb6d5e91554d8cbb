"""Sweeps: what is run, what is not run again, what is refused, the table."""

import csv
import json
import os
import pathlib
import signal
import sys

from big_vision import config as config_lib
from big_vision.run import config_files
from big_vision.tools import sweep
import pytest

from tests import processes

_CONFIG = """
from big_vision.configs import common
import ml_collections


def get_config(arg=None):
  arg = common.parse_arg(arg, steps=5, start="")
  config = ml_collections.ConfigDict(dict(
      seed=7, total_steps=arg.steps, lr=0.1, start=arg.start,
      model=dict(depth=2, sizes=(1, 2), pool=None)))
  return config.lock()


def get_sweep({parameters}):
  return {points}
"""


def _write(tmp_path, points, parameters=""):
  path = tmp_path / "config.py"
  path.write_text(_CONFIG.format(points=points, parameters=parameters))
  return str(path)


def _load(tmp_path, points, seeds=(), arg="", parameters=""):
  return sweep.load_points(
      _write(tmp_path, points, parameters) + (f":{arg}" if arg else ""),
      str(tmp_path / "sweep"), seeds)


def test_points_change_what_they_name(tmp_path):
  first, second = _load(
      tmp_path, "[{'lr': 0.5, 'model.depth': 3}, {'arg': 'steps=9'}]")
  assert first.config.to_dict() == {
      "seed": 7, "total_steps": 5, "lr": 0.5, "start": "",
      "model": {"depth": 3, "sizes": [1, 2], "pool": None}}
  assert (second.config.total_steps, second.config.lr) == (9, 0.1)
  assert first.workdir == str(tmp_path / "sweep" / "lr=0.5,model.depth=3")
  assert second.workdir == str(tmp_path / "sweep" / "steps=9")


def test_every_point_has_every_seed(tmp_path):
  points = _load(tmp_path, "[{'lr': 0.5}, {'lr': 0.6}]", seeds=(4, 2))
  assert [(p.name, p.config.seed) for p in points] == [
      ("lr=0.5", 4), ("lr=0.5", 2), ("lr=0.6", 4), ("lr=0.6", 2)]
  assert len({p.workdir for p in points}) == 4
  assert points[1].workdir.endswith("lr=0.5/seed=2")


@pytest.mark.parametrize("seed", [-1, 2 ** 31])
def test_seeds_that_would_alias_others_are_refused(seed, tmp_path):
  with pytest.raises(config_lib.ConfigError, match=f"--seeds is {seed}; .* in"):
    _load(tmp_path, "[{'lr': 0.5}]", seeds=(0, seed))


def test_a_point_starts_from_an_earlier_one_of_its_seed(tmp_path):
  points = _load(
      tmp_path, "[dict(name='a'), dict(name='b', "
      "arg=\"start='{point:a}'\"), dict(name='c', start='{point:b}')]", (0, 1))
  workdirs = {(p.name, p.seed): p.workdir for p in points}
  for p in points:
    if p.name != "a":
      earlier = {"b": "a", "c": "b"}[p.name]
      assert p.config.start == workdirs[earlier, p.seed]


def test_arguments_reach_the_sweep_and_its_points(tmp_path):
  point, = _load(
      tmp_path, "[{'lr': float(arg[-1]), 'arg': 'start=x'}]", arg="steps=3",
      parameters="arg=None")
  assert (point.config.lr, point.config.total_steps, point.config.start) == (
      3.0, 3, "x")


@pytest.mark.parametrize("points, message", [
    ("[{'model.dept': 3}]", "config.model.dept.*'depth'"),
    ("[{'lr': 1.0}, {'modle.depth': 3}]", "Point 1.*config.modle.*'model'"),
    ("[{'lr.depth': 3}]", "config.lr.depth.*does not exist"),
    ("[{'lr': 'high'}]", "lr='high' does not have the type"),
    ("[{'arg': 'stesp=3'}]", "'stesp'.*'steps'"),
    ("[{'lr': 1.0}, {'lr': 1.0}]", "same name"),
    ("[{'start': '{point:b}'}, dict(name='b')]", "earlier point"),
    ("[]", "one or more dicts"),
    ("['lr']", "one or more dicts"),
])
def test_an_invalid_point_is_refused_before_anything_runs(
    tmp_path, points, message, capsys):
  with pytest.raises(config_lib.ConfigError, match=message):
    _load(tmp_path, points)
  assert sweep.main(["--config", str(tmp_path / "config.py"), "--workdir",
                     str(tmp_path / "sweep")]) == 2
  assert capsys.readouterr().err
  assert not (tmp_path / "sweep").exists()


def test_files_without_a_sweep_are_refused(tmp_path):
  with pytest.raises(config_lib.ConfigError, match="get_sweep"):
    sweep.load_points("tests/tiny_config.py", str(tmp_path))
  with pytest.raises(config_lib.ConfigError, match="no config file 'nowhere"):
    sweep.load_points("nowhere.py", str(tmp_path))


def test_a_run_of_another_config_in_the_workdir_is_refused(tmp_path):
  run = tmp_path / "sweep" / "a"
  run.mkdir(parents=True)
  (run / "config.json").write_text(json.dumps({"lr": 0.3}))
  with pytest.raises(config_lib.ConfigError, match="lr: 0.3 -> 0.5"):
    _load(tmp_path, "[dict(name='a', lr=0.5)]")


def _point(tmp_path, name, seed, rows, config=None, finished=True):
  workdir = tmp_path / f"{name}{seed}"
  workdir.mkdir()
  if finished:
    (workdir / "finished").touch()
  (workdir / "metrics.jsonl").write_text(
      "".join(json.dumps(row) + "\n" for row in rows))
  return sweep.Point(name=name, seed=seed, workdir=str(workdir),
                     config=config_lib.Config(config or {}))


def test_the_table_has_the_last_values_over_seeds(tmp_path):
  points = [
      _point(tmp_path, "b", 0, [{"step": 0, "acc/10": .1, "size": 3},
                                {"step": 1, "acc/10": .5, "acc/9": 1.}]),
      _point(tmp_path, "b", 1, [{"step": 1, "acc/10": .2, "acc/9": 2.}]),
      _point(tmp_path, "b", 2, [{"step": 1, "acc/10": .8, "acc/9": 9.}]),
      _point(tmp_path, "b", 3, [{"step": 1, "acc/10": 0}], finished=False),
      _point(tmp_path, "a", 0, [{"step": 1, "acc/10": .3, "loss": 1}])]
  rows = sweep.tabulate(points, ["size", "acc/*"])
  assert rows == [
      sweep.Row("b", "size", (3.,)), sweep.Row("b", "acc/9", (1., 2., 9.)),
      sweep.Row("b", "acc/10", (.5, .2, .8)), sweep.Row("a", "acc/10", (.3,))]
  assert sweep.to_markdown(rows) == (
      "| point | size | acc/9 | acc/10 |\n"
      "| --- | --- | --- | --- |\n"
      "| b | 3 | 4 (1 to 9, n=3) | 0.5 (0.2 to 0.8, n=3) |\n"
      "| a |  |  | 0.3 |\n")
  assert list(csv.reader(sweep.to_csv(rows).splitlines()))[2:] == [
      ["b", "acc/9", "4.0", "1.0", "9.0", "3"],
      ["b", "acc/10", "0.5", "0.2", "0.8", "3"],
      ["a", "acc/10", "0.3", "0.3", "0.3", "1"]]


def test_a_failed_point_does_not_keep_others_from_running(
    tmp_path, monkeypatch):
  """Each config is also read back as it is written."""
  values = {"lr": float("inf"), "a": {"b": [None, "it's\n", True]}}
  points = [_point(tmp_path, name, 0, [], values, finished=False)
            for name in "abc"]
  monkeypatch.setattr(
      sweep, "_run", lambda command: (3 * ("b0" in command[4]), 0))
  assert sweep.train_points(points) == {points[1].workdir: 3}
  for point in points:
    module = config_files.load_module(os.path.join(point.workdir, "config.py"))
    assert module.get_config().to_dict() == point.config.to_dict()
  ran = []
  monkeypatch.setattr(sweep, "_run", lambda command: (
      ran.append(command[4]) or 0, 0))
  assert sweep.train_points(points) == {}
  assert ran == [os.path.join(points[1].workdir, "config.py")]


def test_a_signal_reaches_the_run_once_and_stops_the_sweep(
    tmp_path, monkeypatch):
  child = tmp_path / "child.py"
  child.write_text(
      "import os, signal, sys, time\n"
      "received = []\n"
      "signal.signal(signal.SIGTERM, lambda *_: received.append(1))\n"
      "os.kill(os.getppid(), signal.SIGTERM)\n"
      "time.sleep(1)\n"
      "sys.exit(140 + len(received))\n")
  monkeypatch.setattr(sweep, "_command", lambda point: [
      sys.executable, str(child)])
  points = [_point(tmp_path, name, 0, [], finished=False) for name in "ab"]
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(SystemExit) as stopped:
    sweep.train_points(points)
  assert stopped.value.code == 141
  assert signal.getsignal(signal.SIGTERM) is before
  assert not any(sweep._is_finished(point) for point in points)


def test_a_metric_that_no_point_has_leaves_the_table_as_it_is(
    tmp_path, monkeypatch, capsys):
  point = _point(tmp_path, "a", 0, [{"step": 1, "acc": .3, "loss": 1}])
  monkeypatch.setattr(sweep, "load_points", lambda *unused: [point])
  (tmp_path / "table.md").write_text("old")
  command = ["--config", "x.py", "--workdir", str(tmp_path), "--metrics"]
  assert sweep.main([*command, "acccc"]) == 2
  assert "['acc', 'loss']" in capsys.readouterr().err
  assert (tmp_path / "table.md").read_text() == "old"
  assert sweep.main([*command, "acc"]) == 0
  assert "| a | 0.3" in (tmp_path / "table.md").read_text()


def _start(config, workdir):
  return processes.start_command(
      [sys.executable, "-m", "big_vision.tools.sweep", "--config", config,
       "--workdir", str(workdir), "--seeds", "0,1", "--metrics",
       "test/prec@1,training_loss"],
      env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu",
           "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"})


def _trainer_of(process):
  """Process number of the training run that a sweep waits for."""
  child, = pathlib.Path(
      f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
  return int(child)


def test_killed_it_continues_and_repeats_nothing(tmp_path):
  """Two seeds of a tiny run in real processes; kill -9 in the second."""
  config = tmp_path / "config.py"
  config.write_text(
      "from tests.tiny_config import get_config  # noqa: F401\n\n\n"
      "def get_sweep():\n  return [dict(name='tiny', lr=2e-3)]\n")
  workdir = tmp_path / "sweep"
  first, second = (workdir / "tiny" / f"seed={seed}" for seed in (0, 1))
  process = _start(str(config), workdir)
  processes.wait_for_step(process, second, 6)
  trainer = _trainer_of(process)
  process.kill()
  os.kill(trainer, signal.SIGKILL)
  process.wait()
  written = lambda: (first / "metrics.jsonl").stat().st_mtime_ns
  before = written(), os.listdir(first)

  output = processes.finish(_start(str(config), workdir))
  assert f"[1/2] {first}: already finished" in output
  assert "Continuing after step" in output
  assert (written(), os.listdir(first)) == before
  for seed, run in enumerate((first, second)):
    assert [row["step"] for row in processes.rows(run)] == [*range(13)]
    stored = json.loads((run / "config.json").read_text())
    assert (stored["seed"], stored["lr"]) == (seed, 2e-3)
  losses = [processes.rows(run)[-1]["training_loss"]
            for run in (first, second)]
  assert losses[0] != losses[1]
  _, accuracy, loss = csv.reader(
      (workdir / "table.csv").read_text().splitlines())
  assert accuracy[:2] == ["tiny", "test/prec@1"] and accuracy[5] == "2"
  assert float(loss[2]) == pytest.approx(sum(losses) / 2)
  assert [float(x) for x in loss[3:5]] == [min(losses), max(losses)]
  assert (workdir / "table.md").read_text() in output
