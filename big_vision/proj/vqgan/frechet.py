"""The Frechet distance of two sets of images, in the features of a network.

With another network than Inception this is not FID, and its numbers compare
with nothing but themselves; the metric is named after the network.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision.evaluators import harness
from big_vision.proj.vqgan import perceptual


class Evaluator:
  """How far reconstructed or drawn images are from those of the data.

  Needs a predict function that returns {"image": float[b, h, w, c]} in [-1, 1],
  as "reconstruct" and "sample" do. Yields "frechet_<network>", at least 0,
  lower is better. It falls with the number of images: compare equal numbers.

  Args:
    predict_fn: un-jitted.
    batch_sharding: of the batches.
    data, pp_fn, batch_size, pp_modules: see `common.open_data`.
    network: see `perceptual.make`; the last of its features is used, the mean
      over places.
    num_samples: how many of the data to use; None for all.
  """

  def __init__(
      self, predict_fn: Callable, *, batch_sharding, data: Mapping[str, Any],
      pp_fn: str, batch_size: int, network: Mapping[str, Any],
      num_samples: int | None = None, pp_modules: Sequence[str] | None = None):
    self._batches = harness.open_data(
        data, pp_fn, batch_size, batch_sharding, pp_modules)
    self._num_batches = num_samples and -(-num_samples // batch_size)
    self._network = perceptual.make(network, "network")
    self._variables = self._network.load()

    def measure(state, numbered):
      batch_idx, batch = numbered
      rng = jax.random.fold_in(jax.random.key(0), batch_idx)
      def pooled(image):
        x = self._network.features(state["network"], image)[-1]
        return x.mean(axis=tuple(range(1, x.ndim - 1)), dtype=jnp.float32)
      found = jnp.clip(predict_fn(state, batch, rng=rng)["image"], -1, 1)
      return (pooled(batch["image"]), pooled(found)), batch["_mask"]
    self._measure = harness.jit(measure, batch_sharding)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields one distance."""
    state = {**state, "network": self._variables}
    real, found = harness.collect(self._measure, state, itertools.islice(
        enumerate(self._batches), self._num_batches))
    yield f"frechet_{self._network.name}", distance(real, found)


def distance(a: np.ndarray, b: np.ndarray) -> float:
  """Between the normal distributions that have the moments of two sets.

  ||mean_a - mean_b||^2 + tr(A + B - 2 (A B)^(1/2)), in float64.

  Args:
    a, b: float[n, d] and float[m, d], n and m at least 2.

  Source: arXiv:1706.08500, Eq. 6.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
  # A B has the eigenvalues of the symmetric A^(1/2) B A^(1/2), which are real
  # and, but for rounding, not negative.
  values, vectors = np.linalg.eigh(cov_a)
  root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
  eigenvalues = np.linalg.eigvalsh(root @ cov_b @ root)
  return float(
      np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
      + np.trace(cov_a) + np.trace(cov_b)
      - 2 * np.sum(np.sqrt(np.maximum(eigenvalues, 0))))
