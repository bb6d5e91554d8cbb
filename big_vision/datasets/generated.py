"""Data that is computed instead of stored: the base of its sources.

Nothing is stored and nothing is held in memory. Example i is a pure function of
(source, split, seed, i, options): it is the same on every host, in any order
and for any number of readers. Its random numbers come from Philox, a generator
that counts upwards from (split, seed, i), through the methods of `RandomState`,
which NumPy has promised not to change.

Splits are disjoint by construction, for all seeds, sizes and options. A hash of
the problem itself says which split it belongs to: half of all problems are
"train", a quarter "validation" and a quarter "test". A problem of another split
is drawn again. A small space of problems may leave a split without any; opening
such a source is an error.

Examples are stratified: with n difficulties in ascending order, example i has
difficulty number i mod n.
"""

import abc
from collections.abc import Sequence
import hashlib
import sys

import numpy as np

from big_vision import config as config_lib
from big_vision.datasets import core

# Split: its number, and its remainders of the hash modulo 4.
_SPLITS = {"train": (0, (0, 1)), "validation": (1, (2,)), "test": (2, (3,))}
# Number of problems drawn in search of one that belongs to the split. Opening a
# source tries the first few examples of each difficulty and gives up far sooner
# than reading does. So a source that opens finds about one problem in 1,000
# draws or more, and reading it does not fail.
_ATTEMPTS_TO_OPEN, _ATTEMPTS_TO_READ = 1_000, 100_000
_NUM_TRIED = 8


class GeneratedSource(core.RecordSource):
  """Examples that are computed from their index.

  They pass through TensorFlow as records, in which the bytes of all arrays
  follow each other, so that many examples share the cost of one call into
  Python.

  Args:
    name: Name of the source, for messages.
    split: "train", "validation" or "test".
    num_examples: Number of examples.
    seed: Seed in [0, 2**32); another one gives other examples of the same
      split.
    difficulties: Difficulties that `draw` is asked for, in turn.
    num_classes: Number of values that a label can take.

  Raises:
    ConfigError: There is no such split; `num_examples` or `seed` is out of
      range; or problems of some difficulty do not occur in the split, or hardly
      ever.
  """

  splits: Sequence[str] = tuple(_SPLITS)

  def __init__(self, *, name: str, split: str, num_examples: int, seed: int,
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
    """Draws a random problem.

    Args:
      rng: Generator of its random numbers.
      difficulty: One of the difficulties that the source was made with.

    Returns:
      int64[...], the whole problem without padding; None if the problem drawn
      has another difficulty.
    """

  @abc.abstractmethod
  def solve(self, problem, difficulty: int) -> dict:
    """Returns the example of a problem, {key: NumPy array or scalar}."""

  def identity(self, problem):
    """Returns the integers that decide the split of `problem`.

    Problems that count as the same have the same identity.
    """
    return problem

  def belongs(self, problem) -> bool:
    """Returns whether `problem` belongs to this split."""
    content = np.ascontiguousarray(self.identity(problem), "<i8").tobytes()
    digest = hashlib.blake2b(content, digest_size=1).digest()
    return digest[0] % 4 in _SPLITS[self._split][1]

  def example(self, index: int) -> dict:
    """Returns example number `index` as NumPy arrays."""
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
    """Draws and solves the problem of an example."""
    difficulty = self._difficulties[index % len(self._difficulties)]
    # The index is in the counter's highest word, so no two examples ever share
    # a random number, however many each of them needs.
    rng = np.random.RandomState(np.random.Philox(
        key=[self._seed, _SPLITS[self._split][0]], counter=[0, 0, 0, index]))
    for _ in range(num_attempts):
      problem = self.draw(rng, difficulty)
      if problem is not None and self.belongs(problem):
        return self.solve(problem, difficulty)
    raise config_lib.ConfigError(
        f"{self.describe(index)}: {num_attempts} draws found no problem of "
        f"difficulty {difficulty} that belongs to this split. Either there are "
        "so few such problems that the split has none (ask for larger ones), "
        "or problems that fit the options are too rare.")


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
  """Returns `tokens`, int[n], followed by zeros: int32[size]."""
  result = np.zeros(size, np.int32)
  result[:len(tokens)] = tokens
  return result
