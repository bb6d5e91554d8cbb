"""Accuracy of weighted nearest neighbours in a representation.

It needs no training, so it is the usual way to follow self-supervised learning.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from big_vision import config as config_lib
from big_vision import ranges
from big_vision import sharding
from big_vision.evaluators import harness
from big_vision.evaluators import representation


class Evaluator:
  """Measures the accuracy of a vote of the k most similar training examples.

  Needs a predict function that returns (logits float[b, k], out).

  The vote of a neighbour is exp(cosine similarity / temperature).

  Metric: `knn@{k}`, in [0, 1], higher is better.

  Source: arXiv:1805.01978, Sec. 3.4, with k and temperature of DINO
  (arXiv:2104.14294), without differences.
  """

  def __init__(
      self, predict_fn: Callable, loader: harness.Loader, *,
      data: Mapping[str, Any], data_train: Mapping[str, Any], pp_fn: str,
      pp_train: str | None = None,
      k: ranges.Count | Sequence[ranges.Count] = 20,
      temperature: ranges.Positive = 0.07,
      representation_layer: str | None = None,
      label_key: str = "label"):
    """Opens the data; compiles and reads nothing yet.

    Args:
      predict_fn: (state, batch, rng=) -> (logits, out), not jitted.
      loader: Opens the data and compiles.
      data: Source to evaluate on.
      data_train: Source of the neighbours.
      pp_fn: Preprocessing string; keeps `label_key`.
      pp_train: Preprocessing string of `data_train`; None for `pp_fn`.
      k: Number of neighbours, or several numbers for one metric each.
      temperature: Temperature of the votes, positive; the lower it is, the more
        the nearest neighbours count.
      representation_layer: Name in `out`; None for the logits.
      label_key: Key of the labels in the batch, int[b].

    Raises:
      ConfigError: There are fewer training examples than neighbours.
    """
    self._ks = (k,) if isinstance(k, int) else tuple(k)
    self._temperature = temperature
    self._examples = loader.open(data, pp_fn)
    self._train_examples = loader.open(data_train, pp_train or pp_fn)
    if max(self._ks) > self._train_examples.num_examples:
      raise config_lib.ConfigError(
          f"k={max(self._ks)} neighbours are wanted, and data_train has "
          f"{self._train_examples.num_examples} examples.")
    self._sharding = loader.batch_sharding
    represent = dict(predict_fn=predict_fn, layer=representation_layer,
                     label_key=label_key)
    self._represent = loader.compile(representation.represent, **represent)

    # Every device merges for its own queries: left to itself, XLA gathers the
    # similarities of all devices for `top_k`.
    spec = self._sharding.spec
    merge = jax.shard_map(
        _merge, mesh=self._sharding.mesh, in_specs=(spec, spec, P()),
        out_specs=spec)

    def update(state, batch, number, queries, nearest):
      features, labels = representation.represent(
          state, batch, harness.make_rng(loader.seed, number), **represent)
      examples = _normalize(features), labels, batch["_mask"]
      return merge(queries, nearest, examples)

    self._update = jax.jit(update, out_shardings=self._sharding)
    self._gather = loader.jit(_identity)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the metrics of `state`.

    Raises:
      ValueError: `data` has no labels.
    """
    features, labels = self._examples.collect(self._represent, state)
    representation.check_labelled(labels, "data")
    # Training examples are read batch after batch and not kept. Only the
    # queries, spread over the devices, and their neighbours are.
    num_queries = len(features)
    padding = -num_queries % sharding.num_shards(self._sharding)
    queries = self._place(
        np.pad(_normalize(features), ((0, padding), (0, 0))))
    shape = (num_queries + padding, max(self._ks))
    nearest = (
        self._place(np.full(shape, -np.inf, np.float32)),
        self._place(np.zeros(shape, labels.dtype)))
    in_flight = collections.deque(maxlen=harness.NUM_IN_FLIGHT)
    for number, batch in enumerate(self._train_examples):
      nearest = self._update(state, batch, np.int32(number), queries, nearest)
      in_flight.append(nearest)
      jax.block_until_ready(in_flight[0])  # See `Examples.collect`.
    similarity, neighbours = (
        x[:num_queries] for x in jax.device_get(self._gather(nearest)))
    is_finite = np.isfinite(similarity).all(axis=1)
    for k in self._ks:
      predicted = vote(
          similarity[:, :k], neighbours[:, :k], self._temperature)
      # Count a diverged model as wrong; NaN sorts as most similar.
      is_right = is_finite & (predicted == labels)
      yield f"knn@{k}", np.mean(is_right)

  def _place(self, x: np.ndarray) -> jax.Array:
    """Spreads an array that all processes have over the devices."""
    return jax.make_array_from_callback(
        x.shape, self._sharding, lambda index: x[index])


def _identity(x):
  return x


def _merge(queries, nearest, examples):
  """Merges more training examples into the nearest neighbours so far.

  Args:
    queries: float32[q, d], features of unit length.
    nearest: Similarities float32[q, k], descending, and labels int[q, k].
    examples: Features float32[b, d] of unit length, labels int[b], mask [b].

  Returns:
    `nearest`, updated; of equally similar examples the earlier is nearer.
  """
  features, labels, mask = examples
  similarity = jnp.dot(  # bfloat16 would change the votes, which are steep.
      queries, features.T, precision="highest")
  similarity = jnp.where(mask > 0, similarity, -jnp.inf)
  labels = jnp.broadcast_to(labels, similarity.shape)
  # Keep the order of the data: `top_k` prefers the first of equal values.
  similarity = jnp.concatenate([nearest[0], similarity], axis=1)
  labels = jnp.concatenate([nearest[1], labels], axis=1)
  similarity, best = jax.lax.top_k(similarity, nearest[0].shape[1])
  return similarity, jnp.take_along_axis(labels, best, axis=1)


def _normalize(x):
  """Scales the rows of `x` to unit length; zeros stay zeros."""
  xnp = np if isinstance(x, np.ndarray) else jnp
  return x / xnp.maximum(xnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def vote(
    similarity: np.ndarray, labels: np.ndarray, temperature: float
) -> np.ndarray:
  """Returns the class with the most votes; the nearer one wins a tie.

  Args:
    similarity: float[n, k] in [-1, 1], descending along k.
    labels: int[n, k], classes of the neighbours.
    temperature: Temperature of the votes, positive.

  Returns:
    int[n], a class for each query.
  """
  similarity = similarity.astype(np.float64)
  # Relative to the nearest neighbour, votes compare alike and cannot overflow.
  weights = np.exp((similarity - similarity[:, :1]) / temperature)
  votes = np.zeros_like(weights)  # Votes for the class of the k-th neighbour.
  for i in range(labels.shape[1]):
    votes += weights[:, i:i + 1] * (labels == labels[:, i:i + 1])
  best = np.argmax(votes, axis=1)[:, None]
  return np.take_along_axis(labels, best, axis=1)[:, 0]
