"""Builds every config of NeRF at full size; trains small ones for two steps."""

import importlib
import json
import pathlib

from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import train as train_lib
from big_vision import tree
from big_vision.tools import make_scene
import jax
import numpy as np
import pytest

from tests import ranged
from tests.proj.nerf import llff_files

NAMES = ("analytic", "analytic_voxels", "blender", "llff")
# Changes that make a config small; voxels have one field and no network.
SMALL = {"total_steps": 2, "input.batch_size": 8, "log_training_steps": 1,
         "render.num_coarse": 4, "evals.film.num_frames": 1,
         "evals.film.batch_size": 200, "evals.test.batch_size": 200,
         "evals.test.skip_first": True}
SMALL_NETWORK = {"render.num_fine": 0, "model.width": 8, "model.depth": 2,
                 "model.skip": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Writes "lego" in the Blender format and "fern" in the LLFF format."""
  path = tmp_path_factory.mktemp("root")
  make_scene.make(
      str(path / "lego"), size=12, num_train=2, num_val=8, num_test=1)
  (path / "fern").mkdir()
  llff_files.write(path / "fern", llff_files.forward(), size=(48, 64))
  return path


def _config(name, root, **changes):
  module = importlib.import_module(f"big_vision.proj.nerf.configs.{name}")
  config = module.get_config(
      f"root={root}" if name in ("blender", "llff") else f"scene={root}/lego")
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  return config_lib.resolve(config)


def test_no_config_is_forgotten():
  folder = pathlib.Path(importlib.import_module(
      "big_vision.proj.nerf.configs").__file__).parent
  assert {file.stem for file in folder.glob("*.py")} - {"__init__"} == set(
      NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_builds_without_allocating(name, root):
  config = _config(name, root)
  with ranged.recorded() as paths:
    built = build_lib.build(config)
    build_lib.loop_options(config, built.info)
    build_lib.make_evaluators(config, built, "workdir")
  ranged.assert_all_numbers_are_checked(config, paths)
  if name in ("blender", "llff"):
    assert tree.num_elements(built.shapes["params"]) == 1_191_688
    assert built.info.batch_size == 4096
    # The published schedule falls from 5e-4 to 5e-5 over 250k steps.
    schedule = built.task.sched_fns["global_schedule"]
    np.testing.assert_allclose(config.lr * schedule(0), 5e-4)
    np.testing.assert_allclose(config.lr * schedule(250_000), 5e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_trains_two_steps(name, root, tmp_path, monkeypatch):
  one = jax.devices()[:1]  # Compiles faster than for all 8.
  monkeypatch.setattr(jax, "devices", lambda *args: one)
  changes = {**SMALL, **({"model.size": 4} if name == "analytic_voxels"
                         else SMALL_NETWORK)}
  if name == "llff":
    changes |= {"render.num_fine": 4}
  if name == "blender":
    changes |= {"evals.val.batch_size": 200}
  if name == "analytic":
    changes |= {"schedule.warmup_steps": 1}
  jax.config.update("jax_disable_most_optimizations", True)
  try:
    train_lib.train(_config(name, root, **changes), str(tmp_path))
  finally:
    jax.config.update("jax_disable_most_optimizations", False)
  rows = [json.loads(line) for line in
          (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows][-1] == 2
  assert np.isfinite(rows[-1]["training_loss"])
  assert np.isfinite(rows[-1]["test/psnr"])
  assert (tmp_path / "film.gif").exists()


def test_an_unknown_scene_is_refused():
  from big_vision.proj.nerf.configs import blender
  with pytest.raises(config_lib.ConfigError, match="'legs' .*'lego'"):
    blender.get_config("scene=legs")
