"""The interfaces of data sources.

A source knows how examples are stored. It neither shuffles nor decodes images:
the input pipeline sets the order, and preprocessing decodes. There are two
kinds:

- A `Source` reads any example by its index, so shuffling, resuming and
  splitting over hosts cost nothing. A `RecordSource` can also fetch many
  examples at once, which is faster.
- A `StreamSource` can only be read from a beginning onwards (TFRecord). It
  keeps the same promise, that batch N is a function of (seed, N), by skipping
  records without parsing them.

Examples are flat or nested dicts of tensors whose dtypes are known without
reading data. TensorFlow is imported only when it is used, so that configs can
inspect data on a machine without TensorFlow. `registry.open_source` opens a
source by its name.
"""

import abc


class DataError(RuntimeError):
  """Stored data cannot be read; the message names the file and the record."""


class Source(abc.ABC):
  """Examples that are read by index.

  Attributes:
    num_classes: Number of values that "label" can take; None if the examples
      have no classes.
    class_names: Names of the classes in the order of the labels; None if they
      are unknown.
  """

  num_classes: int | None = None
  class_names: list[str] | None = None

  @abc.abstractmethod
  def __len__(self) -> int:
    """Returns the number of examples."""

  @abc.abstractmethod
  def read(self, index) -> dict:
    """Reads one example; can be traced in `tf.data.Dataset.map`.

    Args:
      index: int64[], tensor in [0, len).

    Returns:
      A dict of tensors with static dtypes. Images that are stored encoded are
      string[], still encoded; images in memory are uint8[h, w, c].
    """

  @abc.abstractmethod
  def describe(self, index: int) -> str:
    """Says where an example is stored, for messages: "FILE record 17"."""


class IndexSource(Source):
  """Examples that hold only their own index, for data kept on the devices.

  It serves tasks that hold their data on the devices (`Task.frozen`). The
  pipeline makes a whole batch of indices at once (1.4M instead of 47k
  examples/s on one core).

  Args:
    size: Number of examples.
    key: Entry of an example that holds its index, int64[].
  """

  def __init__(self, size: int, key: str):
    self._size, self._key = size, key

  def __len__(self):
    return self._size

  def read(self, index):
    """Returns the example of int64[], or a batch of examples of int64[n]."""
    return {self._key: index}


class RecordSource(Source):
  """A `Source` whose examples are serialized records.

  `read(i)` is `parse(fetch([i])[0])`. Fetching many records at a time is much
  faster (ArrayRecord, 64 at a time: 21k instead of 3.6k records/s on 2 cores).
  """

  @abc.abstractmethod
  def fetch(self, indices):
    """Returns records as they are stored.

    It never fails: an unreadable record is replaced by a marker that contains
    the reason, and `parse` fails on it. So one damaged record does not take
    the others of its fetch with it.

    Args:
      indices: int64[n], tensor in [0, len).

    Returns:
      string[n].
    """

  @abc.abstractmethod
  def check_record(self, record):
    """Returns `record`, string[]; fails in the graph if it was unreadable."""

  @abc.abstractmethod
  def parse(self, record) -> dict:
    """Returns the example of one record, string[], as `read` returns it."""

  def read(self, index):
    return self.parse(self.fetch(index[None])[0])


class StreamSource(abc.ABC):
  """Examples that are read in the order in which files hold them.

  Attributes:
    num_classes: Number of values that "label" can take; None if the examples
      have no classes.
    class_names: Names of the classes in the order of the labels; None if they
      are unknown.
  """

  num_classes: int | None = None
  class_names: list[str] | None = None

  @abc.abstractmethod
  def __len__(self) -> int:
    """Returns the number of examples in one pass."""

  @abc.abstractmethod
  def stream(self, seed: int | None, buffer_size: int, first: int = 0):
    """Returns records as they are stored, not parsed.

    Args:
      seed: None for one pass in the order of the files. With a seed the stream
        is endless; records [e * len, (e + 1) * len) are a shuffle of the whole
        source that depends only on (seed, e, buffer_size).
      buffer_size: Number of records in the shuffle buffer; unused without seed.
      first: Number of records to skip. Whole epochs are skipped for free; the
        remaining records are read, but not parsed.

    Returns:
      tf.data.Dataset of string[].
    """

  @abc.abstractmethod
  def parse(self, record) -> dict:
    """Returns the example of one record, as `Source.read` returns it.

    Args:
      record: string[], tensor.
    """

  @abc.abstractmethod
  def describe_position(self, position: int) -> str:
    """Says where the record at `position` of the unshuffled pass is stored."""

  @abc.abstractmethod
  def describe(self, record: bytes) -> str:
    """Says where `record` is stored; reads the files until it is found."""

  @abc.abstractmethod
  def check(self) -> None:
    """Reads every record of every file.

    Raises:
      DataError: A record cannot be read; the error names the file and the
        record.
    """

  def describe_error(self, error: Exception) -> str:
    """Says which record is damaged after reading the stream failed.

    TensorFlow's error names neither the record nor, at times, the file, so the
    files are read once more. That is slow, but only happens after a failure.

    Args:
      error: Error that ended the stream.
    """
    try:
      self.check()
    except DataError as found:
      return str(found)
    return f"every stored record can be read, yet reading failed: {error}"
