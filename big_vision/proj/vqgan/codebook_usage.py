"""Usage and entropy of a codebook over a whole data set."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from big_vision import ranges
from big_vision.evaluators import harness
from big_vision.run import console


class Evaluator:
  """Measures how many codes of a codebook are used, and how evenly.

  Needs a predict function that returns {"codes": int[b, ...], "num_codes":
  int[b], all the same}, as "reconstruct" and "nll" do. Codes are counted over
  all images: in a single batch, rare codes would seem unused.

  It prints a warning, with remedies, if hardly any codes are used.

  Metrics:
    usage: share of the codes that occur, in [0, 1]; higher is better.
    perplexity: 2 ** bits_per_code, in [1, num_codes]; higher is better.
    bits_per_code: entropy of the codes without context, at most
      log2(num_codes); a model of codes has to get below it.
  """

  def __init__(
      self, predict_fn: Callable, loader: harness.Loader, *,
      data: Mapping[str, Any], pp_fn: str, warn_below: ranges.Fraction = 0.05):
    """Opens the data; compiles and reads nothing yet.

    Args:
      predict_fn: (state, batch, rng=) -> {"codes", "num_codes"}, not jitted.
      loader: Opens the data and compiles.
      data: Source to evaluate on.
      pp_fn: Preprocessing string.
      warn_below: Usage below which it warns, after the first update.
    """
    self._warn_below = warn_below
    self._measure = loader.compile(_measure, predict_fn=predict_fn)
    self._examples = loader.open(data, pp_fn)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields (name, value)."""
    values = self._examples.collect(self._measure, state)
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


def _measure(state, batch, rng, *, predict_fn):
  found = predict_fn(state, batch, rng=rng)
  return {name: found[name] for name in ("codes", "num_codes")}


def entropy(counts: np.ndarray) -> float:
  """Returns the entropy, in bits, of the distribution that has these counts.

  Args:
    counts: number[k], non-negative, at least one positive.
  """
  p = counts[counts > 0] / counts.sum()
  return float(-np.sum(p * np.log2(p)))
