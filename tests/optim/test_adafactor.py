"""Own optimizers against NumPy."""

from big_vision import optim
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest


@pytest.mark.parametrize("kw, cap", [({}, 0.999), (dict(beta2_cap=0.6), 0.6)])
@pytest.mark.parametrize("step", [1, 3, 5_000, 6_000, 10 ** 6])
def test_adafactors_decay_grows_up_to_its_cap(kw, cap, step):
  """Without a cap it would be 0.99891 at 5,000 steps and 0.99905 at 6,000."""
  tx = optim.scale_by_adafactor(momentum=None, **kw)
  params = {"w": jnp.zeros(1)}
  state = tx.init(params)
  _, state = tx.update({"w": jnp.ones(1)}, state, params)  # Its square is 1.
  state = optax.tree_utils.tree_set(state, count=jnp.int32(step))
  updates, _ = jax.jit(tx.update)({"w": jnp.full(1, 1000.)}, state, params)
  beta = min(cap, 1 - (step + 1) ** -0.8)
  np.testing.assert_allclose(
      updates["w"], 1000 / np.sqrt(beta + (1 - beta) * 1e6), rtol=2e-4)


def test_adafactor_by_hand():
  params = {"kernel": jnp.asarray(
      np.random.default_rng(0).normal(size=(40, 33)), jnp.float32)}
  tx = optim.scale_by_adafactor(dtype_momentum="float32")
  state = tx.init(params)
  row, column, momentum = 0., 0., 0.
  for t in range(3):
    g = np.random.default_rng(t + 5).normal(size=(40, 33))
    updates, state = tx.update(
        {"kernel": jnp.asarray(g, jnp.float32)}, state, params)
    beta = min(0.999, 1 - (t + 1) ** -0.8)
    square = g ** 2 + 1e-30
    row = beta * row + (1 - beta) * square.mean(1)
    column = beta * column + (1 - beta) * square.mean(0)
    second = np.outer(row, column) / row.mean()
    momentum = 0.9 * momentum + 0.1 * g / np.sqrt(second)
    np.testing.assert_allclose(updates["kernel"], momentum, rtol=1e-4)


def test_momentum_by_hand():
  params = {"w": jnp.zeros(3)}
  tx = optim.momentum_hp(momentum=0.5, dtype="float32")
  state, trace = tx.init(params), 0.
  for t in range(3):
    updates, state = tx.update({"w": jnp.full(3, 1. + t)}, state, params)
    trace = 0.5 * trace + 1. + t
    np.testing.assert_allclose(updates["w"], trace)
