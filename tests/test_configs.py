"""Every config is built as it is, and trained for two steps in the small."""

import importlib
import json
import pathlib

import big_vision
from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import train as train_lib
from big_vision import tree
from big_vision.configs import fashion_mnist_models
from big_vision.hardware import hlo
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

# What makes a config fit the generated data; (argument, changes).
FULL = {
    "vit_s16_i1k": (None, {}),
    "vit_i1k": (None, {}),
    "vit_i21k": (None, {"input.data.split": "full[10:]",
                        "evals.minival.data.split": "full[:10]"}),
    "mlp_mixer_i1k": (None, {}),
    "bit_i1k": (None, {}),
    "transfer": (None, {}),
    "fashion_mnist": (None, {}),
    "fashion_mnist_models": ("model=ut", {}),
    "quickstart": (None, {}),
    "sequences": ("task=addition", {}),
    "proj.pvr.configs.compositional": (None, {}),
}
# Projects whose tests have their own list, and such a test as the first below.
OWN_TESTS = ("proj.nerf.", "proj.vqgan.")
# Other arguments that make other models or tasks.
MORE = [
    ("fashion_mnist_models", "model=mixer"),
    ("fashion_mnist_models", "model=resnet"),
    ("fashion_mnist_models", "model=performer"),
    ("sequences", "task=copy"),
    ("sequences", "task=reverse"),
    ("proj.pvr.configs.compositional", "model=transformer"),
]
PARAMETERS = {
    # Closed form: ViT-S/16 with 1,000 classes, rep_size, no stored posemb.
    "vit_s16_i1k": 22_122_472,
    # systems.md: B/16 "tok" with 1,000 classes, plus the pre-logits layer.
    "vit_i1k": 86_566_888 + 768 * 768 + 768,
    # Published, and what timm counts.
    "mlp_mixer_i1k": 59_880_472,
    "bit_i1k": 25_557_032,
}
# Those for which nothing that runs here is the size they are for.
BIG = {"vit_s16_i1k", "vit_i1k", "vit_i21k", "mlp_mixer_i1k", "bit_i1k",
       "transfer"}


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
  names -= {"__init__", "common", "common_i1k"}
  assert {name for name in names if not name.startswith(OWN_TESTS)} == set(FULL)


@pytest.mark.parametrize("name", sorted(FULL))
def test_builds_without_allocating(name, imagenet_like, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", imagenet_like)
  arg, changes = FULL[name]
  if name in BIG - {"transfer"}:
    # Epochs of the generated data are shorter than these configs' warm-up.
    changes = {"total_epochs": None, "total_steps": 50_000, **changes}
  config = _config(name, arg, **changes)
  built = build_lib.build(config)
  build_lib.make_evaluators(config, built)
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


def test_the_models_of_fashion_mnist_cost_the_same():
  """By counting what the traced gradient multiplies."""
  for name, (module, mflop, kw) in fashion_mnist_models.MODELS.items():
    model = importlib.import_module(f"big_vision.models.{module}").Model(
        num_classes=10, **kw)
    image = jax.ShapeDtypeStruct((2, 28, 28, 1), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)

    def loss(params, variables, image, model=model):
      logits, _ = model.apply(
          {**variables, "params": params}, image, train=True)
      return logits.mean()

    flops = hlo.count_flops(jax.make_jaxpr(jax.grad(loss))(
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
    changes["schedule.warmup_steps"] = 1
  config = _config(name, arg, **changes)
  train_lib.train(config, str(tmp_path))
  rows = [json.loads(line)
          for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == [0, 1, 2]
  assert any(key.endswith("prec@1") for key in rows[-1])
  assert np.isfinite(rows[-1]["training_loss"])


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
