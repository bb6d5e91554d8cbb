"""Pointer value retrieval: generated problems in which a pointer picks values.

`datasets/generated.py` describes how examples, splits and seeds are made.

In the forms with tokens, the number v is the token v + 1; 0 would be padding,
which does not occur.
"""

import numpy as np

from big_vision import config as config_lib
from big_vision import ranges
from big_vision.datasets import arrays
from big_vision.datasets import core
from big_vision.datasets import generated

_NAME = "proj.pvr.problems"
_DIGITS = 10
# Index in a 2 x 2 block, counted row by row, that each first digit points to.
_PLACE = (1, 1, 1, 1, 2, 2, 2, 3, 3, 3)


def open_source(
    split: str, num_examples: ranges.Count, form: str = "vector",
    seed: ranges.Seed = 0, **options) -> core.Source:
  """Opens pointer value retrieval in one of its forms.

  Args:
    split: "train", "validation" or "test"; the images have no "validation".
    num_examples: Number of examples.
    form: "vector", "compositional" or "image"; see the functions of these
      names.
    seed: Seed of the problems, see `generated.GeneratedSource`.
    **options: Options of the form.

  Raises:
    ConfigError: The form or an option is unknown, or an option is out of its
      range.
  """
  if form not in _FORMS:
    raise config_lib.ConfigError(
        f"{_NAME} has no form {form!r}{config_lib.nearest(form, _FORMS)}; it "
        f"has {sorted(_FORMS)}.")
  return config_lib.call(
      _FORMS[form], options, f"data(name={_NAME!r}, form={form!r})",
      split=split, num_examples=num_examples, seed=seed)


def vector(
    split: str, num_examples: ranges.Count, seed: ranges.Seed,
    window: ranges.CountOrZero = 1, aggregate: str = "mod_sum") -> core.Source:
  """Draws a pointer p and ten values; the label aggregates values from p on.

  All eleven are uniform digits. With a window of one, the label is value p.

  Examples have
    "tokens": int32[11], p + 1 and then the values + 1, in 1..10.
    "mask": float32[11], ones.
    "label": int32[], in 0..9.
    "difficulty": int32[], the window.

  Args:
    split: "train", "validation" or "test".
    num_examples: Number of examples.
    seed: Seed of the problems, see `generated.GeneratedSource`.
    window: Number of values that count, in [1, 10]; the first value follows the
      last.
    aggregate: Function of the values: "mod_sum" (their sum modulo 10), "min",
      "max", "median" (rounded down) or "majority" (the most frequent one, the
      smallest in a tie).

  Raises:
    ConfigError: An option is out of its range.

  Source: arXiv:2107.12580, section 3. The wrapping of the window and the
    breaking of ties are our choice.
  """
  return _Vector(split, num_examples, seed, window, aggregate)


def compositional(
    split: str, num_examples: ranges.Count, seed: ranges.Seed,
    length: ranges.Count = 16, min_hops: ranges.CountOrZero = 1,
    max_hops: ranges.CountOrZero = 4) -> core.Source:
  """Draws chains of pointers, followed until one does not point ahead.

  A chain starts at place p = 0. While the number there is larger than p, go to
  the place that it names. The number at which this ends is the label.

  An example with h hops visits h distinct places among 1..length - 1, drawn
  uniformly and visited in ascending order. The last number is uniform among
  those that do not point ahead; numbers that the chain does not visit are
  uniform in 0..length - 1.

  Examples have
    "tokens": int32[length], the numbers + 1, in 1..length.
    "mask": float32[length], ones.
    "label": int32[], in 0..length - 1; small ones are more frequent.
    "difficulty": int32[], h.

  Args:
    split: "train", "validation" or "test".
    num_examples: Number of examples.
    seed: Seed of the problems, see `generated.GeneratedSource`.
    length: Number of numbers, at least 2.
    min_hops: Lowest number of hops, at least 1.
    max_hops: Highest number of hops, at most length - 1; all are equally
      frequent.

  Raises:
    ConfigError: An option is out of its range.

  Source: conditional PVR of arXiv:2310.08866.
  """
  return _Compositional(split, num_examples, seed, length, min_hops, max_hops)


