"""Accuracy of weighted nearest neighbours in a representation.

Needs no training at all, so it is the usual way to follow self-supervised
learning.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from big_vision import config as config_lib
from big_vision import sharding
from big_vision.evaluators import harness


class Evaluator:
  """Accuracy of a vote of the k most similar training examples.

  Needs a predict function that returns (logits float[b, k], out).

  The vote of a neighbour is exp(cosine similarity / temperature).

  Metric: `knn@{k}`, in [0, 1], higher is better.

  Source: arXiv:1805.01978, Sec. 3.4, with k and temperature of DINO
  (arXiv:2104.14294); differs in nothing.
  """

  def __init__(
      self, predict_fn: Callable, *,
      batch_sharding: jax.sharding.NamedSharding, data: Mapping[str, Any],
      data_train: Mapping[str, Any], pp_fn: str, batch_size: int,
      pp_train: str | None = None, k: int | Sequence[int] = 20,
      temperature: float = 0.07, representation_layer: str | None = None,
      label_key: str = "label", pp_modules: Sequence[str] | None = None):
    """Opens the data; compiles and reads nothing yet.

    Args:
      predict_fn: (state, batch) -> (logits, out), not jitted.
      batch_sharding: of the batches.
      data: source to evaluate on.
      data_train: source of the neighbours.
      pp_fn: preprocessing; keeps `label_key`.
      batch_size: over all devices.
      pp_train: preprocessing of `data_train`; None for `pp_fn`.
      k: number of neighbours; several for one metric each.
      temperature: positive; low makes the nearest count most.
      representation_layer: name in `out`; None for the logits.
      label_key: of int[b] in the batch.
      pp_modules: modules with the preprocessing ops.

    Raises:
      ConfigError: there are fewer training examples than neighbours.
    """
    self._ks = (k,) if isinstance(k, int) else tuple(k)
    self._temperature = temperature
    self._batches = harness.open_data(
        data, pp_fn, batch_size, batch_sharding, pp_modules)
    self._batches_train = harness.open_data(
        data_train, pp_train or pp_fn, batch_size, batch_sharding, pp_modules)
    if max(self._ks) > self._batches_train.num_examples:
      raise config_lib.ConfigError(
          f"k={max(self._ks)} neighbours are wanted, and data_train has "
          f"{self._batches_train.num_examples} examples.")
    self._sharding = batch_sharding
    represent = harness.make_represent(
        predict_fn, representation_layer, label_key)
    self._represent = harness.jit(represent, batch_sharding)

    # Every device for its own queries: left to itself, XLA gathers the
    # similarities of all of them for `top_k`.
    merge = jax.shard_map(
        _merge, mesh=batch_sharding.mesh,
        in_specs=(batch_sharding.spec, batch_sharding.spec, P()),
        out_specs=batch_sharding.spec)

    def update(state, batch, queries, nearest):
      (features, labels), mask = represent(state, batch)
      return merge(queries, nearest, (_normalize(features), labels, mask))

    self._update = jax.jit(update, out_shardings=batch_sharding)
    self._gather = harness.jit(lambda nearest: nearest, batch_sharding)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the metrics of `state`.

    Raises:
      ValueError: `data` has no labels.
    """
    features, labels = harness.collect(self._represent, state, self._batches)
    harness.check_classes(labels, "data")
    # Training examples pass by batch after batch; only the queries, spread over
    # the devices, and their neighbours are kept.
    num_queries = len(features)
    padding = -num_queries % sharding.num_shards(self._sharding)
    queries = self._place(
        np.pad(_normalize(features), ((0, padding), (0, 0))))
    shape = (num_queries + padding, max(self._ks))
    nearest = (
        self._place(np.full(shape, -np.inf, np.float32)),
        self._place(np.zeros(shape, labels.dtype)))
    in_flight = collections.deque(maxlen=harness.NUM_IN_FLIGHT)
    for batch in self._batches_train:
      nearest = self._update(state, batch, queries, nearest)
      in_flight.append(nearest)
      jax.block_until_ready(in_flight[0])  # See `common.collect`.
    similarity, neighbours = (
        x[:num_queries] for x in jax.device_get(self._gather(nearest)))
    is_finite = np.isfinite(similarity).all(axis=1)
    for k in self._ks:
      predicted = vote(
          similarity[:, :k], neighbours[:, :k], self._temperature)
      # Of a broken model, no prediction is right; NaN sorts as if most similar.
      is_right = is_finite & (predicted == labels)
      yield f"knn@{k}", np.mean(is_right)

  def _place(self, x: np.ndarray) -> jax.Array:
    """`x`, which all processes have, spread over the devices."""
    return jax.make_array_from_callback(
        x.shape, self._sharding, lambda index: x[index])


def _merge(queries, nearest, examples):
  """The nearest of the neighbours so far and of more training examples.

  Args:
    queries: float32[q, d], of unit length.
    nearest: similarity float32[q, k], descending, and labels int[q, k].
    examples: features float32[b, d] of unit length, labels int[b], mask [b].

  Returns:
    `nearest`, updated; of equally similar ones the earlier.
  """
  features, labels, mask = examples
  similarity = jnp.dot(  # Not in bfloat16: the vote is steep.
      queries, features.T, precision="highest")
  similarity = jnp.where(mask > 0, similarity, -jnp.inf)
  labels = jnp.broadcast_to(labels, similarity.shape)
  # In the order of the data, as `top_k` prefers the first of equals.
  similarity = jnp.concatenate([nearest[0], similarity], axis=1)
  labels = jnp.concatenate([nearest[1], labels], axis=1)
  similarity, best = jax.lax.top_k(similarity, nearest[0].shape[1])
  return similarity, jnp.take_along_axis(labels, best, axis=1)


def _normalize(x):
  """Rows of `x` with unit length; zeros stay zeros."""
  xnp = np if isinstance(x, np.ndarray) else jnp
  return x / xnp.maximum(xnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def vote(
    similarity: np.ndarray, labels: np.ndarray, temperature: float
) -> np.ndarray:
  """The class with most votes of the neighbours; the nearer one of equals.

  Args:
    similarity: float[n, k] in [-1, 1], descending along k.
    labels: int[n, k], classes of the neighbours.
    temperature: positive.

  Returns:
    int[n].
  """
  similarity = similarity.astype(np.float64)
  # Relative to the nearest, which changes no comparison and cannot overflow.
  weights = np.exp((similarity - similarity[:, :1]) / temperature)
  votes = np.zeros_like(weights)  # Votes for the class of the k-th neighbour.
  for i in range(labels.shape[1]):
    votes += weights[:, i:i + 1] * (labels == labels[:, i:i + 1])
  best = np.argmax(votes, axis=1)[:, None]
  return np.take_along_axis(labels, best, axis=1)[:, 0]
