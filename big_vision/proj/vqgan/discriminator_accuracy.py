"""Accuracy of a discriminator at telling images from reconstructions."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from big_vision.evaluators import harness


class Evaluator:
  """Measures the discriminator's accuracy, over patches.

  Needs a predict function that returns {"real", "fake"}: float[b, h, w],
  logits that are positive for patches that the discriminator takes for real,
  as "judge" does.

  Metrics, shares of patches in [0, 1]:
    accuracy_real: patches of images that are taken for real.
    accuracy_fake: patches of reconstructions that are not.
    accuracy: mean of both; 0.5 is a guess, and near 1 the autoencoder learns
      nothing from the discriminator.
  """

  def __init__(
      self, predict_fn: Callable, loader: harness.Loader, *,
      data: Mapping[str, Any], pp_fn: str):
    """Opens the data; compiles and reads nothing yet.

    Args:
      predict_fn: (state, batch, rng=) -> {"real", "fake"}, not jitted.
      loader: Opens the data and compiles.
      data: Source to evaluate on.
      pp_fn: Preprocessing string.
    """
    self._measure = loader.compile(_measure, predict_fn=predict_fn)
    self._examples = loader.open(data, pp_fn)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields (name, share of patches)."""
    shares = self._examples.mean(self._measure, state)
    for name, share in shares.items():
      yield f"accuracy_{name}", share
    yield "accuracy", np.mean(list(shares.values()))


def _measure(state, batch, rng, *, predict_fn):
  logits = predict_fn(state, batch, rng=rng)
  return {"real": logits["real"] > 0, "fake": logits["fake"] < 0}
