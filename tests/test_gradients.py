"""Tests transformers of value_and_grad by whole batches and closed forms."""

from big_vision import config as config_lib
from big_vision import gradients
import jax
import jax.numpy as jnp
import numpy as np
import pytest


def _linear_problem():
  """Returns (value_and_grad, params, batch) of a regression on 12 examples."""
  def loss(params, batch, rng):
    del rng
    error = batch["x"] @ params["w"] - batch["y"]
    return (error ** 2).mean(), {"bias": error.mean()}
  generator = np.random.default_rng(0)
  batch = {"x": generator.normal(size=(12, 3)), "y": generator.normal(size=12)}
  batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch)
  return (jax.value_and_grad(loss, has_aux=True),
          {"w": jnp.asarray([1., 2., 3.])}, batch)


@pytest.mark.parametrize("steps", [1, 2, 3, 12])
def test_accumulation_is_the_gradient_of_the_whole_batch(steps):
  value_and_grad, params, batch = _linear_problem()
  whole = value_and_grad(params, batch, jax.random.key(0))
  parts = gradients.accumulate(value_and_grad, steps)(
      params, batch, jax.random.key(0))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
               whole, parts)


def test_accumulation_gives_every_part_its_own_randomness():
  def noise(params, batch, rng):
    del batch
    draw = jax.random.normal(rng)
    return (params["w"] * draw, {"square": draw ** 2})
  value_and_grad = jax.value_and_grad(noise, has_aux=True)
  (_, aux), grads = gradients.accumulate(value_and_grad, 4)(
      {"w": 1.}, {"x": jnp.zeros(8)}, jax.random.key(0))
  draws = [float(jax.random.normal(key))
           for key in jax.random.split(jax.random.key(0), 4)]
  np.testing.assert_allclose(grads["w"], np.mean(draws), rtol=1e-6)
  np.testing.assert_allclose(
      aux["square"], np.mean(np.square(draws)), rtol=1e-6)


def test_accumulation_sums_in_float32_and_keeps_dtypes():
  """In bfloat16, 256 + 1 is 256: the sum of 64 values would be wrong."""
  def loss(params, batch, rng):
    del rng
    return (params["w"] * batch["x"]).mean().astype(jnp.bfloat16), ()
  x = jnp.asarray([256.] + [1.] * 63)
  (value, _), grads = gradients.accumulate(
      jax.value_and_grad(loss, has_aux=True), 64)(
          {"w": jnp.ones((), jnp.bfloat16)}, {"x": x}, jax.random.key(0))
  assert value.dtype == grads["w"].dtype == jnp.bfloat16
  np.testing.assert_allclose(value, x.mean(), rtol=4e-3)
  np.testing.assert_allclose(grads["w"], x.mean(), rtol=4e-3)


def test_parts_take_examples_from_all_over_the_batch():
  """A device that holds examples 0 to 3 of 8 then works on every part."""
  seen = []
  def value_and_grad(params, batch, rng):
    del rng
    jax.debug.callback(lambda x: seen.append(list(x)), batch["x"], ordered=True)
    return (params["w"] * 0, ()), params
  gradients.accumulate(value_and_grad, 2)(
      {"w": jnp.ones(())}, {"x": jnp.arange(8)}, jax.random.key(0))
  jax.effects_barrier()
  assert seen == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_batches_that_do_not_split_are_refused():
  value_and_grad, params, batch = _linear_problem()
  accumulated = gradients.accumulate(value_and_grad, 5)
  with pytest.raises(ValueError, match="nearest that do are 10 and 15"):
    accumulated(params, batch, jax.random.key(0))
  with pytest.raises(ValueError, match="'scale' has no axis of examples"):
    gradients.accumulate(value_and_grad, 2)(
        params, {**batch, "scale": jnp.ones(())}, jax.random.key(0))


def test_integers_beside_the_loss_are_refused_and_not_rounded():
  def loss(params, batch, rng):
    del rng
    return params["w"] * batch["x"].sum(), {
        "right": (batch["x"] > 0).sum(), "mean": batch["x"].mean()}
  with pytest.raises(ValueError, match=r"floats.*\{'right': 'int32'\}"):
    gradients.accumulate(jax.value_and_grad(loss, has_aux=True), 2)(
        {"w": 1.}, {"x": jnp.ones(8)}, jax.random.key(0))


def test_accumulation_changes_losses_that_compare_examples():
  """The reason for `mean_over`: parts have other negatives than the whole."""
  def contrastive(params, batch, rng):
    del rng
    logits = params["t"] * batch["x"] @ batch["x"].T
    return -jnp.diagonal(jax.nn.log_softmax(logits)).mean(), ()
  value_and_grad = jax.value_and_grad(contrastive, has_aux=True)
  _, _, batch = _linear_problem()
  args = {"t": 1.}, {"x": batch["x"]}, jax.random.key(0)
  (whole, _), _ = value_and_grad(*args)
  (parts, _), _ = gradients.accumulate(value_and_grad, 2)(*args)
  assert abs(whole - parts) > 0.1
  with pytest.raises(config_lib.ConfigError,
                     match="grad_accum_steps is 2, but .* compares"):
    gradients.from_config({"grad_accum_steps": 2}, mean_over="batch")
  for config in ({}, {"grad_accum_steps": 1}):
    transform = gradients.from_config(config, mean_over="batch")
    assert transform(value_and_grad) is value_and_grad


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "2"])
def test_numbers_of_parts_are_checked(steps):
  with pytest.raises(config_lib.ConfigError, match="an integer of at least 1"):
    gradients.from_config({"grad_accum_steps": steps})


def test_the_config_says_how_many_parts():
  sizes = []
  def value_and_grad(params, batch, rng):
    del rng
    sizes.append(len(batch["x"]))
    return (params, ()), params
  gradients.from_config({"grad_accum_steps": 3})(value_and_grad)(
      jnp.ones(()), {"x": jnp.zeros(12)}, jax.random.key(0))
  assert set(sizes) == {4}


def test_an_unknown_mean_over_is_an_error():
  with pytest.raises(ValueError, match="mean_over is 'tokens'.*'examples'"):
    gradients.from_config({}, mean_over="tokens")
