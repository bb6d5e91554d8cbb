"""Generated data: what all of its sources share; copy, reverse and addition.

Nothing is stored and nothing is held. Example i is a pure function of (source,
split, seed, i, options), the same on every host, in any order, for any number
of readers: its random numbers are Philox's, which counts from (split, seed, i)
on, and are turned into problems by `RandomState`, whose methods NumPy has
promised not to change.

Splits are disjoint by construction, for all seeds, sizes and options: a hash of
the problem itself says which split it belongs to (half of all problems "train",
a quarter "validation", a quarter "test"), and what belongs to another one is
drawn again. What is left of a small space of problems can be nothing; opening
such a source is an error.

Examples are stratified: of n difficulties in ascending order, example i has
number i mod n.

Vocabulary: PAD = 0 is no token; digit or symbol s, from 0, is the token s + 1;
addition also has PLUS. Labels are tokens of the same vocabulary.
"""

import abc
from collections.abc import Sequence
import hashlib
import sys

import numpy as np

from big_vision import config as config_lib
from big_vision.datasets import core

PAD = 0
PLUS = 11  # After the ten digits.

# Split: its number, and which remainders of a hash, modulo 4, are its own.
_SPLITS = {"train": (0, (0, 1)), "validation": (1, (2,)), "test": (2, (3,))}
# So many problems are drawn until there is one of the split. Opening a source
# gives up far sooner, at any of the first few examples of each difficulty: what
# passes that is found in about 1 of 1,000 draws or more, and can be read.
_ATTEMPTS_TO_OPEN, _ATTEMPTS_TO_READ = 1_000, 100_000
_NUM_TRIED = 8


class GeneratedSource(core.RecordSource):
  """Examples that are computed from their index.

  They pass through TensorFlow as records, one after the other array's bytes:
  what calling Python from it costs is then shared by many examples.

  Args:
    name: Name of the source, for messages.
    split: "train", "validation" or "test".
    num_examples: how many there are.
    seed: another one gives other examples of the same split, in [0, 2**32).
    difficulties: Difficulties that `draw` is asked for, in turn.
    num_classes: how many values a label can take.

  Raises:
    ConfigError: there is no such split; `num_examples` or `seed` is out of
      range; or the split has no problem of one of the difficulties, or hardly
      any.
  """

  splits: Sequence[str] = tuple(_SPLITS)

  def __init__(self, name: str, split: str, num_examples: int, seed: int,
               difficulties: Sequence[int], num_classes: int):
    if split not in self.splits:
      raise config_lib.ConfigError(
          f"{name} has no split {split!r}"
          f"{config_lib.nearest(split, self.splits)}; it has "
          f"{sorted(self.splits)}.")
    check_int(name, "num_examples", num_examples, 1, 2 ** 63 - 1)
    check_int(name, "seed", seed, 0, 2 ** 32 - 1)
    self.num_classes = num_classes
    self._name, self._split, self._seed = name, split, seed
    self._num_examples, self._difficulties = num_examples, list(difficulties)
    first, *_ = [self._make(i, _ATTEMPTS_TO_OPEN)
                 for i in range(_NUM_TRIED * len(self._difficulties))]
    self._spec = {key: (np.asarray(value).dtype, np.shape(value))
                  for key, value in first.items()}

  @abc.abstractmethod
  def draw(self, rng: np.random.RandomState, difficulty: int):
    """A random problem.

    Args:
      rng: where its random numbers come from.
      difficulty: one of those the source was made with.

    Returns:
      int64[...], all that the problem is, without padding; None if what was
      drawn is none of this difficulty.
    """

  @abc.abstractmethod
  def solve(self, problem, difficulty: int) -> dict:
    """The example of a problem: {key: array or scalar of NumPy}."""

  def identity(self, problem):
    """What decides the split of `problem`; the same for what is the same."""
    return problem

  def belongs(self, problem) -> bool:
    """Whether `problem` is one of this split."""
    content = np.ascontiguousarray(self.identity(problem), "<i8").tobytes()
    digest = hashlib.blake2b(content, digest_size=1).digest()
    return digest[0] % 4 in _SPLITS[self._split][1]

  def example(self, index: int) -> dict:
    """What `read` returns, of NumPy."""
    return self._make(index, _ATTEMPTS_TO_READ)

  def __len__(self):
    return self._num_examples

  def fetch(self, indices):
    import tensorflow as tf

    def records(indices):
      examples = [self.example(int(index)) for index in indices]
      return np.array(
          [b"".join(np.asarray(example[key]).tobytes() for key in self._spec)
           for example in examples], object)

    result = tf.numpy_function(records, [indices], tf.string, stateful=False)
    return tf.ensure_shape(result, indices.shape)

  def check_record(self, record):
    return record

  def parse(self, record):
    import tensorflow as tf
    example, start = {}, 0
    for key, (dtype, shape) in self._spec.items():
      num_bytes = dtype.itemsize * int(np.prod(shape))
      values = tf.io.decode_raw(
          tf.strings.substr(record, start, num_bytes), dtype,
          little_endian=sys.byteorder == "little")
      example[key] = tf.reshape(values, shape)
      start += num_bytes
    return example

  def describe(self, index):
    return f"{self._name} {self._split}, seed {self._seed}, example {index}"

  def _make(self, index, num_attempts):
    difficulty = self._difficulties[index % len(self._difficulties)]
    # The index is in the counter's highest word: no two examples ever share a
    # random number, however many each of them needs.
    rng = np.random.RandomState(np.random.Philox(
        key=[self._seed, _SPLITS[self._split][0]], counter=[0, 0, 0, index]))
    for _ in range(num_attempts):
      problem = self.draw(rng, difficulty)
      if problem is not None and self.belongs(problem):
        return self.solve(problem, difficulty)
    raise config_lib.ConfigError(
        f"{self.describe(index)}: none of {num_attempts} problems that were "
        f"drawn is one of difficulty {difficulty} that belongs to this split. "
        "Either there are so few such problems that this split has none (ask "
        "for larger ones), or what the options ask for is too rare.")


