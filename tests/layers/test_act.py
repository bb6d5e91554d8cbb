"""Halting against loops over single tokens in plain Python."""

import math

from big_vision.layers import act
from big_vision.layers import pooling
import jax
import jax.numpy as jnp
import numpy as np
import pytest

M = 6


def _run(p, mask=None, epsilon=0.01):
  """Scans over the last axis of p [..., M]: (halting, weights [..., M])."""
  p = jnp.asarray(p)
  running = jnp.ones(p.shape[:-1], bool) if mask is None else jnp.asarray(mask)
  num_steps = p.shape[-1]
  def step(halting, xs):
    p, t = xs
    return act.advance(halting, p, t == num_steps, epsilon=epsilon)
  halting, weights = jax.lax.scan(
      step, act.start(running),
      (jnp.moveaxis(p, -1, 0), jnp.arange(1, num_steps + 1)))
  return halting, jnp.moveaxis(weights, 0, -1)


def _one_token(p, epsilon=0.01):
  """The definition for one token: (N, R, weights)."""
  p = np.asarray(p, np.float32)
  total = np.float32(0)
  for n, p_n in enumerate(p, start=1):
    if np.float32(total + p_n) >= np.float32(1 - epsilon) or n == len(p):
      remainder = np.float32(1) - total
      return n, remainder, [*p[:n - 1], remainder] + [0] * (len(p) - n)
    total += p_n


def _random(num=300, seed=0):
  rng = np.random.default_rng(seed)
  # Of all scales, so that every N comes up.
  p = rng.uniform(size=(num, M)) ** rng.uniform(0.3, 6, (num, 1))
  p[::20, 0] = 0.995
  return p.astype(np.float32)


@pytest.mark.parametrize("epsilon", [0.01, 0.3])
def test_each_token_is_as_if_alone(epsilon):
  p = _random()
  halting, weights = jax.device_get(
      _run(p.reshape(3, 100, M), epsilon=epsilon))
  counts = np.zeros(M + 1, int)
  for i, row in enumerate(p):
    num_steps, remainder, wanted = _one_token(row, epsilon)
    at = np.unravel_index(i, (3, 100))
    assert halting.num_steps[at] == num_steps
    np.testing.assert_allclose(halting.remainder[at], remainder, atol=1e-6)
    np.testing.assert_allclose(weights[at], wanted, atol=1e-6)
    counts[num_steps] += 1
  assert counts[1:].min() > 3, counts
  assert not halting.running.any()
  assert halting.num_steps.dtype == np.int32
  assert halting.remainder.dtype == weights.dtype == np.float32


def test_weights_sum_to_one():
  """So the mean of states that are all 1 is 1."""
  halting, weights = _run(_random())
  np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
  np.testing.assert_allclose(halting.total, 1, atol=1e-6)
  _, weights = _run([[0.3] * M, [0.5, 0.6] + [0.9] * 4])
  np.testing.assert_allclose(
      weights, [[0.3, 0.3, 0.3, 0.1, 0, 0], [0.5, 0.5, 0, 0, 0, 0]], atol=1e-6)


def test_the_last_step_takes_what_is_left():
  halting, weights = _run(np.full((2, M), 1e-2))
  np.testing.assert_array_equal(halting.num_steps, M)
  np.testing.assert_allclose(halting.remainder, 0.95, atol=1e-6)
  np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
  halting, weights = _run(np.zeros((1, M)))
  assert halting.remainder == 1 and weights[0, -1] == 1


@pytest.mark.parametrize("p,num_steps", [
    (0.99, 1), (np.nextafter(np.float32(0.99), np.float32(0)), 2), (1.0, 1)])
def test_the_threshold_is_enough(p, num_steps):
  """R is the remainder before step N, not after it."""
  halting, weights = _run(np.array([p] + [0.5] * (M - 1), np.float32))
  assert halting.num_steps == num_steps
  if num_steps == 1:
    assert halting.remainder == 1 and weights[0] == 1
  else:
    np.testing.assert_allclose(weights[:2], [0.99, 0.01], atol=1e-6)


