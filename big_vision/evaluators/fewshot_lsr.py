"""Few-shot accuracy of a representation, by regularized least squares.

A linear classifier is fitted in closed form to k examples of every class, on
top of the frozen representation, so the accuracy needs no tuning and is
computed fast enough to follow a training run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from big_vision import config as config_lib
from big_vision import ranges
from big_vision.evaluators import harness
from big_vision.evaluators import representation

# Far larger than a whitened feature, so that `l2_reg` hardly acts on the bias.
_BIAS = 100.


class Evaluator:
  """Measures a ridge regression on k examples per class, for several k.

  Needs a predict function that returns (logits float[b, k], out).

  Metrics: `{g}/{dataset}_{k}shot-seed-{s}` for every choice s of examples and
  `{g}/{dataset}_{k}shot`, the mean over s; accuracies in [0, 1], higher is
  better. The group g is "a" for those in `display_first` and "z" for the
  others.

  Source: google-research/big_vision `evaluators/fewshot_lsr.py`, so that
  numbers can be compared. It differs in that the mean over the seeds is
  reported, representations are kept per data set *and* split, the solution is
  in float64, and a class with fewer than k examples is an error (see
  `allow_fewer`).
  """

  def __init__(
      self, predict_fn: Callable, loader: harness.Loader, *,
      datasets: Mapping[str, Sequence[str | Mapping[str, Any] | None]],
      pp_train: str, pp_eval: str,
      shots: Sequence[ranges.Count] = (1, 5, 10, 25),
      l2_reg: ranges.NotNegative = 2. ** 10,
      representation_layer: str | None = None,
      num_seeds: ranges.Count = 3, label_key: str = "label",
      display_first: Sequence[tuple[str, ranges.Count]] = (),
      allow_fewer: bool = False):
    """Opens the data; compiles and reads nothing yet.

    Args:
      predict_fn: (state, batch, rng=) -> (logits, out), not jitted.
      loader: Opens the data and compiles.
      datasets: {name in metrics: (source, train split, test split)}. A source
        is its name or a dict of its options. A split is a name, or a dict of
        options to add to those of the source, or None to use the source as it
        is.
      pp_train: Preprocessing string of train splits; keeps `label_key`.
      pp_eval: Preprocessing string of test splits; keeps `label_key`.
      shots: Values of k.
      l2_reg: Weight of the squared norm of the classifier.
      representation_layer: Name in `out`; None for the logits.
      num_seeds: Number of random choices of examples.
      label_key: Key of the labels in the batch, int[b].
      display_first: (dataset, k) pairs of the metrics in group "a".
      allow_fewer: Whether to use all examples of a class that has fewer than k,
        as google-research/big_vision does silently (24 instead of 25 in
        Cars196).

    Raises:
      ConfigError: `display_first` has a pair that is not measured, or a data
        set is not given by three values.
    """
    self._shots = tuple(shots)
    self._l2_reg = l2_reg
    self._num_seeds = num_seeds
    self._allow_fewer = allow_fewer
    measured = [(name, k) for name in datasets for k in self._shots]
    self._display_first = {tuple(item) for item in display_first}
    unknown = self._display_first - set(measured)
    if unknown:
      raise config_lib.ConfigError(
          f"display_first has {sorted(unknown)}, which is not measured; there "
          f"are {measured}.")
    self._measure = loader.compile(
        representation.represent, predict_fn=predict_fn,
        layer=representation_layer, label_key=label_key)
    self._datasets = {}
    for name, entry in datasets.items():
      if isinstance(entry, str) or len(entry) != 3:
        raise config_lib.ConfigError(
            f"datasets.{name} is {entry!r}; it must be "
            "(source, train split, test split).")
      source, *splits = entry
      self._datasets[name] = tuple(
          loader.open(_with_split(source, split), pp_fn)
          for split, pp_fn in zip(splits, (pp_train, pp_eval)))

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the metrics of `state`.

    Raises:
      ValueError: A class has too few examples, or a split has no labels; the
        error names the data set.
    """
    # Data sets may share splits, whose `Examples` are then the same object.
    cache = {}
    def represent(examples):
      if id(examples) not in cache:
        cache[id(examples)] = examples.collect(self._measure, state)
      return cache[id(examples)]

    for name, (train_data, test_data) in self._datasets.items():
      x, y = represent(train_data)
      x_test, y_test = represent(test_data)
      representation.check_labelled(y, f"datasets.{name}, train split")
      representation.check_labelled(y_test, f"datasets.{name}, test split")
      if not self._allow_fewer:
        _check_counts(name, y, y_test, max(self._shots))
      accuracies = {k: [] for k in self._shots}
      for seed in range(self._num_seeds):
        for k, chosen in choose(y, self._shots, seed).items():
          scores = fit(x[chosen], y[chosen], self._l2_reg)(x_test)
          # Count a diverged model as wrong; argmax would predict class 0.
          is_right = np.isfinite(scores).all(axis=1) & (
              np.argmax(scores, axis=1) == y_test)
          accuracies[k].append(np.mean(is_right))
      for k in self._shots:
        group = "a" if (name, k) in self._display_first else "z"
        metric = f"{group}/{name}_{k}shot"
        for seed, accuracy in enumerate(accuracies[k]):
          yield f"{metric}-seed-{seed}", accuracy
        yield metric, np.mean(accuracies[k])


