"""Runs the loop in this process, and tests how runs end, resume and fail."""

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import threading
import types

from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import input_pipeline
from big_vision import sharding
from big_vision import state as state_lib
from big_vision import train as train_lib
from big_vision.run import checkpoints
from big_vision.run import console
from big_vision.run import interrupts
from big_vision.run import session as session_lib
from big_vision.run import workdir as workdir_lib
from big_vision.trainers import classification
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_config

from tests import processes

GOLDEN = pathlib.Path(__file__).parent / "golden" / "losses"


def _config(arg=None, **changes):
  config = tiny_config.get_config(arg)
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  return config_lib.resolve(config)


def _rows(workdir):
  with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as file:
    return [json.loads(line) for line in file]


def _arrays(workdir, step=None):
  """Reads every array of a checkpoint by name, through tensorstore alone."""
  return checkpoints.read_arrays(os.path.join(workdir, "checkpoints"), step)


def _without_times(rows):
  return [{key: value for key, value in row.items()
           if not key.startswith(processes.TIMES)} for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """Returns the workdir of an uninterrupted run."""
  workdir = str(tmp_path_factory.mktemp("finished"))
  train_lib.train(_config(), workdir)
  return workdir


def test_a_run_learns_and_logs_every_step_once(finished):
  rows = _rows(finished)
  assert [row["step"] for row in rows] == list(range(13))
  assert rows[0]["num_params"] > 1000
  for step in (0, 6, 12):
    assert 0 <= rows[step]["test/prec@1"] <= 1
    assert "test/ema/prec@1" in rows[step]
  assert "test/prec@1" not in rows[5]
  # The head starts at zero, so all classes are equally likely.
  np.testing.assert_allclose(rows[0]["test/loss"], np.log(10), rtol=1e-6)
  assert rows[12]["test/loss"] != rows[6]["test/loss"] != rows[0]["test/loss"]
  np.testing.assert_allclose(rows[1]["global_schedule"], 0)  # Warm-up from 0.
  np.testing.assert_allclose(rows[4]["global_schedule"], 1)
  stored = workdir_lib.load_config(finished)
  assert stored.to_dict() == _config().to_dict()


def test_a_lost_config_and_lost_rows_are_noticed(
    finished, tmp_path, capsys):
  workdir = tmp_path / "run"
  shutil.copytree(finished, workdir)
  (workdir / "config.json").unlink()
  with pytest.raises(config_lib.ConfigError, match="lr: 0.01 -> 0.5"):
    workdir_lib.check_config(str(workdir), _config(lr=.5))
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join(lines[:5] + lines[7:]))
  train_lib.train(_config(), str(workdir))
  assert re.search("11 rows up to step 12, .* but the run had written 13",
                   capsys.readouterr().out)
  assert workdir_lib.load_config(str(workdir)).to_dict() == _config().to_dict()


def test_the_first_losses_equal_those_in_the_golden_file(finished):
  """Losses must not change unnoticed.

  If they are meant to change, the failing message has the file's new contents.
  Processors and versions of jax round differently, hence the tolerance.
  """
  losses = [row["training_loss"] for row in _rows(finished)[1:]]
  stored = json.loads((GOLDEN / "classification.json").read_text())
  np.testing.assert_allclose(losses, stored, rtol=1e-4, err_msg=str(losses))


def test_the_step_compiles_once(tmp_path, caplog):
  with jax.log_compiles():
    train_lib.train(_config(total_steps=4, log_training_steps=2), str(tmp_path))
  assert sum(record.getMessage().startswith("Compiling jit(step_fn)")
             for record in caplog.records) == 1


def test_same_seed_same_run(finished, tmp_path):
  train_lib.train(_config(), str(tmp_path))
  assert _without_times(_rows(tmp_path)) == _without_times(_rows(finished))
  other = tmp_path / "other"
  other.mkdir()
  train_lib.train(_config(seed=4), str(other))
  assert _rows(other)[5]["training_loss"] != _rows(finished)[5]["training_loss"]


