"""Means over a data set of whatever a predict function returns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from big_vision import config as config_lib
from big_vision import tree
from big_vision.evaluators import harness


class Evaluator:
  """The mean of every value that the predict function returns per example.

  Needs a predict function that returns a dict of number[b], as "loss" does;
  nested names are joined by "/". Units are those of the values.
  """

  def __init__(
      self, predict_fn: Callable, *,
      batch_sharding: jax.sharding.NamedSharding, data: Mapping[str, Any],
      pp_fn: str, batch_size: int, pp_modules: Sequence[str] | None = None):
    """Opens the data; compiles and reads nothing yet.

    Args:
      predict_fn: (state, batch) -> {name: number[b]}, not jitted.
      batch_sharding: of the batches.
      data: source to evaluate on.
      pp_fn: preprocessing.
      batch_size: over all devices.
      pp_modules: modules with the preprocessing ops.
    """
    def measure(state, batch):
      values = predict_fn(state, batch)
      mask = batch["_mask"]
      check_per_example(values, mask.shape)
      return values, mask

    self._measure = harness.jit(measure, batch_sharding)
    self._batches = harness.open_data(
        data, pp_fn, batch_size, batch_sharding, pp_modules)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields (name, mean over the examples) for every value."""
    values = harness.collect(self._measure, state, self._batches)
    for name, value in tree.flatten_with_names(values):
      yield name, np.mean(value, dtype=np.float64)


def check_per_example(values, shape: tuple[int]):
  """Raises ConfigError unless `values` is a dict of arrays of `shape`."""
  if isinstance(values, Mapping) and values:
    named = tree.flatten_with_names(values)
    if named and all(np.shape(leaf) == shape for _, leaf in named):
      return
  else:
    named = tree.flatten_with_names({type(values).__name__: values})
  listing = "\n".join(f"  {name}: {np.shape(leaf)}" for name, leaf in named)
  raise config_lib.ConfigError(
      "The predict function must return a dict of one number per example, "
      f"arrays of shape {shape}. It returned:\n{listing or '  nothing'}")
