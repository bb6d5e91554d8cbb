"""TFDS datasets stored as TFRecord, read as streams."""

from big_vision.datasets import core
from big_vision.datasets.tfds import records as records_lib

# Number of shards whose records alternate while shuffling. It makes up for a
# shuffle buffer that is smaller than the dataset.
_NUM_INTERLEAVED = 16


class TFRecordSource(records_lib.StoredRecords, core.StreamSource):
  """Streams a TFDS dataset that is stored as TFRecord."""

  def stream(self, seed, buffer_size, first=0):
    import tensorflow as tf
    filenames = tf.constant([part.filename for part in self.parts])
    skips = tf.constant([part.skip for part in self.parts], tf.int64)
    takes = tf.constant([part.take for part in self.parts], tf.int64)

    def read_part(i):
      records = tf.data.TFRecordDataset(tf.gather(filenames, i))
      take = tf.gather(takes, i)
      records = records.skip(tf.gather(skips, i)).take(take)
      # A file that was cut between two records would read as if it were whole.
      return records.apply(tf.data.experimental.assert_cardinality(take))

    if seed is None:
      records = tf.data.Dataset.range(len(self.parts)).flat_map(read_part)
      return records.skip(first)

    def read_epoch(epoch):
      # This sets the seed of this function's own graph, so that the order does
      # not depend on other calls of tf.random.set_seed in the process.
      tf.random.set_seed(1)
      rng = tf.stack([tf.cast(seed, tf.int64), epoch])
      order = tf.random.experimental.stateless_shuffle(
          tf.range(len(self.parts), dtype=tf.int64), rng, alg="philox")
      shuffle_seed = tf.random.stateless_uniform(
          [], rng, None, None, tf.int64, alg="philox")
      records = tf.data.Dataset.from_tensor_slices(order).interleave(
          read_part, cycle_length=_NUM_INTERLEAVED, block_length=1,
          num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
      return records.shuffle(
          buffer_size, seed=shuffle_seed, reshuffle_each_iteration=False)

    first_epoch, first = divmod(first, len(self))
    epochs = tf.data.Dataset.counter(first_epoch)
    return epochs.flat_map(read_epoch).skip(first)

  def describe(self, record):
    for part in self.parts:
      for number, stored in _read_file(part):
        if stored == record:
          return f"{part.filename} record {number}"
    return f"a record of {len(record)} bytes that none of the files contains"

  def check(self):
    for filename in sorted({part.filename for part in self.parts}):
      part = next(p for p in self.parts if p.filename == filename)
      count = sum(1 for _ in _read_file(part))
      if count != part.examples_in_shard:
        raise core.DataError(
            f"{filename} has {count} records; the dataset's info counts "
            f"{part.examples_in_shard}. Restore the file, or delete the "
            "dataset and prepare it again.")


def _read_file(part):
  """Yields (number, record) for all records of a TFRecord file."""
  import tensorflow as tf
  records = tf.data.TFRecordDataset(part.filename).as_numpy_iterator()
  number = 0
  while True:
    try:
      record = next(records)
    except StopIteration:
      return
    except tf.errors.OpError as error:
      raise core.DataError(
          f"{part.filename} is damaged at record {number} of "
          f"{part.examples_in_shard}: {error.message}") from error
    yield number, record
    number += 1
