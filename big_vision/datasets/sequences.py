"""Generated sequences of tokens to copy, to reverse and to add up.

`generated` says how examples, splits and seeds are made.

Vocabulary: PAD = 0 is padding; digit or symbol s, counted from 0, is the token
s + 1; addition also has PLUS. Labels are tokens of the same vocabulary.
"""

import numpy as np

from big_vision import ranges
from big_vision.datasets import core
from big_vision.datasets import generated

PAD = 0
PLUS = 11  # After the ten digits.


def copy(
    split: str, num_examples: ranges.Count, seed: ranges.Seed = 0,
    min_length: ranges.Count = 1, max_length: ranges.Count = 10,
    num_symbols: ranges.Count = 10, size: ranges.Count | None = None
) -> core.Source:
  """Opens sequences to be repeated: the label of every token is that token.

  Examples have
    "tokens": int32[size], symbols in 1..num_symbols, then padding, 0.
    "labels": int32[size], the answer at each token; 0 for padding.
    "mask": float32[size], 1 for tokens, 0 for padding.
    "difficulty": int32[], the length.

  Args:
    split: "train", "validation" or "test".
    num_examples: Number of examples.
    seed: Seed of the examples; see `generated.GeneratedSource`.
    min_length: Number of tokens of the shortest sequences, at least 1.
    max_length: Number of tokens of the longest sequences. All lengths are
      equally frequent.
    num_symbols: Number of symbols, drawn uniformly and independently; at least
      2.
    size: Length of the padded sequence, at least `max_length`, which is the
      default. It lets data sets with different lengths have one shape.

  Raises:
    ConfigError: An option is out of its range, or there are too few sequences
      for three disjoint splits: fewer than about 20 of one length.

  Source: the task of arXiv:1511.08228 and of arXiv:1807.03819, section 3.3,
    with one output for every input in place of a decoder.
  """
  return _Copy(
      name="bv:copy", backwards=False, split=split, num_examples=num_examples,
      seed=seed, min_length=min_length, max_length=max_length,
      num_symbols=num_symbols, size=size)


def reverse(
    split: str, num_examples: ranges.Count, seed: ranges.Seed = 0,
    min_length: ranges.Count = 1, max_length: ranges.Count = 10,
    num_symbols: ranges.Count = 10, size: ranges.Count | None = None
) -> core.Source:
  """Opens sequences to be reversed; the rest is as in `copy`."""
  return _Copy(
      name="bv:reverse", backwards=True, split=split, num_examples=num_examples,
      seed=seed, min_length=min_length, max_length=max_length,
      num_symbols=num_symbols, size=size)


def addition(
    split: str, num_examples: ranges.Count, seed: ranges.Seed = 0,
    min_digits: ranges.Count = 1, max_digits: ranges.Count = 10,
    size: ranges.Count | None = None) -> core.Source:
  """Opens sums of two decimal numbers of k digits each.

  The 2 k + 1 tokens are the digits of a, PLUS, and the digits of b, each number
  beginning with its highest digit. The answer also has 2 k + 1 digits: its last
  digit is the label of the last token. More than half of its digits are leading
  zeros, so the accuracy of single tokens is higher than it looks.

    tokens  1 2 + 9 5
    labels  0 0 1 0 7

  Examples have "tokens", "labels", "mask" and "difficulty" like those of
  `copy`; the difficulty is k. a + b and b + a belong to the same split.

  Args:
    split: "train", "validation" or "test".
    num_examples: Number of examples.
    seed: Seed of the examples; see `generated.GeneratedSource`.
    min_digits: Lowest k, at least 1.
    max_digits: Highest k; all are equally frequent. Digits are uniform and
      independent, so numbers may begin with zeros.
    size: Length of the padded sequence, at least 2 max_digits + 1, which is the
      default.

  Raises:
    ConfigError: An option is out of its range.

  Source: the task of arXiv:1511.08228 and of arXiv:1807.03819, section 3.3; the
    layout is our own.
  """
  return _Addition(
      split=split, num_examples=num_examples, seed=seed, min_digits=min_digits,
      max_digits=max_digits, size=size)


class _Copy(generated.GeneratedSource):
  """The sources of `copy` and `reverse`."""

  def __init__(self, *, name, backwards, split, num_examples, seed, min_length,
               max_length, num_symbols, size):
    generated.check_int(name, "min_length", min_length, 1)
    generated.check_int(name, "max_length", max_length, min_length)
    generated.check_int(name, "num_symbols", num_symbols, 2)
    self._size = max_length if size is None else size
    generated.check_int(name, "size", self._size, max_length)
    self._backwards, self._num_symbols = backwards, num_symbols
    super().__init__(
        name=name, split=split, num_examples=num_examples, seed=seed,
        difficulties=range(min_length, max_length + 1),
        num_classes=num_symbols + 1)

  def draw(self, rng, difficulty):
    return rng.randint(1, self._num_symbols + 1, difficulty, np.int64)

  def solve(self, problem, difficulty):
    answer = problem[::-1] if self._backwards else problem
    return _example(problem, answer, difficulty, self._size)


class _Addition(generated.GeneratedSource):
  """The source of `addition`."""

  def __init__(
      self, *, split, num_examples, seed, min_digits, max_digits, size):
    name = "bv:addition"
    generated.check_int(name, "min_digits", min_digits, 1)
    generated.check_int(name, "max_digits", max_digits, min_digits)
    self._size = 2 * max_digits + 1 if size is None else size
    generated.check_int(name, "size", self._size, 2 * max_digits + 1)
    super().__init__(
        name=name, split=split, num_examples=num_examples, seed=seed,
        difficulties=range(min_digits, max_digits + 1), num_classes=PLUS + 1)

  def draw(self, rng, difficulty):
    return rng.randint(0, 10, (2, difficulty), np.int64)

  def identity(self, problem):
    return sorted(problem.tolist())

  def solve(self, problem, difficulty):
    answer = np.zeros(2 * difficulty + 1, np.int64)
    carry = 0
    for place in range(1, difficulty + 1):  # From the right, as on paper.
      carry, answer[-place] = divmod(int(problem[:, -place].sum()) + carry, 10)
    answer[-difficulty - 1] = carry
    tokens = np.concatenate([problem[0] + 1, [PLUS], problem[1] + 1])
    return _example(tokens, answer + 1, difficulty, self._size)


def _example(tokens, labels, difficulty, size):
  """Returns the example of `tokens` and `labels`, both int[n], padded."""
  return {"tokens": generated.padded(tokens, size),
          "labels": generated.padded(labels, size),
          "mask": (np.arange(size) < len(tokens)).astype(np.float32),
          "difficulty": np.int32(difficulty)}
