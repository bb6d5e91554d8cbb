"""TFDS datasets stored as ArrayRecord, read by index."""

import resource
import threading

import numpy as np

from big_vision.datasets import core
from big_vision.datasets.tfds import records as records_lib

# Prefix of the marker that replaces an unreadable record; the reason follows.
# No serialized proto starts with zero.
_UNREADABLE = b"\0unreadable: "


class ArrayRecordSource(records_lib.StoredRecords, core.RecordSource):
  """Reads a TFDS dataset that is stored as ArrayRecord."""

  def __init__(self, parts, features, skip_decode, name):
    super().__init__(parts, features, skip_decode, name)
    _allow_open_files(len(parts))
    self._ends = np.cumsum([part.take for part in parts])
    self._readers = {}
    self._lock = threading.Lock()

  def fetch(self, indices):
    import tensorflow as tf
    records = tf.numpy_function(
        self._fetch, [indices], tf.string, stateful=False)
    return tf.ensure_shape(records, indices.shape)

  def _fetch(self, indices: np.ndarray) -> np.ndarray:
    """Returns object[n] of bytes; calls the reader once for each file."""
    records = np.empty(len(indices), dtype=object)
    which = np.searchsorted(self._ends, indices, side="right")
    for i in np.unique(which):
      places = np.flatnonzero(which == i)
      part = self.parts[i]
      numbers = indices[places] - self._ends[i] + part.take + part.skip
      try:
        records[places] = self._reader(part.filename).read(numbers.tolist())
      except Exception:  # The reader raises anything. Find the bad record.
        for place, number in zip(places, numbers):
          records[place] = self._fetch_one(part.filename, int(number))
    return records

  def _fetch_one(self, filename: str, number: int) -> bytes:
    try:
      return self._reader(filename).read([number])[0]
    except Exception as error:
      return _UNREADABLE + (
          f"{filename} record {number} cannot be read: {error}".encode())

  def _reader(self, filename: str):
    """Returns the file's reader, opened on first use and shared by threads."""
    from array_record.python import array_record_module
    reader = self._readers.get(filename)
    if reader is None:
      with self._lock:
        if filename not in self._readers:
          # Reading ahead does not help in random order.
          self._readers[filename] = array_record_module.ArrayRecordReader(
              filename, options="readahead_buffer_size:0",
              file_reader_buffer_size=32768)
        reader = self._readers[filename]
    return reader

  def check_record(self, record):
    import tensorflow as tf
    start = tf.strings.substr(record, 0, len(_UNREADABLE))
    with tf.control_dependencies([
        tf.debugging.Assert(start != _UNREADABLE, [record])]):
      return tf.identity(record)

  def parse(self, record):
    return super().parse(self.check_record(record))

  def describe(self, index):
    return self.describe_position(index)


def _allow_open_files(count: int) -> None:
  """Raises this process's limit on open files so that it can open `count`.

  Every file stays open, and the limit is often 1,024, which ImageNet's files
  alone would reach.

  Raises:
    DataError: The hard limit is too low.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = count + 512  # Spare ones for the rest of the run.
  if soft == resource.RLIM_INFINITY or soft >= wanted:
    return
  if hard == resource.RLIM_INFINITY:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
  elif hard >= wanted:
    # Up to the hard limit, since other datasets may follow.
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
  else:
    raise core.DataError(
        f"The dataset has {count} files, but this process may open only {hard} "
        f"(ulimit -Hn). Raise that limit to {wanted}, or prepare the dataset "
        "in fewer files.")
