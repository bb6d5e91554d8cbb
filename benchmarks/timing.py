"""Measuring on a shared machine: alternate, take medians, report ratios."""

from collections.abc import Callable, Mapping
import statistics
import time


def alternate(
    candidates: Mapping[str, Callable[[], object]], rounds: int,
    warmup: int = 1) -> dict[str, list[float]]:
  """Seconds of every call, the candidates taking turns.

  Args:
    candidates: {name: function}; a function returns when its work is done.
    rounds: measured calls of each.
    warmup: calls of each before that, not measured (compiling, caches).
  """
  seconds = {name: [] for name in candidates}
  for i in range(warmup + rounds):
    for name, fn in candidates.items():
      start = time.perf_counter()
      fn()
      if i >= warmup:
        seconds[name].append(time.perf_counter() - start)
  return seconds


def report(seconds: Mapping[str, list[float]], work: float = 1.0,
           unit: str = "s"):
  """Prints median and spread of each candidate, and ratios to the last.

  Args:
    seconds: what `alternate` returned.
    work: how much is done in one call; with it, rates in `unit` are printed
      instead of seconds.
    unit: of the numbers: "s", or "images/s" and so on.
  """
  convert = (lambda s: s) if unit == "s" else (lambda s: work / s)
  medians = {}
  for name, values in seconds.items():
    numbers = sorted(convert(s) for s in values)
    medians[name] = statistics.median(numbers)
    print(f"{name:28s} median {medians[name]:10.4g} {unit}, "
          f"min {numbers[0]:.4g}, max {numbers[-1]:.4g}, n {len(numbers)}")
  *others, last = medians
  for name in others:
    print(f"{name} / {last} = {medians[name] / medians[last]:.3f}")
