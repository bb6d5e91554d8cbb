"""A model's own losses and measurements: weights, logging, checks."""

import sys
import types

from big_vision import config as config_lib
from big_vision import sharding
from big_vision import state as state_lib
from big_vision.task import Info
from big_vision.trainers import classification
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

B, LR = 8, 0.1


class _WithLosses(nn.Module):
  """A linear classifier with losses on the features before its head."""
  num_classes: int
  gives: tuple[str, ...] = ("size", "spread")

  @nn.compact
  def __call__(self, image, *, train=False):
    x = nn.Dense(4, name="stem")(image.reshape(len(image), -1))
    values = {"size": jnp.mean(x ** 2), "spread": jnp.mean(jnp.abs(x)),
              "vector": jnp.mean(x, axis=1), "loss": jnp.mean(x),
              "odd": jnp.mean(x), "nan": jnp.mean(x) * jnp.nan}
    out = {"losses": {name: values[name] for name in self.gives},
           "measurements": {"largest": jnp.max(jnp.sum(image, axis=(1, 2, 3))),
                            "odd": jnp.asarray(3)}}
    return nn.Dense(self.num_classes, name="head")(x), out


@pytest.fixture(scope="module", autouse=True)
def _registered():
  module = types.ModuleType("big_vision.models.with_losses")
  module.Model = _WithLosses
  sys.modules[module.__name__] = module
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)
  del sys.modules[module.__name__]


def _batch():
  rng = np.random.default_rng(0)
  return {"image": rng.normal(size=(B, 2, 2, 1)).astype(np.float32),
          "labels": np.eye(3, dtype=np.float32)[rng.integers(0, 3, B)]}


def _step(num_steps=1, **kw):
  """(state before, state after, measurements, the task)."""
  config = config_lib.Config({**dict(
      model_name="with_losses", num_classes=3, loss="softmax_xent",
      optax_name="identity", lr=LR), **kw})
  spec = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _batch())
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  info = Info(total_steps=10, batch_size=B, data_size=80, batch_spec=spec,
              mesh=mesh)
  task = classification.make_task(config, info)
  rng = jax.random.key(0)
  shapes = state_lib.infer_shapes(task, info, rng)
  shardings = sharding.infer(shapes, sharding.DEFAULT_STRATEGY, mesh)
  state = state_lib.make(task, info, rng, shapes, shardings)
  before = jax.device_get(state)
  update = state_lib.make_update(task, rng, shardings, mesh)
  for _ in range(num_steps):
    state, measurements, ok = update(state, {}, _batch(), ())
    assert ok
  config.check_all_read()
  return before, *jax.device_get((state, measurements)), task


def _xent(params, batch):
  """Returns cross-entropy, size and spread, each written out."""
  x = batch["image"].reshape(B, -1) @ params["stem"]["kernel"] + (
      params["stem"]["bias"])
  logits = x @ params["head"]["kernel"] + params["head"]["bias"]
  xent = -jnp.mean(
      jnp.sum(batch["labels"] * jax.nn.log_softmax(logits), axis=1))
  return xent, jnp.mean(x ** 2), jnp.mean(jnp.abs(x))


@pytest.mark.parametrize("grad_accum_steps", [1, 4])
def test_the_weighted_sum_is_minimized_and_all_is_logged(grad_accum_steps):
  before, after, logged, _ = _step(
      grad_accum_steps=grad_accum_steps, aux_losses=dict(size=0.3, spread=-2.0))
  def total(params):
    xent, size, spread = _xent(params, _batch())
    return xent + 0.3 * size - 2.0 * spread
  xent, size, spread = jax.device_get(_xent(before["params"], _batch()))
  wanted, grads = jax.device_get(
      jax.value_and_grad(total)(before["params"]))
  assert logged["training_loss"] == pytest.approx(wanted, rel=1e-5)
  assert logged["training_loss"] != pytest.approx(xent, rel=1e-2)
  assert logged["training_size"] == pytest.approx(size, rel=1e-5)
  assert logged["training_spread"] == pytest.approx(spread, rel=1e-5)
  jax.tree.map(
      lambda old, new, grad: np.testing.assert_allclose(
          new, old - LR * grad, rtol=1e-4, atol=1e-6),
      before["params"], after["params"], grads)
  # Measurements are logged too, as means over the parts of a batch.
  sums = _batch()["image"].sum(axis=(1, 2, 3))
  largest = np.mean([sums[i::grad_accum_steps].max()
                     for i in range(grad_accum_steps)])
  assert logged["training_largest"] == pytest.approx(largest, rel=1e-5)
  assert logged["training_odd"] == 3
  assert {str(value.dtype) for value in logged.values()} == {"float32"}


def test_a_weight_of_zero_leaves_a_loss_out_but_logs_it():
  before, _, logged, _ = _step(aux_losses=dict(size=0, spread=0.0))
  xent, size, _ = jax.device_get(_xent(before["params"], _batch()))
  assert logged["training_loss"] == pytest.approx(xent, rel=1e-5)
  assert logged["training_size"] == pytest.approx(size, rel=1e-5)
  # Even if it is not finite: NaN times 0 is NaN.
  _, _, logged, _ = _step(model=dict(gives=("nan",)), aux_losses=dict(nan=0))
  assert np.isnan(logged["training_nan"])
  assert np.isfinite(logged["training_loss"])


def test_evaluation_sees_the_classification_loss_alone():
  before, after, _, task = _step(
      2, aux_losses=dict(size=1.0, spread=1.0), ema_decay=0.5)
  assert np.abs(after["ema"]["stem"]["kernel"]
                - after["params"]["stem"]["kernel"]).max() > 1e-4
  for name, key in (("loss", "params"), ("loss_ema", "ema")):
    values = task.predict_fns[name](after, _batch())["loss"]
    assert values.shape == (B,)
    np.testing.assert_allclose(
        values.mean(), _xent(after[key], _batch())[0], rtol=1e-5)
  assert before["ema"].keys() == before["params"].keys()


@pytest.mark.parametrize("kw,message", [
    (dict(aux_losses=dict(size=1, spreed=1)),
     r"weight for 'spreed', which .* return \(did you mean 'spread'\?\)\. It "
     r"returns \['size', 'spread'\]"),
    (dict(aux_losses=dict(size=1)),
     r"returns the losses \['spread'\], .*no weight; it has \['size'\]"),
    ({}, r"returns the losses \['size', 'spread'\].*weight of 0"),
    (dict(model=dict(gives=()), aux_losses=dict(size=1)), r"It returns \[\]"),
])
def test_losses_need_weights_and_weights_need_losses(kw, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    _step(**kw)


@pytest.mark.parametrize("name,message", [
    ("vector", r"'vector' must be a single number.*\(8,\)"),
    ("loss", "'loss' would be logged as 'training_loss', a name"),
    ("odd", "'odd' would be logged as 'training_odd', a name"),
])
def test_values_that_cannot_be_logged_are_errors(name, message):
  with pytest.raises(ValueError, match=message):
    _step(model=dict(gives=(name,)), aux_losses={name: 1})
