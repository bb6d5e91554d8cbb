"""Trains a classifier, stage 1 and stage 2, each on the one before it.

The configs are the shipped ones, made small; they run through the real loop,
evaluators and commands.
"""

import functools
import importlib
import json
import os
import pathlib

from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import sharding
from big_vision import state as state_lib
from big_vision import train as train_lib
from big_vision import tree
from big_vision.run import checkpoints
from big_vision.run import interrupts
from big_vision.run import workdir as workdir_lib
from big_vision.tools import eval_only
from big_vision.tools import sample
import jax
import numpy as np
from PIL import Image
import pytest

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "losses"
SMALL = {
    "total_epochs": None, "total_steps": 4, "input.batch_size": 8,
    "log_training_steps": 1, "ckpt_epochs": None, "ckpt_steps": 2,
    "batch_size_eval": 16,
}


@pytest.fixture(scope="module", autouse=True)
def _surroundings(imagenet_like):
  jax.config.update("jax_disable_most_optimizations", True)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TFDS_DATA_DIR", imagenet_like)
    yield
  jax.config.update("jax_disable_most_optimizations", False)


def make_config(name, arg=None, **changes):
  config = importlib.import_module(f"big_vision.{name}").get_config(arg)
  with config.unlocked():
    config.update_from_flattened_dict({**SMALL, **changes})
  return config_lib.resolve(config)


def rows(workdir):
  return [json.loads(line) for line in
          (workdir / "metrics.jsonl").read_text().splitlines()]


def train(config, workdir):
  workdir.mkdir(exist_ok=True)
  train_lib.train(config, str(workdir))
  return workdir


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
  return train(make_config(
      "configs.fashion_mnist", **{"model.width": 8, "model.depth": 3,
                          "model.num_heads": 2, "model.mlp_dim": 8,
                          "total_steps": 2, "evals": None}),
               tmp_path_factory.mktemp("vqgan") / "classifier")


def stage1_config(classifier, **changes):
  return make_config(
      "proj.vqgan.configs.fashion_mnist_f4", f"classifier={classifier}", **{
          "model.width": 4, "model.z_width": 4, "model.mults": (1, 1, 1),
          "model.dropout": 0.5,
          "gan.model.width": 4, "gan.start_percent": 0.0,
          "evals.distance.network.layers": ("encoder/block02/+mlp",),
          **changes})


@pytest.fixture(scope="module")
def stage1(classifier):
  return train(stage1_config(classifier), classifier.parent / "stage1")


def stage2_config(classifier, stage1, **changes):
  return make_config(
      "proj.vqgan.configs.fashion_mnist_gpt",
      f"stage1={stage1},classifier={classifier}", **{
          "model.width": 8, "model.depth": 1, "model.num_heads": 2,
          "evals.samples.num_pictures": 10, "input.cache_raw": True,
          "evals.samples.num_samples": 10, "evals.distance.num_samples": 10,
          "evals.distance.network.layers": ("encoder/block02/+mlp",),
          **changes})


@pytest.fixture(scope="module")
def stage2(classifier, stage1):
  return train(stage2_config(classifier, stage1), stage1.parent / "stage2")


def test_measurements_of_stage_1_are_consistent(stage1):
  last = rows(stage1)[-1]
  assert 0 < last["test/psnr"] < 50 and -1 <= last["test/ssim"] < 1
  assert last["test/l1"] > 0 and last["test/sharpness"] > 0
  assert 0 < last["codes/usage"] <= 1
  np.testing.assert_allclose(
      last["codes/perplexity"], 2 ** last["codes/bits_per_code"])
  np.testing.assert_allclose(last["disc/accuracy"], (
      last["disc/accuracy_real"] + last["disc/accuracy_fake"]) / 2, rtol=1e-6)
  assert last["distance/frechet_classifier"] > 0
  # The perceptual part is logged under the name of its network.
  assert last["training_perceptual_classifier"] > 0
  assert {"training_adaptive_weight", "disc/global_schedule"} <= set(last)


def test_the_first_losses_are_unchanged(stage1, stage2):
  """As in tests/test_train.py, the message has the new contents of the file."""
  losses = {workdir.name: [row["training_loss"] for row in rows(workdir)[1:4]]
            for workdir in (stage1, stage2)}
  stored = json.loads((GOLDEN / "vqgan.json").read_text())
  assert set(stored) == set(losses)
  for name, values in losses.items():
    np.testing.assert_allclose(
        values, stored[name], rtol=1e-3, err_msg=json.dumps(losses))


def test_features_of_a_classifier_are_not_called_lpips_or_fid(stage1, stage2):
  for workdir in (stage1, stage2):
    names = " ".join(set().union(*map(set, rows(workdir)))).lower()
    assert "lpips" not in names and "fid" not in names


def test_pictures_are_in_the_workdir_and_in_tensorboard(stage1, stage2):
  for workdir, name, columns, n in (
      (stage1, "test/images", 8, 2), (stage2, "samples/images", 8, 1)):
    path = workdir / "pictures" / name / "00000004.png"
    assert Image.open(path).size == (33 * columns - 1, 33 * n - 1), path
  events = b"".join(path.read_bytes() for path in
                    (stage1 / "tensorboard").iterdir())
  assert b"test/images" in events and b"PNG" in events
  assert not any("images" in row for row in rows(stage1))


def test_measurements_of_stage_2_are_consistent(stage2):
  last = rows(stage2)[-1]
  for twin in ("", "ema/"):
    assert last[f"test/{twin}bits_per_image"] == pytest.approx(
        64 * last[f"test/{twin}bits_per_code"], rel=1e-6)
    assert 0 <= last[f"test/{twin}unigram_bits"] <= 7
    assert 0 <= last[f"samples/{twin}recognized"] <= 1
    assert last[f"distance/{twin}frechet_classifier"] > 0
  assert "samples/recognized" not in rows(stage2)[0]
  # All codes are equally likely at first.
  assert rows(stage2)[0]["test/bits_per_code"] == pytest.approx(7, abs=0.1)


