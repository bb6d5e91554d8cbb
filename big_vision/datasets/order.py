"""The order of training: which example is at which position of which seed.

Training reads an endless sequence of positions. For one source of n examples,
position p is example shuffle(p mod n) of epoch p div n, where the shuffle is a
stateless permutation of the whole source that differs from epoch to epoch. A
mixture deals its positions in blocks of MIXTURE_BLOCK: within a block each
source gets its share of positions exactly, in random order, and goes through
its own shuffled epochs across blocks.

All functions here are pure functions of (seed, position), so a run can start
at any position for free. TensorFlow is imported when they are called.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from big_vision import config as config_lib
from big_vision import ranges

# Number of positions in which a mixture has its weights exactly.
MIXTURE_BLOCK = 10_000
# Rounds of the cipher behind a shuffle. With 4, TensorFlow's default, epochs
# keep runs of the source's order: of 1,000 examples, neighbours stay together
# 14 times as often as by chance. From 6 rounds on no difference from NumPy's
# permutations was measured.
_SHUFFLE_ROUNDS = 8
# One salt for each use of the seed.
_SALT_SHUFFLE, _SALT_MIXTURE, _SALT_OPS = 1, 2, 3


def example_index(position, size: int, seed: int, attempt=0):
  """Returns which example of a source is at a position.

  Args:
    position: int64[] or int64[n], counted over all epochs of the source.
    size: Number of examples of the source.
    seed: Seed of the order, in [0, 2**31).
    attempt: Number of examples already tried in place of the one at this
      position; the substitutes follow it in the source's own order.

  Returns:
    int64 in [0, size), shaped like `position`.
  """
  epoch, offset = position // size, position % size
  return (_shuffle(offset, size, seed, epoch, _SALT_SHUFFLE) + attempt) % size


def op_seed(position, seed: int):
  """Returns the seed of the random ops at a position.

  It depends on the position over all epochs, so an example is augmented anew
  in each epoch.

  Args:
    position: int64[], counted over all epochs.
    seed: Seed of the run, in [0, 2**31).

  Returns:
    int32[2].
  """
  import tensorflow as tf
  return tf.random.experimental.stateless_fold_in(
      tf.constant([seed, _SALT_OPS], tf.int32), position)


def mixture_slots(weights: Mapping[str, float]) -> list[int]:
  """Returns how many positions of a block each source of a mixture gets.

  Args:
    weights: {name: relative weight}.

  Returns:
    Positive integers in the order of `weights` that sum to MIXTURE_BLOCK.

  Raises:
    ConfigError: A weight is not positive, or too small to get a position.
  """
  config_lib.check(
      weights, "config.input.data", Mapping[str, ranges.Positive])
  total = sum(weights.values())
  exact = {k: w / total * MIXTURE_BLOCK for k, w in weights.items()}
  counts = {k: int(x) for k, x in exact.items()}
  # The positions left over by rounding down go to the largest remainders.
  by_remainder = sorted(exact, key=lambda k: counts[k] - exact[k])
  for k in by_remainder[:MIXTURE_BLOCK - sum(counts.values())]:
    counts[k] += 1
  if min(counts.values()) == 0:
    raise config_lib.ConfigError(
        f"A weight below 1 / {MIXTURE_BLOCK} of all never gets a turn: "
        f"{dict(weights)}.")
  return list(counts.values())


def locate_in_mixture(position, slots: Sequence[int], seed: int):
  """Returns which source of a mixture is due at a position.

  Args:
    position: int64[].
    slots: Positions of each source in a block, from `mixture_slots`.
    seed: Seed of the order, in [0, 2**31).

  Returns:
    source_idx: int32[], index of the source.
    position: int64[], position in the source's own endless sequence.
  """
  import tensorflow as tf
  counts = np.asarray(slots, np.int64)
  edges = np.concatenate([[0], np.cumsum(counts)])
  block, place = position // MIXTURE_BLOCK, position % MIXTURE_BLOCK
  slot = _shuffle(place, MIXTURE_BLOCK, seed, block, _SALT_MIXTURE)
  source_idx = tf.searchsorted(edges[1:], [slot], side="right")[0]
  # Earlier blocks have used `counts` positions each of the source's sequence;
  # without that offset a large source would never get past its first ones.
  within = (block * tf.gather(counts, source_idx)
            + slot - tf.gather(edges, source_idx))
  return source_idx, within


def _shuffle(place, size, seed, block, salt):
  """Maps a place to its image under a permutation of range(size).

  There is one permutation for each (seed, block, salt). `place` is int64[] or
  int64[n], and `block` has the same shape.
  """
  import tensorflow as tf
  fill = lambda value: tf.fill(tf.shape(block), np.int64(value))
  # The raw op: tf.random.experimental.index_shuffle pads vectors of seeds along
  # the wrong axis (TensorFlow 2.21).
  return tf.raw_ops.RandomIndexShuffle(
      index=place, seed=tf.stack([fill(salt), fill(seed), block], axis=-1),
      max_index=np.int64(size - 1), rounds=_SHUFFLE_ROUNDS)
