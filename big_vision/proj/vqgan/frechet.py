"""The Frechet distance of two sets of images, in the features of a network.

With a network other than Inception this is not FID, and its numbers can be
compared with each other only; the metric is named after the network.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from big_vision import ranges
from big_vision.evaluators import harness
from big_vision.proj.vqgan import perceptual


class Evaluator:
  """Measures how far predicted images are from those of the data.

  Needs a predict function that returns {"image": float[b, h, w, c]} in [-1, 1],
  as "reconstruct" and "sample" do.

  Metric: "frechet_<network>", at least 0, lower is better. It falls with the
  number of images: compare equal numbers.
  """

  def __init__(
      self, predict_fn: Callable, loader: harness.Loader, *,
      data: Mapping[str, Any], pp_fn: str, network: Mapping[str, Any],
      num_samples: ranges.Count | None = None):
    """Opens the data and loads the network; compiles and reads nothing yet.

    Args:
      predict_fn: (state, batch, rng=) -> {"image"}, not jitted.
      loader: Opens the data and compiles.
      data: Source to evaluate on.
      pp_fn: Preprocessing string.
      network: Options of `perceptual.make`. The last of the network's features
        are used, averaged over places.
      num_samples: Number of images to use, the first ones; None for all.

    Raises:
      ConfigError: There are fewer images than `num_samples`.
    """
    self._num_samples = num_samples
    self._network = perceptual.make(network, "network")
    self._variables = self._network.load()

    def measure(state, batch, rng):
      def pooled(image):
        x = self._network.features(state["network"], image)[-1]
        return x.mean(axis=tuple(range(1, x.ndim - 1)), dtype=jnp.float32)
      found = jnp.clip(predict_fn(state, batch, rng=rng)["image"], -1, 1)
      return pooled(batch["image"]), pooled(found)
    self._measure = loader.compile(measure)
    self._examples = loader.open(data, pp_fn)
    self._examples.check_has(num_samples, "num_samples")

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields one distance.

    Raises:
      ValueError: The features of an image are not finite.
    """
    real, found = self._examples.collect(
        self._measure, {**state, "network": self._variables},
        self._num_samples)
    harness.check_finite(real, "features of images of the data")
    harness.check_finite(found, "features of predicted images")
    yield f"frechet_{self._network.name}", distance(real, found)


def distance(a: np.ndarray, b: np.ndarray) -> float:
  """Computes the Frechet distance of two sets of features.

  Each set stands for the normal distribution that has its mean and covariance:
  ||mean_a - mean_b||^2 + tr(A + B - 2 (A B)^(1/2)), in float64.

  Args:
    a: float[n, d], features, n at least 2.
    b: float[m, d], features, m at least 2.

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
