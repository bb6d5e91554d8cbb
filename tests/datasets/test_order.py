"""Tests of datasets/order.py against permutations that NumPy draws."""

from big_vision.datasets import order
import numpy as np
import pytest
import tensorflow as tf


def _epochs(size, num_epochs):
  """Returns the orders of epochs with 40 seeds, int[seed, epoch, place]."""
  positions = tf.range(num_epochs * size, dtype=tf.int64)
  return np.stack([
      order.example_index(positions, size, seed).numpy().reshape(-1, size)
      for seed in range(40)])


def _blocks(num_blocks):
  """Returns the orders of a mixture's blocks with 2 seeds, as `_epochs`."""
  slots = np.ones(order.MIXTURE_BLOCK, np.int64)  # One place for each source.
  positions = tf.data.Dataset.range(num_blocks * order.MIXTURE_BLOCK)
  return np.stack([
      list(positions.map(
          lambda position, seed=seed: order.locate_in_mixture(
              position, slots, seed)[0]).batch(
                  order.MIXTURE_BLOCK).as_numpy_iterator())
      for seed in range(2)])


def _statistics(orders):
  """Measures how random permutations look; each value is near 1 if they do.

  Args:
    orders: int[seed, epoch, n], a permutation for each seed and epoch.

  Returns:
    Correlation of place and example, and of an epoch and the next one: root
    mean squares, relative to those of independent uniform permutations.
    Number of neighbours in the order that are neighbours in the source, and
    number of examples that stay at their place, both relative to chance.
  """
  n = orders.shape[-1]
  scaled = (orders - (n - 1) / 2) / np.sqrt(n * (n ** 2 - 1) / 12)
  with_place = scaled @ ((np.arange(n) - (n - 1) / 2) /
                         np.sqrt(n * (n ** 2 - 1) / 12))
  with_next = (scaled[:, 1:] * scaled[:, :-1]).sum(-1)
  neighbours = (np.abs(np.diff(orders, axis=-1)) == 1).sum(-1)
  return np.array([
      np.sqrt((with_place ** 2).mean() * (n - 1)),
      np.sqrt((with_next ** 2).mean() * (n - 1)),
      neighbours.mean() / (2 - 2 / n),
      (orders == np.arange(n)).sum(-1).mean()])


# The tolerances are about 5 standard deviations.
@pytest.mark.parametrize("make, num_epochs, tolerance", [
    (lambda k: _epochs(8, k), 50, .12), (lambda k: _epochs(24, k), 50, .12),
    (lambda k: _epochs(100, k), 50, .12), (lambda k: _epochs(1000, k), 5, .35),
    (_blocks, 4, .9)], ids=["8", "24", "100", "1000", "mixture"])
def test_orders_look_as_random_as_those_of_numpy(make, num_epochs, tolerance):
  """A shuffle that mixes badly leaves runs of the source's order."""
  orders = make(num_epochs)
  n = orders.shape[-1]
  np.testing.assert_array_equal(
      np.sort(orders), np.broadcast_to(np.arange(n), orders.shape))
  rng = np.random.default_rng(0)
  drawn = rng.permuted(np.broadcast_to(np.arange(n), orders.shape), axis=-1)
  np.testing.assert_allclose(_statistics(drawn), 1, atol=tolerance)
  np.testing.assert_allclose(_statistics(orders), 1, atol=tolerance)


def test_every_example_is_equally_often_at_every_place():
  orders = _epochs(24, 50).reshape(-1, 24)
  counts = np.stack([(orders == i).sum(0) for i in range(24)])
  expected = len(orders) / 24
  chi_squared = ((counts - expected) ** 2 / expected).sum()
  assert chi_squared < 23 ** 2 * 1.3  # 23**2 degrees; 5 standard deviations.
