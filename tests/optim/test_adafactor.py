"""Own optimizers against NumPy."""

from big_vision import optim
import jax.numpy as jnp
import numpy as np


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
