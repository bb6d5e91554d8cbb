"""Compares losses with loops over classes in float64."""

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
def test_losses_equal_a_loop_over_classes(name, oracle, dtype):
  loss = losses.get_loss(name)(
      logits=jnp.asarray(LOGITS, dtype), labels=jnp.asarray(LABELS))
  assert loss.dtype == jnp.float32 and loss.shape == (2,)
  np.testing.assert_allclose(
      loss, [oracle(x, y) for x, y in zip(LOGITS, LABELS)], rtol=1e-6)


def test_sigmoid_xent_is_summed_over_classes():
  """With 1,000 classes and a bias of -6.9, the sum is 7.907."""
  loss = losses.sigmoid_xent(
      logits=jnp.full((1, 1000), -6.9), labels=jnp.eye(1000)[:1])
  expected = 999 * math.log1p(math.exp(-6.9)) + 6.9 + math.log1p(math.exp(-6.9))
  np.testing.assert_allclose(loss, [expected], rtol=1e-5)
  assert abs(expected - 7.907) < 1e-3


def test_unknown_losses_are_named():
  with pytest.raises(config_lib.ConfigError, match="'sigmoid_xent'"):
    losses.get_loss("sigmoid_cent")
