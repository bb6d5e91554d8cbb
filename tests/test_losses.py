"""Losses against loops in float64."""

import math

from big_vision import config as config_lib
from big_vision import losses
import jax.numpy as jnp
import numpy as np
import pytest

LOGITS = np.array([[0., 3., -2.], [100., -100., 5.]])
LABELS = np.array([[0., 1., 0.], [.25, .5, .25]])


def _sigmoid_xent(logits, labels):
  total = 0.
  for x, y in zip(logits, labels):
    # -log(sigmoid(x)) = log(1 + e^-x), written so that it cannot overflow.
    softplus = lambda z: max(z, 0.) + math.log1p(math.exp(-abs(z)))
    total += y * softplus(-x) + (1 - y) * softplus(x)
  return total


def _softmax_xent(logits, labels):
  norm = max(logits) + math.log(
      sum(math.exp(x - max(logits)) for x in logits))
  return sum(y * (norm - x) for x, y in zip(logits, labels))


@pytest.mark.parametrize("name, oracle", [
    ("sigmoid_xent", _sigmoid_xent), ("softmax_xent", _softmax_xent)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_against_a_loop(name, oracle, dtype):
  loss = losses.get_loss(name)(
      logits=jnp.asarray(LOGITS, dtype), labels=jnp.asarray(LABELS))
  assert loss.dtype == jnp.float32 and loss.shape == (2,)
  np.testing.assert_allclose(
      loss, [oracle(x, y) for x, y in zip(LOGITS, LABELS)], rtol=1e-6)


def test_initial_loss_with_head_bias():
  """T3: summed over classes; the closed form for 1,000 classes is 7.907."""
  loss = losses.sigmoid_xent(
      logits=jnp.full((1, 1000), -6.9), labels=jnp.eye(1000)[:1])
  expected = 999 * math.log1p(math.exp(-6.9)) + 6.9 + math.log1p(math.exp(-6.9))
  np.testing.assert_allclose(loss, [expected], rtol=1e-5)
  assert abs(expected - 7.907) < 1e-3


def test_unknown_loss():
  with pytest.raises(config_lib.ConfigError, match="'sigmoid_xent'"):
    losses.get_loss("sigmoid_cent")
