"""Measures on a shared machine: takes turns, reports medians and ratios."""

from collections.abc import Callable, Mapping
import statistics
import time


def alternate(
    candidates: Mapping[str, Callable[[], object]], rounds: int,
    warmup: int = 1) -> dict[str, list[float]]:
  """Measures the seconds of every call while the candidates take turns.

  Args:
    candidates: Functions by name; a function returns when its work is done.
    rounds: Number of measured calls of each.
    warmup: Number of calls of each before that, to compile and fill caches.
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
    seconds: Result of `alternate`.
    work: Amount of work in one call; used if `unit` is a rate.
    unit: Unit of the printed numbers: "s", or a rate such as "images/s".
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
