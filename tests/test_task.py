"""Tests task transformers on a quadratic, whose steps have a closed form."""

from big_vision import task as task_lib
from big_vision.task import Task
import jax
import jax.numpy as jnp
import numpy as np
import pytest


def _task():
  """Returns a task with the update w <- w - 0.1 * (w - mean of the batch)."""
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


def test_the_ema_has_its_closed_form_and_is_seen_by_twins():
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


def test_a_loaded_average_is_kept():
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


@pytest.mark.parametrize("steps, first_steps", [
    ([], [0]), ([0], [0]), ([3], [0, 3]), ([7, 3, 7], [0, 3, 7]), ([10], [0]),
    ([-1, 9, 11], [0, 9])])
def test_phases_begin_at_steps_within_the_run(steps, first_steps):
  static = lambda step: {"parts": sum(step >= start for start in steps)}
  phases = task_lib.phases_at(steps, static, 10)
  assert [phase.first_step for phase in phases] == first_steps
  for step in range(10):
    current = [phase for phase in phases if phase.first_step <= step][-1]
    assert current.static == static(step)


def test_transformers_keep_phases_and_static():
  static = lambda step: {"late": step >= 4}
  task = _task()._replace(
      static=static,
      phases=lambda total_steps: task_lib.phases_at([4], static, total_steps))
  assert task_lib.Phase(first_step=4, static={"late": True}) in task.phases(9)
  for changed in (task_lib.with_ema(task, 0.9),
                  task_lib.with_batch_fn(task, lambda batch, rng: batch)):
    assert changed.phases(9) == task.phases(9)
    assert changed.static(3) == {"late": False}
  assert _task().phases(9) == (task_lib.Phase(first_step=0, static={}),)


def test_transformers_pass_static_choices_to_the_update():
  def update(state, batch, rng, *, scale):
    del batch, rng
    return {"params": state["params"]}, {"training_loss": jnp.float32(scale)}
  task = _task()._replace(update=update)
  state = {**task.init(None, None, {}), "ema": {"w": jnp.ones(2)}}
  for changed in (task_lib.with_ema(task, 0.9),
                  task_lib.with_batch_fn(task, lambda batch, rng: batch)):
    _, measured = changed.update(state, {}, jax.random.key(0), scale=3)
    assert measured["training_loss"] == 3