def copy(
    split: str, num_examples: int, seed: int = 0, min_length: int = 1,
    max_length: int = 10, num_symbols: int = 10,
    size: int | None = None) -> core.Source:
  """Sequences to be repeated: the label of every token is that token.

  Examples have
    "tokens": int32[size], symbols in 1..num_symbols, then padding, 0.
    "labels": int32[size], what is to be said at each token; 0 for padding.
    "mask": float32[size], 1 for tokens, 0 for padding.
    "difficulty": int32[], the length.

  Args:
    split: "train", "validation" or "test".
    num_examples: how many.
    seed: see `GeneratedSource`.
    min_length: tokens of the shortest sequences, at least 1.
    max_length: tokens of the longest; all lengths are equally frequent.
    num_symbols: symbols, drawn uniformly and independently; at least 2.
    size: Length of the padded sequence, by default `max_length`, at least that;
      it lets sets of sequences of different lengths have one shape.

  Raises:
    ConfigError: an option out of its range, or too few sequences for three
      disjoint splits: fewer than about 20 of one length.

  Source: the task of arXiv:1511.08228 and of arXiv:1807.03819, section 3.3,
    with one output for every input in place of a decoder.
  """
  return _Copy("bv:copy", False, split, num_examples, seed, min_length,
               max_length, num_symbols, size)


def reverse(
    split: str, num_examples: int, seed: int = 0, min_length: int = 1,
    max_length: int = 10, num_symbols: int = 10,
    size: int | None = None) -> core.Source:
  """Sequences to be said backwards; all else is as in `copy`."""
  return _Copy("bv:reverse", True, split, num_examples, seed, min_length,
               max_length, num_symbols, size)


def addition(
    split: str, num_examples: int, seed: int = 0, min_digits: int = 1,
    max_digits: int = 10, size: int | None = None) -> core.Source:
  """Sums of two decimal numbers of k digits each.

  The 2 k + 1 tokens are the digits of a, PLUS, the digits of b, the highest
  first. The answer stands below, also in 2 k + 1 digits: its last digit is the
  label of the last token. So more than half of the digits are leading zeros,
  which the accuracy of single tokens counts, too.

    tokens  1 2 + 9 5
    labels  0 0 1 0 7

  Examples have "tokens", "labels", "mask" and "difficulty" as those of `copy`;
  the difficulty is k. a + b and b + a belong to the same split.

  Args:
    split: "train", "validation" or "test".
    num_examples: how many.
    seed: see `GeneratedSource`.
    min_digits: the lowest k, at least 1.
    max_digits: the highest k; all are equally frequent. Digits are uniform and
      independent, so numbers may begin with zeros.
    size: Length of the padded sequence, at least 2 max_digits + 1, the default.

  Raises:
    ConfigError: an option out of its range.

  Source: the task of arXiv:1511.08228 and of arXiv:1807.03819, section 3.3; the
    layout is our own.
  """
  return _Addition(split, num_examples, seed, min_digits, max_digits, size)


def check_int(
    name: str, option: str, value, least: int, most: int | None = None):
  """Raises ConfigError unless `value` is an int in [least, most]."""
  if (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or
      value < least or (most is not None and value > most)):
    accepted = (f"at least {least}" if most is None
                else f"in [{least}, {most}]")
    raise config_lib.ConfigError(
        f"{name}: {option} is {value!r}; it must be an int, {accepted}.")


def padded(tokens, size: int) -> np.ndarray:
  """int32[size]: `tokens`, int[n], and zeros."""
  result = np.zeros(size, np.int32)
  result[:len(tokens)] = tokens
  return result


class _Copy(GeneratedSource):
  """The sources of `copy` and `reverse`."""

  def __init__(self, name, backwards, split, num_examples, seed, min_length,
               max_length, num_symbols, size):
    check_int(name, "min_length", min_length, 1)
    check_int(name, "max_length", max_length, min_length)
    check_int(name, "num_symbols", num_symbols, 2)
    self._size = max_length if size is None else size
    check_int(name, "size", self._size, max_length)
    self._backwards, self._num_symbols = backwards, num_symbols
    super().__init__(name, split, num_examples, seed,
                     range(min_length, max_length + 1), num_symbols + 1)

  def draw(self, rng, difficulty):
    return rng.randint(1, self._num_symbols + 1, difficulty, np.int64)

  def solve(self, problem, difficulty):
    answer = problem[::-1] if self._backwards else problem
    return _per_token(problem, answer, difficulty, self._size)


class _Addition(GeneratedSource):
  """The source of `addition`."""

  def __init__(self, split, num_examples, seed, min_digits, max_digits, size):
    name = "bv:addition"
    check_int(name, "min_digits", min_digits, 1)
    check_int(name, "max_digits", max_digits, min_digits)
    self._size = 2 * max_digits + 1 if size is None else size
    check_int(name, "size", self._size, 2 * max_digits + 1)
    super().__init__(name, split, num_examples, seed,
                     range(min_digits, max_digits + 1), PLUS + 1)

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
    return _per_token(tokens, answer + 1, difficulty, self._size)


def _per_token(tokens, labels, difficulty, size):
  return {"tokens": padded(tokens, size), "labels": padded(labels, size),
          "mask": (np.arange(size) < len(tokens)).astype(np.float32),
          "difficulty": np.int32(difficulty)}