def _arrays(workdir):
  return checkpoints.read_arrays(os.path.join(workdir, "checkpoints"), 4)


def _assert_continues(config, finished, workdir, monkeypatch):
  """Stops a run after step 3 of 4, continues it, compares it to `finished`."""
  with monkeypatch.context() as patch:
    patch.setattr(interrupts.Interrupts, "exit_code",
                  lambda self, now: 143 if now == 3 else None)
    with pytest.raises(interrupts.Interrupted):
      train(config, workdir)
  train(config, workdir)
  expected, got = _arrays(finished), _arrays(workdir)
  assert set(expected) == set(got)
  for name, value in expected.items():
    np.testing.assert_array_equal(value, got[name], err_msg=name)
  return {name.split("/")[0] for name in got}


def test_stage_2_resumes_bit_identically(
    classifier, stage1, stage2, tmp_path, monkeypatch):
  assert _assert_continues(
      stage2_config(classifier, stage1), stage2, tmp_path, monkeypatch) == {
          "params", "opt", "ema", "step"}  # The frozen stage 1 is not saved.


@pytest.mark.slow
def test_stage_1_resumes_bit_identically(classifier, tmp_path, monkeypatch):
  """The run stops just after the discriminator has started."""
  config = functools.partial(stage1_config, classifier, **{
      "gan.start_percent": 0.5, "ema_decay": 0.9})
  finished = train(config(), tmp_path / "finished")
  assert _assert_continues(
      config(), finished, tmp_path / "run", monkeypatch) == {
          "params", "opt", "ema", "step", "disc", "codebook"}


def test_eval_only_repeats_measurements_and_pictures(stage2, tmp_path):
  path = stage2 / "pictures" / "samples" / "images" / "00000004.png"
  before = path.read_bytes()
  path.unlink()
  values = eval_only.evaluate(
      workdir_lib.load_config(str(stage2)), str(stage2))
  last = rows(stage2)[-1]
  for name, value in values.items():
    if not isinstance(value, np.ndarray):
      np.testing.assert_allclose(value, last[name], rtol=1e-6, err_msg=name)
  assert path.read_bytes() == before


def test_the_command_writes_samples_from_any_checkpoint(stage1, stage2, capsys):
  config = workdir_lib.load_config(str(stage2))
  make = functools.partial(sample.sample, config, str(stage2), num=5)
  grid = make(pred="sample(temperature=0.9, top_k=5)", label=3)
  assert Image.open(grid).size == (2 * 33 - 1, 2 * 33 - 1)
  assert "5 images" in capsys.readouterr().out
  first = [np.asarray(Image.open(path)) for path in sorted(
      (stage2 / "samples" / "00000004_sample_temperature=0.9_top_k=5_label=3"
       ).iterdir())]
  assert len(first) == 5 and first[0].shape == (32, 32)
  # A grid of 8 x 10 codes.
  wide = make(pred="sample(size=(8, 10))", num=1)
  assert Image.open(wide).size == (40, 32)
  shown = sample.sample(workdir_lib.load_config(str(stage1)), str(stage1),
                        pred="reconstruct", num=1)
  assert Image.open(shown).size == (32, 32)
  for kw, message in ((dict(pred="smaple"), "'smaple'.*'sample'"),
                      (dict(pred="nll"), "does not predict images"),
                      (dict(label=-1), "--label=-1 is not a class; .* 0 to 9"),
                      (dict(label=10), "--label=10 is not a class; .* 0 to 9"),
                      (dict(step=3), "no checkpoint|step 3")):
    with pytest.raises((config_lib.ConfigError, checkpoints.StorageError),
                       match=message):
      make(**kw)


def test_stage_1_encodes_in_evaluation_mode(classifier, stage1):
  """Stage 1 has dropout, which would need random numbers in training mode.

  Stage 2 trains without giving it any, and its codes do not vary.
  """
  config = stage2_config(classifier, stage1, **{"evals": None})
  built = build_lib.build(config)
  with sharding.use(built.mesh, built.rules):
    state = state_lib.make(built.task, built.info, built.rng_init,
                           built.shapes, built.shardings)
    frozen = state_lib.put_frozen(built.task, built.strategy, built.mesh)
    stored = checkpoints.read_arrays(os.path.join(stage1, "checkpoints"), 4)
    for name, value in tree.flatten_with_names(frozen):
      np.testing.assert_array_equal(value, stored[name], err_msg=name)
    assert set(frozen) == {"params", "codebook"}
    with built.data.start(0, built.batch_sharding) as batches:
      batch = next(batches)
    nll = jax.jit(built.task.predict_fns["nll"])
    codes = nll({**state, "frozen": frozen}, batch)["codes"]
    later = {**state, "frozen": frozen, "step": np.int32(7)}
    np.testing.assert_array_equal(codes, nll(later, batch)["codes"])


def test_a_workdir_of_the_wrong_kind_is_refused(classifier, stage1):
  with pytest.raises(config_lib.ConfigError, match="no config.json"):
    build_lib.build(stage2_config(classifier, "nowhere"))
  with pytest.raises(config_lib.ConfigError, match="trainer None.*stage1"):
    build_lib.build(stage2_config(classifier, classifier))
  with pytest.raises(config_lib.ConfigError,
                     match="'proj.vqgan.stage1', but a run of"):
    build_lib.build(stage1_config(stage1))
