"""Tests that a config's keys reach the parts they are meant for."""

from big_vision import build as build_lib
from big_vision import config as config_lib
import jax
import numpy as np
import pytest
import tiny_config


def _config(**changes):
  config = tiny_config.get_config()
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  return config_lib.resolve(config)


def test_evaluators_draw_from_the_seed_of_the_run():
  config = _config(seed=7)
  evaluators = build_lib.make_evaluators(config, build_lib.build(config))
  assert [evaluator.loader.seed for evaluator in evaluators] == [7, 7]


@pytest.mark.parametrize("changes, words", [
    ({"model_load": dict(dont_load=["head/kernel"])}, "model_load.*model_init"),
    ({"keep_best": dict(mode="min")}, "keep_best.*'metric'"),
    ({"profile": dict(num_steps=3)}, "profile.*'first_step'")])
def test_options_without_effect_are_errors(changes, words):
  config = _config(**changes)
  with pytest.raises(config_lib.ConfigError, match=words):
    build_lib.loop_options(config, build_lib.build(config).info)


@pytest.mark.parametrize("changes, words", [
    ({"model.num_heads": 3}, "width 16 .* num_heads 3"),
    ({"model.num_heads": 0}, "num_heads is 0.*at least 1"),
    ({"model.width": -16}, "width is -16.*at least 1"),
    ({"model.depth": -1}, "depth is -1.*at least 1"),
    ({"model.mlp_dim": 0}, "mlp_dim is 0.*at least 1"),
    ({"num_classes": -1}, "num_classes.*-1.*at least 1"),
    ({"model.patch_size": (3,)}, r"multiples of patch_size \(3, 3\)"),
    ({"model.patch_size": (4, 4, 4)}, r"patch_size must be .*\(4, 4, 4\)"),
    ({"model.patch_size": ()}, r"patch_size must be .*\(\)"),
    ({"model.patch_size": (4, 0)}, r"patch_size is \[4, 0\]"),
    ({"model.dropout": 1.5}, r"dropout is 1.5.*\[0, 1\)"),
    ({"model.dropout": -0.1}, r"dropout is -0.1.*\[0, 1\)"),
    ({"model.stoch_depth": 1.0}, r"stoch_depth is 1.0.*\[0, 1\)"),
    ({"model.dtype_mm": "float16"}, "dtype_mm 'float16'"),
    ({"model.pool_type": "gapp"}, "pool_type 'gapp'.*'gap'"),
    ({"model.attention": "dens"}, "attention 'dens'.*'dense'"),
    ({"model.attention": "local(window=0)"}, "window"),
    ({"model.posemb": "sin"}, "posemb 'sin'"),
    ({"model.gelu": "exact"}, "gelu 'exact'"),
    ({"model.remat_policy": "all"}, "'all'"),
    ({"model.variant": "Q/4"}, "variant 'Q/4'"),
    ({"model_name": "bit", "model": dict(depth=51)}, "Unknown depth 51"),
    ({"model_name": "bit", "model": dict(depth=(3, 0))}, "depth is"),
    ({"loss": "sigmoid"}, "sigmoid")])
def test_options_that_a_model_refuses_are_errors_of_the_config(changes, words):
  with pytest.raises(config_lib.ConfigError, match=words):
    build_lib.build(_config(**changes))


@pytest.mark.parametrize("name, changes, words", [
    ("missing.npz", {}, "Failed to read .*missing.npz: No such file"),
    ("weights.txt", {}, "neither an .npz or .safetensors"),
    ("damaged.npz", {}, "damaged.npz is not an .npz file"),
    ("other.npz", {}, "only in .*other.npz: a float32.*only in the model"),
    ("other.npz:sub", {}, "There is no 'sub'")])
def test_unsuitable_weights_are_errors_of_the_config(
    tmp_path, name, changes, words):
  (tmp_path / "damaged.npz").write_bytes(b"PK")
  np.savez(tmp_path / "other.npz", a=np.zeros(3, np.float32))
  built = build_lib.build(_config(
      model_init=str(tmp_path / name), **changes))
  with pytest.raises(config_lib.ConfigError, match=f"(?s){words}"):
    built.task.load(built.shapes)


@pytest.mark.parametrize("model", [
    lambda image: jax.numpy.concatenate([]), lambda image: int("a"),
    lambda image: image.reshape(7, 5)])
def test_bugs_of_a_model_keep_their_errors(monkeypatch, model):
  """Errors that no `raise` of a model has raised need their traceback."""
  monkeypatch.setattr(
      "big_vision.layers.checks.check_patches", lambda image, *args: (
          model(image)))
  with pytest.raises((TypeError, ValueError)) as caught:
    build_lib.build(_config())
  assert not isinstance(caught.value, config_lib.ConfigError)


@pytest.mark.parametrize("size", [(4,), (4, 4)])
def test_one_number_is_the_side_of_a_square_patch(size):
  built = build_lib.build(_config(**{"model.patch_size": size}))
  assert built.shapes["params"]["embedding"]["kernel"].shape == (4, 4, 1, 16)


def test_the_head_starts_at_its_configured_bias():
  def biases(**changes):
    built = build_lib.build(_config(**changes))
    batch = {key: jax.numpy.zeros(spec.shape, spec.dtype)
             for key, spec in built.info.batch_spec.items()}
    state = jax.jit(built.task.init)(built.rng_init, batch, {})
    return np.asarray(state["params"]["head"]["bias"])
  np.testing.assert_array_equal(biases(), np.zeros(10))
  np.testing.assert_array_equal(
      biases(init_head_bias=-2.5), np.full(10, -2.5))