def choose(
    labels: np.ndarray, shots: Sequence[int], seed: int
) -> dict[int, np.ndarray]:
  """Chooses k examples of every class, for every k.

  The choice for fewer shots is a subset of that for more.

  Args:
    labels: int[n], non-negative.
    shots: Values of k.
    seed: Seed of a NumPy generator, from which one permutation is drawn per
      class, in the order of the classes.

  Returns:
    {k: int[<= k * classes]}, indices ordered by class.
  """
  rng = np.random.default_rng(seed)
  by_class = [
      rng.permutation(np.flatnonzero(labels == c))
      for c in range(int(labels.max()) + 1)]
  return {k: np.concatenate([of_c[:k] for of_c in by_class]) for k in shots}


def fit(x: np.ndarray, labels: np.ndarray, l2_reg: float) -> Callable:
  """Fits a ridge regression from whitened features to +1 (the class) and -1.

  w = (X'X + l2_reg I)^-1 X'Y = X' (XX' + l2_reg I)^-1 Y, whichever system is
  smaller, where the last column of X is the constant 100.

  Args:
    x: float[n, d], features.
    labels: int[n], classes.
    l2_reg: Weight of the squared norm; positive.

  Returns:
    A function float[m, d] -> float64[m, k] of scores, highest for the predicted
    class; k is the largest label plus one.
  """
  x = x.astype(np.float64)
  mean = x.mean(axis=0)
  std = x.std(axis=0) + 1e-5

  def whiten(x):
    x = (x.astype(np.float64) - mean) / std
    return np.pad(x, ((0, 0), (0, 1)), constant_values=_BIAS)

  x = whiten(x)
  y = 2. * np.eye(int(labels.max()) + 1)[labels] - 1.
  n, d = x.shape
  if n >= d:
    w = np.linalg.solve(x.T @ x + l2_reg * np.eye(d), x.T @ y)
  else:
    w = x.T @ np.linalg.solve(x @ x.T + l2_reg * np.eye(n), y)
  return lambda x_test: whiten(x_test) @ w


def _check_counts(name: str, y: np.ndarray, y_test: np.ndarray, shots: int):
  """Raises ValueError if a class has fewer training examples than `shots`."""
  classes = np.union1d(y, y_test)
  counts = {int(c): int(np.sum(y == c)) for c in classes}
  short = {c: count for c, count in counts.items() if count < shots}
  if short:
    listing = ", ".join(
        f"class {c} has {count}" for c, count in list(short.items())[:10])
    raise ValueError(
        f"datasets.{name}: {shots} shots need {shots} training examples of "
        f"every class, but {listing}{', ...' if len(short) > 10 else ''} "
        f"({len(short)} of {len(classes)} classes). Use at most "
        f"{min(short.values())} shots, another split, or allow_fewer=True.")


def _with_split(source: str | Mapping[str, Any], split) -> dict[str, Any]:
  """Returns the options of a source for one of its splits."""
  options = {"name": source} if isinstance(source, str) else dict(source)
  if isinstance(split, Mapping):
    return {**options, **split}
  return options if split is None else {**options, "split": split}
