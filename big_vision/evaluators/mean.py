"""Means over a data set of the values that a predict function returns."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from big_vision import config as config_lib
from big_vision.evaluators import harness


class Evaluator:
  """Averages every value that the predict function returns per example.

  Needs a predict function that returns a dict of number[b], as "loss" does.
  Metrics have the names of the values, nested ones joined by "/", and their
  units.
  """

  def __init__(
      self, predict_fn: Callable, loader: harness.Loader, *,
      data: Mapping[str, Any], pp_fn: str):
    """Opens the data; compiles and reads nothing yet.

    Args:
      predict_fn: (state, batch, rng=) -> {name: number[b]}, not jitted.
      loader: Opens the data and compiles.
      data: Source to evaluate on.
      pp_fn: Preprocessing string.
    """
    self._measure = loader.compile(_measure, predict_fn=predict_fn)
    self._examples = loader.open(data, pp_fn)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields (name, mean over the examples) for every value."""
    yield from self._examples.mean(self._measure, state).items()


def _measure(state, batch, rng, *, predict_fn):
  values = predict_fn(state, batch, rng=rng)
  if not isinstance(values, Mapping):
    raise config_lib.ConfigError(
        f"The predict function returns a {type(values).__name__}; a dict "
        "{name: number[b]} is needed.")
  harness.check_per_example(values, len(batch["_mask"]), scalars=True)
  return values
