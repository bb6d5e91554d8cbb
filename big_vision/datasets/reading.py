"""Reads the examples at given positions of a sequence, for any kind of source.

A `Reading` says which example is at a position and how it is finished; the
functions here turn that into a tf.data.Dataset of one process's rows of each
batch. Training and evaluation share them.

TensorFlow is imported when they are called.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from big_vision.datasets import core

# Number of examples that are tried in place of a damaged one, itself included.
_MAX_ATTEMPTS = 8
# Number of records per batched read of a `RecordSource`.
_RECORDS_PER_FETCH = 32


class Reading(NamedTuple):
  """A sequence of preprocessed examples, one at each position from 0.

  Attributes:
    sources: Sources of the sequence; several of them make a mixture, whose
      sources are all read by index.
    locate: Function (position, attempt) -> (source_idx, index) that says which
      example is at a position, int64[]. With one source, positions may also be
      int64[n], and `source_idx` is 0. `attempt` counts the examples already
      tried in place of a damaged one. Unused for streams.
    finish: Function (source_idx, position, example, attempt) -> example that
      preprocesses what the source has read; `source_idx` is an int.
    stream: Function first -> tf.data.Dataset of stored records, from position
      `first` on; None if examples are read by index.
    finish_batch: Function (positions, examples) -> examples that finishes a
      whole batch at once; None if examples are finished one by one.
  """
  sources: Sequence[core.Source | core.StreamSource]
  locate: Callable
  finish: Callable
  stream: Callable | None = None
  finish_batch: Callable | None = None


def make_dataset(
    reading: Reading, rows: np.ndarray, batch_size: int, *,
    first_batch: int = 0, num_batches: int | None = None,
    skip_errors: bool = False):
  """Makes a dataset of one process's rows of each batch.

  Args:
    reading: Sequence to read. Row r of batch N is its position
      N * batch_size + r.
    rows: int64[r], rows of a global batch to read, ascending.
    batch_size: Number of examples in a global batch.
    first_batch: Number of the first batch.
    num_batches: Number of batches; None for an endless dataset.
    skip_errors: Whether damaged examples are replaced by others. Examples then
      have an entry "_attempt", int32[], the number of replaced ones.

  Returns:
    tf.data.Dataset of dicts of tensors with leading size r.
  """
  import tensorflow as tf
  numbers = tf.data.Dataset.counter(np.int64(first_batch))
  if num_batches is not None:
    numbers = numbers.take(num_batches)

  def positions_of(n):
    return n * batch_size + tf.constant(rows, tf.int64)

  if reading.finish_batch is not None:
    def load_batch(n):
      positions = positions_of(n)
      _, indices = reading.locate(positions, 0)
      return reading.finish_batch(positions, reading.sources[0].read(indices))
    return _prefetch(numbers.map(load_batch, **_parallel()))

  if reading.stream is not None:
    examples = _read_stream(reading, rows, batch_size, first_batch, num_batches)
  else:
    positions = numbers.flat_map(
        lambda n: tf.data.Dataset.from_tensor_slices(positions_of(n)))
    if skip_errors:
      examples = _read_with_substitutes(reading, positions)
    elif len(reading.sources) == 1 and isinstance(
        reading.sources[0], core.RecordSource):
      examples = _read_records(reading, positions)
    else:
      examples = positions.map(
          lambda position: load(reading, position), **_parallel())
  return _prefetch(examples.batch(len(rows), drop_remainder=True))


def load(reading: Reading, position, attempt=0):
  """Reads and finishes the example at a position, int64[]."""
  import tensorflow as tf
  source_idx, index = reading.locate(position, attempt)

  def load_from(i):
    return reading.finish(
        i, position, reading.sources[i].read(index), attempt)
  if len(reading.sources) == 1:
    return load_from(0)
  return tf.switch_case(source_idx, [
      lambda i=i: load_from(i) for i in range(len(reading.sources))])


def describe(reading: Reading, position: int, attempt: int = 0) -> str:
  """Says where the example at a position is stored, for messages."""
  import tensorflow as tf
  source_idx, index = reading.locate(
      tf.constant(position, tf.int64), attempt)
  return reading.sources[int(source_idx)].describe(int(index))


def explain(
    reading: Reading, error: Exception, positions: np.ndarray) -> Exception:
  """Finds the example that made a batch fail.

  Args:
    reading: Sequence that was read.
    error: Error that reading the batch raised.
    positions: int64[r], positions of the batch.

  Returns:
    A DataError that names the example; `error` itself if no example fails when
    it is read alone.
  """
  import tensorflow as tf
  if reading.stream is not None:
    return core.DataError(reading.sources[0].describe_error(error))
  if not isinstance(error, tf.errors.OpError):
    return error
  for position in positions:
    try:
      load(reading, tf.constant(position, tf.int64))
    except tf.errors.OpError as found:
      return core.DataError(
          f"{describe(reading, int(position))} cannot be used: "
          f"{found.message[:400]}\n"
          "Mend or remove it, or set config.input.skip_errors=True to replace "
          "such examples.")
  return error


def _read_stream(reading, rows, batch_size, first_batch, num_batches):
  """Parses the records of a stream that belong to `rows`, skips the others."""
  import tensorflow as tf
  first = first_batch * batch_size
  is_wanted = np.isin(np.arange(batch_size), rows)
  records = reading.stream(first)
  if num_batches is not None:
    records = records.take(num_batches * batch_size)
  positions = tf.data.Dataset.counter(np.int64(first))
  return tf.data.Dataset.zip(positions, records).filter(
      lambda position, record: tf.constant(is_wanted)[position % batch_size]
  ).map(
      lambda position, record: reading.finish(
          0, position, reading.sources[0].parse(record), 0), **_parallel())


def _read_records(reading, positions):
  """Fetches many records at a time, then parses and finishes them singly."""
  source, = reading.sources

  def fetch(position):
    _, indices = reading.locate(position, 0)
    return position, source.fetch(indices)

  return positions.batch(_RECORDS_PER_FETCH).map(
      fetch, **_parallel()).unbatch().map(
          lambda position, record: reading.finish(
              0, position, source.parse(record), 0), **_parallel())


def _read_with_substitutes(reading, positions):
  """Reads examples; a damaged one is replaced by one that follows it.

  Each position becomes a small dataset of candidates, of which the first one
  without error is taken, so that no position is lost and batches stay what
  they are.
  """
  import tensorflow as tf

  def candidates(position):
    def attempt(k):
      return {**load(reading, position, k), "_attempt": tf.cast(k, tf.int32)}
    tries = tf.data.Dataset.range(_MAX_ATTEMPTS).map(attempt)
    # If all candidates fail, the error of the last one is raised.
    last = tf.data.Dataset.range(_MAX_ATTEMPTS - 1, _MAX_ATTEMPTS).map(attempt)
    return tries.ignore_errors().concatenate(last).take(1)

  return positions.interleave(
      candidates, cycle_length=16, block_length=1,
      num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _parallel():
  import tensorflow as tf
  return dict(num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _prefetch(batches):
  """Makes batches ahead of time, in order."""
  import tensorflow as tf
  options = tf.data.Options()
  options.deterministic = True
  return batches.prefetch(2).with_options(options)
