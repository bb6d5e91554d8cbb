"""Builds every config at full size; trains it for two steps on small data."""

import importlib
import json
import pathlib

import big_vision
from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import train as train_lib
from big_vision import tree
from big_vision.configs import fashion_mnist_models
from big_vision.hardware import flops as flops_lib
from big_vision.tools import sweep
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from tests import ranged

# The argument and changes that fit a config to the generated data.
FULL = {
    "vit_s16_i1k": (None, {}),
    "vit_i1k": (None, {}),
    "vit_i21k": (None, {"input.data.split": "full[10:]",
                        "evals.minival.data.split": "full[:10]"}),
    "deit_s16_i1k": (None, {}),
    "mlp_mixer_i1k": (None, {}),
    "bit_i1k": (None, {}),
    "transfer": (None, {}),
    "fashion_mnist": (None, {}),
    "fashion_mnist_models": ("model=ut", {}),
    "quickstart": (None, {}),
    "sequences": ("task=addition", {}),
    "proj.pvr.configs.compositional": (None, {}),
}
# Projects whose own tests build and train their configs.
OWN_TESTS = ("proj.nerf.", "proj.vqgan.")
# Arguments that select another model or task.
MORE = [
    ("fashion_mnist_models", "model=mixer"),
    ("fashion_mnist_models", "model=resnet"),
    ("fashion_mnist_models", "model=performer"),
    ("fashion_mnist_models", "model=performer,redraw_steps=100"),
    ("sequences", "task=copy"),
    ("sequences", "task=reverse"),
    ("proj.pvr.configs.compositional", "model=transformer"),
]
PARAMETERS = {
    # Published for S/16 with 1,000 classes: 22,050,664. Here the class token
    # has no position embedding.
    "deit_s16_i1k": 22_050_664 - 384,
    # No class token, position embeddings without parameters, a pre-logits
    # layer.
    "vit_s16_i1k": 22_050_664 - (1 + 197) * 384 + 384 * 384 + 384,
    # Published for B/16: 86,567,656. No position embedding of the class token,
    # a pre-logits layer.
    "vit_i1k": 86_567_656 - 768 + 768 * 768 + 768,
    # Published, and counted by timm.
    "mlp_mixer_i1k": 59_880_472,
    "bit_i1k": 25_557_032,
}
# Configs too large for tests; these train with the argument "runlocal".
BIG = {"vit_s16_i1k", "vit_i1k", "vit_i21k", "deit_s16_i1k", "mlp_mixer_i1k",
       "bit_i1k", "transfer"}


def _config(name, arg=None, **changes):
  module = importlib.import_module(
      f"big_vision.{name if '.' in name else 'configs.' + name}")
  config = module.get_config(arg)
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  return config_lib.resolve(config)


def test_no_config_is_forgotten():
  folder = pathlib.Path(big_vision.__file__).parent
  names = {path.stem for path in (folder / "configs").glob("*.py")}
  names |= {".".join(path.relative_to(folder).with_suffix("").parts)
            for path in folder.glob("proj/*/configs/*.py")
            if path.stem != "__init__"}
  names = {name for name in names
           if name != "__init__" and not name.startswith("common")}
  assert {name for name in names if not name.startswith(OWN_TESTS)} == set(FULL)


