"""What a model of codes needs to write one down."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from big_vision.evaluators import harness
from big_vision.proj.vqgan import codebook


class Evaluator:
  """Bits per code of a model, beside the entropy of the codes by themselves.

  Needs a predict function that returns {"nll": float[b, n] in nats, "codes":
  int[b, n], "num_codes": int[b]}, as "nll" does. Yields
    "bits_per_code"  the model's, lower is better;
    "unigram_bits"   the entropy of the codes of this data set, which no model
                     that looks at nothing can be below;
    "bits_per_image" the model's, of all codes of an image.
  """

  def __init__(
      self, predict_fn: Callable, *, batch_sharding, data: Mapping[str, Any],
      pp_fn: str, batch_size: int, pp_modules: Sequence[str] | None = None):
    self._batches = harness.open_data(
        data, pp_fn, batch_size, batch_sharding, pp_modules)
    self._measure = harness.jit(
        lambda state, batch: (predict_fn(state, batch), batch["_mask"]),
        batch_sharding)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields (name, value)."""
    values = harness.collect(self._measure, state, self._batches)
    bits = values["nll"].mean(dtype=np.float64) / np.log(2)
    yield "bits_per_code", bits
    yield "unigram_bits", codebook.entropy(np.bincount(values["codes"].ravel()))
    yield "bits_per_image", bits * values["nll"].shape[1]
