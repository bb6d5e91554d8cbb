"""Bits that a model of codes needs to describe a code."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from big_vision.evaluators import harness
from big_vision.proj.vqgan import codebook_usage


class Evaluator:
  """Measures bits per code, beside the entropy of the codes by themselves.

  Needs a predict function that returns {"nll": float[b, n] in nats, "codes":
  int[b, n]}, as "nll" does.

  Metrics:
    bits_per_code: the model's cross-entropy per code, bits; lower is better.
    unigram_bits: entropy of the codes in this data set, bits; no model that
      ignores context can be below it.
    bits_per_image: the model's cross-entropy of all codes of an image, bits.
  """

  def __init__(
      self, predict_fn: Callable, loader: harness.Loader, *,
      data: Mapping[str, Any], pp_fn: str):
    """Opens the data; compiles and reads nothing yet.

    Args:
      predict_fn: (state, batch, rng=) -> {"nll", "codes"}, not jitted.
      loader: Opens the data and compiles.
      data: Source to evaluate on.
      pp_fn: Preprocessing string.
    """
    self._measure = loader.compile(_measure, predict_fn=predict_fn)
    self._examples = loader.open(data, pp_fn)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields (name, value)."""
    values = self._examples.collect(self._measure, state)
    bits = values["nll"].mean(dtype=np.float64) / np.log(2)
    yield "bits_per_code", bits
    yield "unigram_bits", codebook_usage.entropy(
        np.bincount(values["codes"].ravel()))
    yield "bits_per_image", bits * values["nll"].shape[1]


def _measure(state, batch, rng, *, predict_fn):
  found = predict_fn(state, batch, rng=rng)
  return {name: found[name] for name in ("nll", "codes")}