def image(
    split: str, num_examples: ranges.Count, seed: ranges.Seed) -> core.Source:
  """Puts four handwritten digits in a square; the first points to another.

  The digit at the top left points to the top right if it is 0 to 3, to the
  bottom left if it is 4 to 6, and to the bottom right if it is 7 to 9. The
  label is the digit there.

  Examples have
    "image": uint8[16, 16, 1], in 0..16 (16 is white), 8 x 8 for each digit.
    "label": int32[], in 0..9.
    "difficulty": int32[], 1: the hops.

  Args:
    split: "train" or "test"; the digits come from the same split of
      "bv:digits", so that no digit is in both splits.
    num_examples: Number of examples.
    seed: Seed of the problems, see `generated.GeneratedSource`.

  Raises:
    ConfigError: The split does not exist.

  Source: visual PVR of arXiv:2107.12580, with scikit-learn's digits.
  """
  return _Image(split, num_examples, seed)


class _Vector(generated.GeneratedSource):
  """The source of `vector`."""

  def __init__(self, split, num_examples, seed, window, aggregate):
    generated.check_int(_NAME, "window", window, 1, _DIGITS)
    if aggregate not in _AGGREGATES:
      raise config_lib.ConfigError(
          f"proj.pvr.problems: aggregate is {aggregate!r}"
          f"{config_lib.nearest(aggregate, _AGGREGATES)}; there are "
          f"{sorted(_AGGREGATES)}.")
    self._aggregate = _AGGREGATES[aggregate]
    super().__init__(
        name=_NAME, split=split, num_examples=num_examples, seed=seed,
        difficulties=[window], num_classes=_DIGITS)

  def draw(self, rng, difficulty):
    return rng.randint(0, _DIGITS, 1 + _DIGITS, np.int64)

  def solve(self, problem, difficulty):
    pointer, values = problem[0], problem[1:]
    chosen = np.roll(values, -pointer)[:difficulty]
    return _with_tokens(problem, self._aggregate(chosen), difficulty)


class _Compositional(generated.GeneratedSource):
  """The source of `compositional`."""

  def __init__(self, split, num_examples, seed, length, min_hops, max_hops):
    generated.check_int(_NAME, "length", length, 2)
    generated.check_int(_NAME, "max_hops", max_hops, 1, length - 1)
    generated.check_int(_NAME, "min_hops", min_hops, 1, max_hops)
    self._length = length
    super().__init__(
        name=_NAME, split=split, num_examples=num_examples, seed=seed,
        difficulties=range(min_hops, max_hops + 1), num_classes=length)

  def draw(self, rng, difficulty):
    numbers = rng.randint(0, self._length, self._length, np.int64)
    visited = np.sort(1 + rng.permutation(self._length - 1)[:difficulty])
    numbers[0] = visited[0]
    numbers[visited[:-1]] = visited[1:]
    numbers[visited[-1]] = rng.randint(0, visited[-1] + 1, dtype=np.int64)
    return numbers

  def solve(self, problem, difficulty):
    place = 0
    while problem[place] > place:
      place = problem[place]
    return _with_tokens(problem, problem[place], difficulty)


class _Image(generated.GeneratedSource):
  """The source of `image`."""

  splits = ("train", "test")

  def __init__(self, split, num_examples, seed):
    if split in self.splits:
      digits = arrays.digits(split)
      # The digits are in memory already, so gather all of them at once.
      rows = digits.read(np.arange(len(digits)))
      self._images, self._labels = rows["image"].numpy(), rows["label"].numpy()
    super().__init__(
        name=_NAME, split=split, num_examples=num_examples, seed=seed,
        difficulties=[1], num_classes=_DIGITS)

  def draw(self, rng, difficulty):
    return rng.randint(0, len(self._labels), 4, np.int64)

  def belongs(self, problem):
    return True  # The digits of the two splits are disjoint.

  def solve(self, problem, difficulty):
    top_left, top_right, bottom_left, bottom_right = self._images[problem]
    block = np.concatenate([
        np.concatenate([top_left, top_right], axis=1),
        np.concatenate([bottom_left, bottom_right], axis=1)], axis=0)
    labels = self._labels[problem]
    return {"image": block, "label": np.int32(labels[_PLACE[labels[0]]]),
            "difficulty": np.int32(difficulty)}


def _with_tokens(problem, label, difficulty):
  return {"tokens": (problem + 1).astype(np.int32),
          "mask": np.ones(len(problem), np.float32),
          "label": np.int32(label), "difficulty": np.int32(difficulty)}


_AGGREGATES = {
    "mod_sum": lambda values: values.sum() % 10,
    "min": np.min,
    "max": np.max,
    "median": lambda values: int(np.median(values)),
    "majority": lambda values: np.bincount(values).argmax(),
}
_FORMS = {"vector": vector, "compositional": compositional, "image": image}