def _train_until(step, monkeypatch, config, workdir):
  """Trains as if a signal had arrived during `step`."""
  with monkeypatch.context() as patch:
    patch.setattr(interrupts.Interrupts, "exit_code",
                  lambda self, now: 143 if now == step else None)
    with pytest.raises(interrupts.Interrupted) as interrupted:
      train_lib.train(config, workdir)
  assert interrupted.value.exit_code == 143


@pytest.mark.parametrize("stop_after", [1, 6])
def test_a_run_that_was_stopped_and_resumed_is_bit_identical(
    finished, tmp_path, monkeypatch, stop_after):
  _train_until(stop_after, monkeypatch, _config(), str(tmp_path))
  assert _rows(tmp_path)[-1]["step"] == stop_after
  train_lib.train(_config(), str(tmp_path))
  expected, got = _arrays(finished, 12), _arrays(tmp_path, 12)
  assert set(expected) == set(got)
  assert {name.split("/")[0] for name in got} == {
      "params", "opt", "ema", "step"}
  for name, value in expected.items():
    np.testing.assert_array_equal(value, got[name], err_msg=name)
  assert _without_times(_rows(tmp_path)) == _without_times(_rows(finished))


def test_a_signal_during_a_step_skips_the_evaluation_that_follows(
    finished, tmp_path, monkeypatch):
  begin_step = session_lib.Session.begin_step

  def begin_and_signal(self, step, state):
    begin_step(self, step, state)
    if step == 6:
      os.kill(os.getpid(), signal.SIGTERM)
  with monkeypatch.context() as patch:
    patch.setattr(session_lib.Session, "begin_step", begin_and_signal)
    with pytest.raises(interrupts.Interrupted) as interrupted:
      train_lib.train(_config(), str(tmp_path))
  assert interrupted.value.exit_code == 143
  # The row of step 6 has no evaluation yet; the resumed run writes it again.
  assert "test/loss" not in _rows(tmp_path)[-1]
  train_lib.train(_config(), str(tmp_path))
  assert _without_times(_rows(tmp_path)) == _without_times(_rows(finished))


@pytest.mark.parametrize("changes, message", [
    ({"unread": 1}, "config.unread"),
    ({"evals.test.typo": 1}, "evals.test.typo")])
def test_an_invalid_config_leaves_no_thread_that_reads_data(
    tmp_path, changes, message):
  """Such a thread may abort the process as it exits, with another code."""
  with pytest.raises(config_lib.ConfigError, match=message):
    train_lib.train(_config(**changes), str(tmp_path))
  assert not [thread for thread in threading.enumerate()
              if thread.name == "input"]


def test_running_a_finished_run_again_changes_nothing(finished, capsys):
  rows = _rows(finished)
  train_lib.train(_config(), finished)
  assert _rows(finished) == rows
  assert "Done" in capsys.readouterr().out


def _assert_close(workdir, expected_workdir):
  """Asserts that losses and evaluations agree to 1e-5, and steps occur once."""
  for ours, theirs in zip(
      _rows(workdir), _rows(expected_workdir), strict=True):
    for key in ("training_loss", "test/loss", "test/ema/loss", "test/prec@1"):
      assert (key in ours) == (key in theirs)
      if key in ours:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("devices, arg", [(1, None), (2, None), (8, "fsdp")])
def test_losses_do_not_depend_on_devices_or_sharding(
    finished, tmp_path, monkeypatch, devices, arg):
  some = jax.devices()[:devices]
  monkeypatch.setattr(jax, "devices", lambda *args: some)
  train_lib.train(_config(arg), str(tmp_path))
  _assert_close(tmp_path, finished)