@pytest.mark.parametrize("name", sorted(FULL))
def test_builds_without_allocating(name, imagenet_like, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", imagenet_like)
  arg, changes = FULL[name]
  if name in BIG - {"transfer"}:
    # The generated data has epochs shorter than the warm-up of these configs.
    changes = {"total_epochs": None, "total_steps": 50_000, **changes}
  if name == "vit_i21k":
    changes["evals.fewshot.datasets.imagenet"] = (
        "imagenet2012", "train", "validation")
  config = _config(name, arg, **changes)
  with ranged.recorded() as paths:
    built = build_lib.build(config)
    build_lib.loop_options(config, built.info)
    build_lib.make_evaluators(config, built)
  ranged.assert_all_numbers_are_checked(config, paths)
  assert built.info.total_steps > 0
  assert built.shapes["params"]
  if name in PARAMETERS:
    assert tree.num_elements(built.shapes["params"]) == PARAMETERS[name]


@pytest.mark.parametrize("name, arg", MORE)
def test_other_models_have_a_step(name, arg, imagenet_like, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", imagenet_like)
  built = build_lib.build(_config(name, arg))
  assert built.shapes["params"]
  changed, measured = jax.eval_shape(
      built.task.update, {**built.shapes, "frozen": {}},
      dict(built.info.batch_spec), built.rng_train)
  assert jax.tree.map(lambda x: x.shape, changed["params"]) == (
      jax.tree.map(lambda x: x.shape, built.shapes["params"]))
  assert measured["training_loss"].shape == ()


@pytest.mark.parametrize("path, points", [
    ("configs/fashion_mnist_models.py", [*fashion_mnist_models.MODELS,
                                         "performer_redrawn"]),
    ("proj/pvr/configs/compositional.py", ["transformer", "ut", "ut_saving"])])
def test_the_sweeps_are_valid(path, points, tmp_path):
  path = str(pathlib.Path(big_vision.__file__).parent / path)
  loaded = sweep.load_points(path, str(tmp_path), [0, 1])
  assert [point.name for point in loaded[::2]] == points
  assert [point.config.seed for point in loaded] == [0, 1] * len(points)
  if points[-1] == "ut_saving":
    assert loaded[-1].config.resume == str(tmp_path / "ut" / "seed=1")


def test_the_models_of_fashion_mnist_cost_the_same():
  """Counts the multiplications of the traced gradient."""
  for name, (module, mflop, kw) in fashion_mnist_models.MODELS.items():
    model = importlib.import_module(f"big_vision.models.{module}").Model(
        num_classes=10, **kw)
    image = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)

    def loss(params, variables, image, model=model):
      logits, _ = model.apply(
          {**variables, "params": params}, image, train=True)
      return logits.mean()

    flops = flops_lib.count(jax.make_jaxpr(jax.grad(loss))(
        variables["params"], variables, image))
    assert flops / 2e6 == pytest.approx(mflop, rel=.02), name
    steps = fashion_mnist_models.get_config(f"model={name}").total_steps
    assert steps * mflop == pytest.approx(938 * 98, rel=.005), name


@pytest.mark.parametrize("name", sorted(FULL))
def test_trains_two_steps(name, imagenet_like, monkeypatch, tmp_path):
  monkeypatch.setenv("TFDS_DATA_DIR", imagenet_like)
  changes = {"total_steps": 2, "total_epochs": None, "input.batch_size": 8,
             "log_training_steps": 1, "log_training_epochs": None,
             **FULL[name][1]}
  arg = "runlocal" if name in BIG else FULL[name][0]
  if name in BIG:
    changes |= {"schedule.warmup_steps": 1, "schedule.warmup_epochs": None}
  config = _config(name, arg, **changes)
  train_lib.train(config, str(tmp_path))
  rows = [json.loads(line)
          for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == [0, 1, 2]
  assert any(key.endswith("prec@1") for key in rows[-1])
  assert np.isfinite(rows[-1]["training_loss"])
  # Evaluators and options that only one config uses.
  extra = {"vit_i21k": {"z/pets_1shot", "num_rollbacks"},
           "fashion_mnist": {"knn/knn@20", "train/loss"}}
  assert extra.get(name, set()) <= set(rows[-1])
  assert (tmp_path / "checkpoints_best").exists() == (name == "transfer")


def test_quickstart_on_a_folder_of_pictures(tmp_path):
  generator = np.random.default_rng(0)
  for name, shade in (("dark", 40), ("light", 200)):
    (tmp_path / "data" / name).mkdir(parents=True)
    for i in range(20):
      pixels = generator.integers(shade - 30, shade + 30, (40, 50, 3), np.uint8)
      Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
  config = _config(
      "quickstart", f"data={tmp_path / 'data'}", total_epochs=None,
      total_steps=12,
      **{"input.batch_size": 16, "schedule.warmup_percent": 0.2})
  train_lib.train(config, str(tmp_path / "run"))
  last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
  assert json.loads(last)["test/prec@1"] == 1