def test_numbers_are_float32_whatever_the_states_are():
  """bfloat16 holds neither .99 nor sums of small probabilities."""
  p = jnp.asarray(_random(), jnp.bfloat16)
  halting, weights = _run(p)
  wanted, wanted_weights = _run(np.asarray(p, np.float32))
  assert weights.dtype == halting.total.dtype == jnp.float32
  np.testing.assert_array_equal(halting.num_steps, wanted.num_steps)
  np.testing.assert_array_equal(weights, wanted_weights)
  # In bfloat16, 1 - .01 would be rounded to .9883, which this sum reaches.
  p = jnp.asarray([[0.5, 0.488, 0.5, 0.5, 0.5, 0.5]], jnp.bfloat16)
  assert p[0, :2].sum() >= jnp.bfloat16(0.99)
  assert float(p[0, 0]) + float(p[0, 1]) < 0.99
  assert _run(p)[0].num_steps[0] == 3


def test_padding_takes_no_step():
  p, mask = _random().reshape(3, 100, M), np.arange(100) % 3 > 0
  mask = np.broadcast_to(mask, (3, 100))
  halting, weights = _run(p, mask)
  for x in (halting.num_steps, halting.remainder, weights, act.ponder(halting)):
    assert not np.asarray(x)[~mask].any()
  wanted = [sum(_one_token(row)[:2]) for row in p[mask]]
  np.testing.assert_allclose(
      np.asarray(act.ponder(halting))[mask], wanted, rtol=1e-5)


def test_mean_of_nothing_is_zero_and_ignores_what_padding_holds():
  """The ponder cost is such a mean."""
  values = jnp.array([[1., math.nan], [3., math.inf], [5., 6.]])
  mask = jnp.array([[True, False], [True, False], [False, False]])
  np.testing.assert_array_equal(pooling.mean_of_tokens(values, mask), [1, 3, 0])
  grads = jax.grad(lambda v: pooling.mean_of_tokens(v, mask).sum())(values)
  np.testing.assert_array_equal(grads, [[1, 0], [1, 0], [0, 0]])


def test_gradient_of_the_ponder_cost():
  """It is -1 for each probability before the last step; N has none."""
  p = _random()
  cost = lambda p: act.ponder(_run(p)[0]).sum()
  grads = jax.jit(jax.grad(cost))(p)
  num_steps = np.asarray(_run(p)[0].num_steps)
  wanted = np.where(np.arange(1, M + 1) < num_steps[:, None], -1., 0.)
  np.testing.assert_array_equal(grads, wanted)
  assert (wanted < 0).any(axis=1).sum() > 100

  # Finite differences agree, where no change of N is near.
  def numpy_cost(row):
    n, remainder, _ = _one_token(row)
    return n + float(remainder)
  checked = 0
  for row, grad in zip(p[:60], np.asarray(grads)):
    sums = np.cumsum(row)
    if np.abs(sums - 0.99).min() < 0.02 or row.max() > 0.95:
      continue
    checked += 1
    for i in range(M):
      up, down = row.copy(), row.copy()
      up[i] += 0.01
      down[i] -= 0.01
      slope = (numpy_cost(up) - numpy_cost(down)) / 0.02
      assert slope == pytest.approx(grad[i], abs=1e-3)
  assert checked > 20


def test_gradient_of_the_output():
  """d/dp_i of sum w_n s_n is s_i - s_N before the last step, else 0."""
  p = _random(50)
  states = np.random.default_rng(1).normal(size=(50, M)).astype(np.float32)
  grads = jax.grad(lambda p: jnp.sum(_run(p)[1] * states))(p)
  num_steps = np.asarray(_run(p)[0].num_steps)
  last = states[np.arange(50), num_steps - 1][:, None]
  wanted = np.where(
      np.arange(1, M + 1) < num_steps[:, None], states - last, 0)
  np.testing.assert_allclose(grads, wanted, atol=1e-5)


def test_a_token_without_numbers_ends_at_the_last_step():
  halting, _ = _run(np.full((1, M), np.nan, np.float32))
  assert halting.num_steps[0] == M and not halting.running.any()
  # And no other token hears of it.
  p = _random(4)
  alone = _run(p)[1][1:]
  p[0] = np.nan
  np.testing.assert_array_equal(_run(p)[1][1:], alone)


def test_one_step_is_a_plain_layer():
  halting, weights = _run(np.array([[0.2], [0.999]], np.float32))
  np.testing.assert_array_equal(weights, 1)
  np.testing.assert_array_equal(act.ponder(halting), 2)


def test_a_larger_step_needs_fewer_of_them():
  """More probability of halting: never more steps."""
  p = _random()
  larger, _ = _run(np.minimum(1.3 * p, 1))
  assert np.all(larger.num_steps <= _run(p)[0].num_steps)