def test_a_run_resumes_on_other_devices(finished, tmp_path, monkeypatch):
  """The parameters are split over 8 devices, and then whole on 2.

  test_faults.py does this with several processes.
  """
  _train_until(6, monkeypatch, _config("fsdp"), str(tmp_path))
  some = jax.devices()[:2]
  monkeypatch.setattr(jax, "devices", lambda *args: some)
  train_lib.train(_config(), str(tmp_path))
  _assert_close(tmp_path, finished)


@pytest.mark.parametrize("preset, rules, scan", [
    ("fsdp", [], False), ("tp", [], False), ("fsdp_tp", [], False),
    pytest.param("fsdp_tp", [], True, marks=pytest.mark.slow),
    # Sequence parallelism: between blocks, tokens are split too.
    ("tp", [("act_len", "model")], False),
    ("replicate", [("act_batch", ("data", "model"))], False)])
def test_losses_do_not_depend_on_presets(
    finished, tmp_path, monkeypatch, preset, rules, scan):
  """The mesh is 4 x 2, and even the smallest parameters are split."""
  original = sharding.preset_strategy
  monkeypatch.setattr(sharding, "preset_strategy", lambda *args: [
      (regex, re.sub(r"(fsdp\(\S*?)\)", r"\1, min_size_to_shard_mb=0)", op))
      for regex, op in original(*args)])
  changes = dict(mesh=[("data", 4), ("model", 2)], sharding_preset=preset,
                 sharding_rules=rules)
  if scan:  # Scanned blocks draw other initial values.
    changes["model.scan"], finished = True, str(tmp_path / "whole")
    train_lib.train(_config(**{"model.scan": True}), finished)
  built = build_lib.build(_config(**changes))
  axes = {axis for leaf in jax.tree.leaves(built.shardings)
          for axis in leaf.spec if axis}
  assert axes == {"replicate": set(), "tp": {"model"}}.get(
      preset, {"data", "model"})
  train_lib.train(_config(**changes), str(tmp_path / "split"))
  _assert_close(tmp_path / "split", finished)


