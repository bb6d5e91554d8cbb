"""Whether a discriminator can tell images from reconstructions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from big_vision.evaluators import harness


class Evaluator:
  """The discriminator's accuracy, over patches.

  Needs a predict function that returns {"real", "fake"}: float[b, h, w],
  logits that are positive where the discriminator believes a patch, as "judge"
  does. Yields "accuracy_real", "accuracy_fake" and their mean, "accuracy": 0.5
  is a guess; near 1, the autoencoder learns nothing from it.
  """

  def __init__(
      self, predict_fn: Callable, *, batch_sharding, data: Mapping[str, Any],
      pp_fn: str, batch_size: int, pp_modules: Sequence[str] | None = None):
    self._batches = harness.open_data(
        data, pp_fn, batch_size, batch_sharding, pp_modules)

    def measure(state, batch):
      logits = predict_fn(state, batch)
      return {"real": logits["real"] > 0, "fake": logits["fake"] < 0}, (
          batch["_mask"])
    self._measure = harness.jit(measure, batch_sharding)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields (name, share of patches)."""
    right = harness.collect(self._measure, state, self._batches)
    for name, value in right.items():
      yield f"accuracy_{name}", np.mean(value)
    yield "accuracy", (np.mean(right["real"]) + np.mean(right["fake"])) / 2
