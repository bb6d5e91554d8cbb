"""How much of a codebook is used, over a whole data set."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from big_vision.evaluators import harness
from big_vision.run import console


class Evaluator:
  """Usage and entropy of codes.

  Needs a predict function that returns {"codes": int[b, ...], "num_codes":
  int[b], all the same}, as "reconstruct" and "nll" do. Counts are over all
  images: in a single batch, rare codes would seem dead. Yields
    "usage"          share of the codes that occur, in [0, 1];
    "perplexity"     2 ** bits_per_code, of 1 .. num_codes;
    "bits_per_code"  entropy of the codes, each by itself; at most log2 of
                     num_codes. What a model of codes is to fall below.

  It warns, with what can be done, where hardly any codes occur.

  Args:
    predict_fn: un-jitted.
    batch_sharding: of the batches.
    data, pp_fn, batch_size, pp_modules: see `common.open_data`.
    warn_below: usage below which it warns, after the first update.
  """

  def __init__(
      self, predict_fn: Callable, *, batch_sharding, data: Mapping[str, Any],
      pp_fn: str, batch_size: int, warn_below: float = 0.05,
      pp_modules: Sequence[str] | None = None):
    self._batches = harness.open_data(
        data, pp_fn, batch_size, batch_sharding, pp_modules)
    self._warn_below = warn_below

    def measure(state, batch):
      found = predict_fn(state, batch)
      return {name: found[name] for name in ("codes", "num_codes")}, (
          batch["_mask"])
    self._measure = harness.jit(measure, batch_sharding)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields (name, value)."""
    values = harness.collect(self._measure, state, self._batches)
    counts = np.bincount(
        values["codes"].ravel(), minlength=values["num_codes"][0])
    usage = np.mean(counts > 0)
    if usage < self._warn_below and int(state.get("step", 1)):
      console.say(
          f"WARNING: {np.sum(counts > 0)} of {len(counts)} codes are used: the "
          "codebook collapses. Try the quantizer 'ema' (it revives codes) or "
          "'fsq' (it cannot collapse), fewer codes, a lower config.lr, or a "
          "later config.gan.start_steps.")
    yield "usage", usage
    bits = entropy(counts)
    yield "perplexity", 2 ** bits
    yield "bits_per_code", bits


def entropy(counts: np.ndarray) -> float:
  """Of the distribution that has these counts, bits."""
  p = counts[counts > 0] / counts.sum()
  return float(-np.sum(p * np.log2(p)))