def test_gradient_accumulation_gives_the_same_losses(finished, tmp_path):
  # Dropout draws per part, so it is off in both.
  off = {"model.dropout": 0.0, "total_steps": 4}
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  train_lib.train(_config(**off), str(whole))
  train_lib.train(_config(**off, grad_accum_steps=2), str(parts))
  for a, b in zip(_rows(whole), _rows(parts), strict=True):
    if a["step"]:
      np.testing.assert_allclose(
          a["training_loss"], b["training_loss"], rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_and_leaves_no_bad_checkpoint(tmp_path):
  config = _config(lr=1e20, grad_clip_norm=None, loss="sigmoid_xent")
  with pytest.raises(state_lib.NonFiniteError, match=r"Step \d+: .* (nan|inf)"):
    train_lib.train(config, str(tmp_path))
  bad_step = len(_rows(tmp_path))
  for step in range(bad_step, 13):
    assert not (tmp_path / "checkpoints" / str(step)).exists()


def _npz_config(fname, **changes):
  return _config("steps=8", evals=None, mixup=None, **changes, **{
      "input.data": dict(name="bv:npz", fname=fname),
      "input.pp": "onehot(10, key='label', key_result='labels')|"
                  "keep('image', 'labels')"})


def _spoil(fname, config, number):
  """Writes images; one in the batch `number` is not finite."""
  images = np.random.default_rng(0).uniform(0, 16, (160, 8, 8, 1))
  images[:, 0, 0, 0] = np.arange(160)
  def write():
    np.savez(fname, image=images.astype(np.float32), label=np.arange(160) % 10)
  write()
  built = build_lib.build(config)
  with built.data.start(number, built.batch_sharding) as batches:
    images[int(next(batches)["image"][0, 0, 0, 0]), 0, 1] = np.nan
  write()


def test_a_rollback_skips_the_data_that_was_not_finite(
    tmp_path, capsys, monkeypatch):
  fname, workdir = str(tmp_path / "images.npz"), str(tmp_path / "run")
  config = functools.partial(_npz_config, fname)
  _spoil(fname, config(), number=5)
  with pytest.raises(state_lib.NonFiniteError, match="Step 6: training_loss"):
    train_lib.train(config(), workdir)
  # A run that is stopped before it saves again rolls back once more.
  stops = iter([None, None, 143])
  with monkeypatch.context() as patch:
    patch.setattr(interrupts.Interrupts, "exit_code", lambda *_: next(stops))
    patch.setattr(checkpoints.Checkpoints, "save", lambda *_: None)
    with pytest.raises(interrupts.Interrupted):
      train_lib.train(config(max_rollbacks=1), workdir)
  train_lib.train(config(max_rollbacks=1), workdir)
  assert ("Rollback 1: restarting from the last checkpoint, with the data from "
          "batch 6 on"
          in capsys.readouterr().out)
  rows = _rows(workdir)
  assert [row["step"] for row in rows] == list(range(9))
  assert [row.get("num_rollbacks") for row in rows[4:]] == [None, 1, 1, 1, 1]

  built = build_lib.build(config())
  with sharding.use(built.mesh, built.rules), built.data.start(
      6, built.batch_sharding) as batches:
    _, state, _ = checkpoints.Checkpoints(
        os.path.join(workdir, "checkpoints"), read_only=True).restore(
            built.shapes, step=4)
    update = state_lib.make_update(
        built.task, built.rng_train, built.shardings, built.mesh)
    for row in rows[5:]:
      state, measurements, _ = update(state, {}, next(batches), ())
      assert row["training_loss"] == measurements["training_loss"]


def test_a_signal_during_a_rollback_is_not_forgotten(tmp_path, monkeypatch):
  fname, workdir = str(tmp_path / "images.npz"), str(tmp_path / "run")
  config = _npz_config(fname, max_rollbacks=1)
  _spoil(fname, config, number=5)

  def say(message):
    if "Rollback 1" in message:
      os.kill(os.getpid(), signal.SIGTERM)
  monkeypatch.setattr(console, "say", say)
  with pytest.raises(interrupts.Interrupted) as interrupted:
    train_lib.train(config, workdir)
  assert interrupted.value.exit_code == 143
  assert checkpoints.list_steps(os.path.join(workdir, "checkpoints")) == [4, 5]
  assert _rows(workdir)[-1]["step"] == 5


@pytest.mark.parametrize("changes, message", [
    ({"lr_mutls": 1, "input.cache_rwa": True},
     r"(?s)config.input.cache_rwa.*'cache_raw'.*config.lr_mutls.*'lr_mults'"),
    ({"model.dept": 1}, "config.model.dept does not exist.*'depth'"),
    ({"model_name": "vti"}, "Unknown model 'vti'.*'vit'"),
    ({"loss": "softmax_exnt"}, "'softmax_exnt'.*'softmax_xent'"),
    ({"optax_name": "adamw"}, "adamw"),
    ({"input.pp": "decoed"}, "'decoed'.*'decode'"),
    ({"evals.test.type": "clasification"}, "'classification'"),
    ({"input.batch_size": 12}, r"12.*8 shards.*\[8, 16\]"),
    ({"total_epochs": 3}, "keep one of"),
    ({"input.data.name": "bv:digit"}, "'bv:digits'")])
def test_mistakes_in_the_config_stop_before_training(
    tmp_path, changes, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    train_lib.train(_config(**changes), str(tmp_path))
  assert not (tmp_path / "config.json").exists(), "Blocks a retry."


def test_continuing_another_run_and_keeping_the_best(finished, tmp_path):
  config = _config(
      resume=finished, total_steps=14,
      keep_best=dict(metric="test/prec@1", mode="max"))
  train_lib.train(config, str(tmp_path))
  rows = _rows(tmp_path)
  assert [row["step"] for row in rows] == [13, 14]
  assert checkpoints.list_steps(str(tmp_path / "checkpoints_best")) == [14]
  best = checkpoints.read_meta(str(tmp_path / "checkpoints_best"), 14)["best"]
  assert best == rows[-1]["test/prec@1"]


@pytest.mark.parametrize("metric, message, step", [
    ("test/prec@l", r"prec@l', which was not.*'test/prec@1'", 0),
    ("tset/prec@1", r"tset/prec@1', which was not.*'training_loss'", 1)])
def test_a_misspelt_metric_of_keep_best_stops_the_run_early(
    tmp_path, metric, message, step):
  config = _config("steps=4", keep_best=dict(metric=metric, mode="max"))
  with pytest.raises(config_lib.ConfigError, match=message):
    train_lib.train(config, str(tmp_path))
  assert _rows(tmp_path)[-1]["step"] == step


def test_resuming_from_a_run_that_does_not_exist_is_an_error(tmp_path):
  with pytest.raises(config_lib.ConfigError,
                     match="no checkpoints to continue"):
    train_lib.train(_config(resume=str(tmp_path / "missing")), str(tmp_path))


def test_another_batch_size_continues_at_the_same_place_in_the_data(
    tmp_path, monkeypatch):
  """4 steps of 16 examples and 3 steps of 8 make 88."""
  starts = []
  original = input_pipeline.TrainingPipeline.start
  def start(self, first_batch, *args, **kw):
    starts.append((self.batch_size, first_batch))
    return original(self, first_batch, *args, **kw)
  monkeypatch.setattr(input_pipeline.TrainingPipeline, "start", start)
  train_lib.train(_config("steps=4"), str(tmp_path))
  train_lib.train(_config("steps=7", **{"input.batch_size": 8}), str(tmp_path))
  train_lib.train(_config("steps=8", **{"input.batch_size": 48}), str(tmp_path))
  assert starts[0] == (16, 0)
  assert starts[2] == (8, 4 * 16 // 8)
  # 88 examples end within the second batch of 48: the rest of it is skipped.
  assert starts[4] == (48, 2)
  assert [row["step"] for row in _rows(tmp_path)] == list(range(9))


def test_every_run_logs_how_it_uses_the_machine(finished):
  for row in _rows(finished)[2:]:
    assert row["tflops/sec/core"] > 0 and row["host_gib"] > .1
    assert 0 <= row["data_stall"] <= 1


def test_flops_are_counted_again_when_a_phase_begins(tmp_path, monkeypatch):
  """From the third step on, every step also multiplies two 64 x 64 matrices."""
  def make_task(config, info):
    task = classification.make_task(config, info)
    def update(state, batch, rng, *, multiplies):
      changed, measurements = task.update(state, batch, rng)
      if multiplies:
        square = jnp.full((64, 64), measurements["training_loss"])
        measurements["product"] = jnp.sum(square @ square)
      return changed, measurements
    return task._replace(
        update=update, static=lambda step: {"multiplies": step >= 2})
  module = types.ModuleType("big_vision.trainers.two_phases")
  module.make_task = make_task
  monkeypatch.setitem(sys.modules, module.__name__, module)
  train_lib.train(
      _config("steps=4", evals=None, trainer="two_phases"), str(tmp_path))
  # Both are divided by the time of the step, which cancels.
  flops = [row["tflops/sec/core"] * 1e12 / row["img/sec/core"] * 16
           for row in _rows(tmp_path)[2:]]
  np.testing.assert_allclose(np.diff(flops), [2 * 64 ** 3, 0], atol=1)


def test_a_profile_of_some_steps(tmp_path):
  train_lib.train(_config("steps=4", evals=None, **{"profile": dict(
      first_step=2, num_steps=2)}), str(tmp_path))
  names = [path.name for path in (tmp_path / "profile").rglob("*")]
  assert any(name.endswith(".xplane.pb") for name in names)
  assert "memory.prof" in names
