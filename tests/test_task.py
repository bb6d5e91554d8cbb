"""Task transformers on a quadratic whose every step has a closed form."""

from big_vision import task as task_lib
from big_vision.task import Task
import jax
import jax.numpy as jnp
import numpy as np
import pytest


def _task():
  """w <- w - 0.1 * (w - mean of the batch)."""
  def init(rng, batch, given):
    del rng, batch
    return {"params": {"w": jnp.ones(2)}, **given}

  def update(state, batch, rng):
    del rng
    w = state["params"]["w"]
    return ({"params": {"w": w - .1 * (w - batch["x"].mean(0))}},
            {"training_loss": w.sum()})

  def predict(state, batch, *, rng=None, scale=1):
    noise = 0 if rng is None else jax.random.normal(rng)
    return scale * state["params"]["w"] + batch["x"] + noise

  return Task(init, update, {"predict": predict})


def test_ema_closed_form_and_twins():
  task = task_lib.with_ema(_task(), 0.9)
  state = task.init(None, None, {})
  np.testing.assert_array_equal(state["ema"]["w"], state["params"]["w"])
  batch = {"x": jnp.zeros((4, 2))}
  # w_t = 0.9^t; ema_t = 0.9 ema_{t-1} + 0.1 w_t, so 0.9^t (1 + 0.1 t).
  for t in range(1, 6):
    changed, _ = task.update(state, batch, None)
    state = {**state, **changed}
    np.testing.assert_allclose(state["ema"]["w"], .9 ** t * (1 + .1 * t),
                               rtol=1e-6)
  np.testing.assert_array_equal(
      task.predict_fns["predict_ema"](state, batch, scale=2)[0],
      2 * state["ema"]["w"])
  np.testing.assert_array_equal(
      task.predict_fns["predict"](state, batch)[0], state["params"]["w"])


def test_ema_twins_draw_from_the_same_key():
  task = task_lib.with_ema(_task(), 0.9)
  state, batch = task.init(None, None, {}), {"x": jnp.zeros((4, 2))}
  rng = jax.random.key(3)
  np.testing.assert_array_equal(
      task.predict_fns["predict_ema"](state, batch, rng=rng),
      jnp.full((4, 2), 1 + jax.random.normal(rng)))


def test_ema_does_not_share_buffers_with_the_parameters():
  task = task_lib.with_ema(_task(), 0.9)
  state = jax.jit(lambda: task.init(None, None, {}))()
  jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)


def test_ema_is_not_restarted_where_it_was_given():
  task = task_lib.with_ema(_task(), 0.9)
  given = {"ema": {"w": jnp.full(2, 7.)}}
  assert task.init(None, None, given)["ema"]["w"][0] == 7


@pytest.mark.parametrize("decay", [1., -.1, 2])
def test_ema_decay_is_checked(decay):
  with pytest.raises(ValueError, match=str(decay)):
    task_lib.with_ema(_task(), decay)


def test_batch_fn_changes_training_only():
  task = task_lib.with_batch_fn(
      _task(), lambda batch, rng: {"x": batch["x"] + jax.random.normal(rng)})
  state, batch = task.init(None, None, {}), {"x": jnp.ones((4, 2))}
  first, _ = task.update(state, batch, jax.random.key(0))
  again, _ = task.update(state, batch, jax.random.key(0))
  other, _ = task.update(state, batch, jax.random.key(1))
  assert first["params"]["w"][0] == again["params"]["w"][0] != 1
  assert first["params"]["w"][0] != other["params"]["w"][0]
  np.testing.assert_array_equal(
      task.predict_fns["predict"](state, batch), 2 * np.ones((4, 2)))


def test_accumulation_is_the_gradient_of_the_whole_batch():
  def loss(params, batch, rng):
    del rng
    error = batch["x"] @ params["w"] - batch["y"]
    return (error ** 2).mean(), {"bias": error.mean()}
  value_and_grad = jax.value_and_grad(loss, has_aux=True)
  generator = np.random.default_rng(0)
  batch = {"x": generator.normal(size=(12, 3)), "y": generator.normal(size=12)}
  batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch)
  params = {"w": jnp.asarray([1., 2., 3.])}
  whole = value_and_grad(params, batch, jax.random.key(0))
  for steps in (1, 2, 3, 12):
    parts = task_lib.accumulate(value_and_grad, steps)(
        params, batch, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
                 whole, parts)
  with pytest.raises(ValueError, match="nearest that do are 10 and 15"):
    task_lib.accumulate(value_and_grad, 5)(params, batch, jax.random.key(0))


def test_accumulation_gives_every_part_its_own_randomness():
  def noise(params, batch, rng):
    del batch
    draw = jax.random.normal(rng)
    return (params["w"] * draw, {"square": draw ** 2})
  value_and_grad = jax.value_and_grad(noise, has_aux=True)
  (_, aux), grads = task_lib.accumulate(value_and_grad, 4)(
      {"w": 1.}, {"x": jnp.zeros(8)}, jax.random.key(0))
  draws = [float(jax.random.normal(key))
           for key in jax.random.split(jax.random.key(0), 4)]
  np.testing.assert_allclose(grads["w"], np.mean(draws), rtol=1e-6)
  np.testing.assert_allclose(
      aux["square"], np.mean(np.square(draws)), rtol=1e-6)
