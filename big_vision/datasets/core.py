"""What a data source is, and opening one by the name a config gives it.

A source knows how examples are stored. It neither shuffles nor decodes images:
order is the input pipeline's, decoding is preprocessing's. There are two kinds:

- `Source` reads any example by its index. Order, resuming and splitting over
  hosts then cost nothing.
- `StreamSource` can only read from a beginning onwards (TFRecord). It makes the
  same promise, batch N is a function of (seed, N), by skipping records that are
  not parsed.

Examples are flat or nested dicts of tensors whose dtypes are known without
reading data. TensorFlow is imported when it is used, so that configs can look
at data on a machine that has none.
"""

import abc
import importlib

from big_vision import config as config_lib

_SOURCES = {
    "bv:digits": ("big_vision.datasets.arrays", "digits"),
    "bv:npz": ("big_vision.datasets.arrays", "npz"),
    "bv:folder": ("big_vision.datasets.folder", "folder"),
    "bv:jsonl": ("big_vision.datasets.jsonl", "jsonl"),
}


class DataError(RuntimeError):
  """Stored data cannot be read; the message names the file and the record."""


class Source(abc.ABC):
  """Examples by index.

  Attributes:
    num_classes: how many values "label" can take, None where there are no
      classes.
    class_names: their names in the order of the labels, None if unknown.
  """

  num_classes: int | None = None
  class_names: list[str] | None = None

  @abc.abstractmethod
  def __len__(self) -> int:
    """The number of examples."""

  @abc.abstractmethod
  def read(self, index) -> dict:
    """One example; can be traced in `tf.data.Dataset.map`.

    Args:
      index: int64[], tensor in [0, len).

    Returns:
      A dict of tensors of static dtype: images that are stored encoded are
      string[], still encoded; images in memory are uint8[h, w, c].
    """

  @abc.abstractmethod
  def describe(self, index: int) -> str:
    """Where example `index` is stored, for messages: "FILE record 17"."""


class StreamSource(abc.ABC):
  """Examples in the order in which files hold them.

  Attributes:
    num_classes: how many values "label" can take, None where there are no
      classes.
    class_names: their names in the order of the labels, None if unknown.
  """

  num_classes: int | None = None
  class_names: list[str] | None = None

  @abc.abstractmethod
  def __len__(self) -> int:
    """The number of examples of one pass."""

  @abc.abstractmethod
  def stream(self, seed: int | None, buffer_size: int, first: int = 0):
    """Records as they are stored, not parsed.

    Args:
      seed: None for one pass in the order of the files. Otherwise the stream is
        endless; records [e * len, (e + 1) * len) are a shuffle of the whole
        source that depends on (seed, e, buffer_size) only.
      buffer_size: how many records are shuffled at a time; unused without seed.
      first: leave out that many records. Whole epochs are left out for free,
        the rest is read but neither parsed nor copied.

    Returns:
      tf.data.Dataset of string[].
    """

  @abc.abstractmethod
  def parse(self, record) -> dict:
    """The example of one record, as `Source.read` returns it.

    Args:
      record: string[], tensor.
    """

  @abc.abstractmethod
  def describe_position(self, position: int) -> str:
    """Where the record at `position` of the unshuffled pass is stored."""

  @abc.abstractmethod
  def describe(self, record: bytes) -> str:
    """Where `record` is stored; reads the files until it is found."""

  @abc.abstractmethod
  def check(self) -> None:
    """Reads every record of every file.

    Raises:
      DataError: one cannot be read; names the file and the record.
    """

  def describe_error(self, error: Exception) -> str:
    """What is damaged, where reading the stream ended in `error`.

    TensorFlow says neither which record it is nor, at times, in which file, so
    the files are read once more; slow, and only done when a run has failed.
    """
    try:
      self.check()
    except DataError as found:
      return str(found)
    return f"every stored record can be read, yet reading failed: {error}"


class _InMemory(Source):
  """Examples of another source, held as one tensor for every feature."""

  def __init__(self, source: Source):
    import tensorflow as tf
    self._describe = source.describe
    self._len = len(source)
    self.num_classes = source.num_classes
    self.class_names = source.class_names

    # Values of ragged shape cannot be stacked; they are held serialized.
    def read_flat(index):
      flat = tf.nest.flatten(source.read(index))
      return tuple(
          value if value.shape.is_fully_defined()
          else tf.io.serialize_tensor(value) for value in flat)

    dataset = tf.data.Dataset.range(self._len)
    self._spec = dataset.map(source.read).element_spec
    dataset = dataset.map(read_flat, num_parallel_calls=tf.data.AUTOTUNE,
                          deterministic=True)
    columns = [[] for _ in tf.nest.flatten(self._spec)]
    for example in _named_errors(dataset, source.describe):
      for column, value in zip(columns, example):
        column.append(value)
    # On the CPU also where TensorFlow sees an accelerator: this can be big.
    with tf.device("CPU"):
      self._columns = [
          tf.constant(column, spec.dtype if spec.shape.is_fully_defined()
                      else tf.string)
          for column, spec in zip(columns, tf.nest.flatten(self._spec))]

  def __len__(self):
    return self._len

  def read(self, index):
    import tensorflow as tf
    values = []
    for column, spec in zip(self._columns, tf.nest.flatten(self._spec)):
      value = tf.gather(column, index)
      if not spec.shape.is_fully_defined():
        value = tf.io.parse_tensor(value, spec.dtype)
      values.append(tf.ensure_shape(value, spec.shape))
    return tf.nest.pack_sequence_as(self._spec, values)

  def describe(self, index):
    return self._describe(index)


class _StreamInMemory(Source):
  """The records of a stream, which in memory can be read by index."""

  def __init__(self, source: StreamSource):
    import tensorflow as tf
    self._source = source
    self.num_classes = source.num_classes
    self.class_names = source.class_names
    records = list(_named_errors(
        source.stream(None, 1), source.describe_position))
    with tf.device("CPU"):
      self._records = tf.constant(records, tf.string)

  def __len__(self):
    return len(self._source)

  def read(self, index):
    import tensorflow as tf
    return self._source.parse(tf.gather(self._records, index))

  def describe(self, index):
    return self._source.describe_position(index)


def _named_errors(dataset, describe):
  """NumPy elements of `dataset`; an error names where its element is stored."""
  import tensorflow as tf
  elements = dataset.as_numpy_iterator()
  position = 0
  while True:
    try:
      element = next(elements)
    except StopIteration:
      return
    except tf.errors.OpError as error:
      raise DataError(
          f"{describe(position)} cannot be read: {error.message}") from error
    yield element
    position += 1


def slice_bounds(
    start: int | float | None, stop: int | float | None, size: int, where: str
) -> tuple[int, int]:
  """Bounds of the part `[start:stop]` of `size` examples.

  Args:
    start: an int counts examples, negative from the end, as in Python; a float
      is a fraction in [0, 1], rounded down; None is the beginning.
    stop: likewise; None is the end.
    size: how many examples there are.
    where: what is sliced, for messages.

  Raises:
    ConfigError: not a number, a fraction outside [0, 1], or an empty part.
  """
  bounds = []
  for name, value, default in (("start", start, 0), ("stop", stop, size)):
    if value is None:
      value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      raise config_lib.ConfigError(
          f"{where}: {name} is {value!r}; it must be a number of examples "
          "(int) or a fraction of them (float).")
    if isinstance(value, float):
      if not 0 <= value <= 1:
        raise config_lib.ConfigError(
            f"{where}: {name} is {value}; a fraction is in [0, 1]. Use an int "
            "to count examples.")
      value = int(value * size)
    bounds.append(value)
  first, last, _ = slice(*bounds).indices(size)
  if first >= last:
    raise config_lib.ConfigError(
        f"{where} has {size} examples, none of them in start={start!r}, "
        f"stop={stop!r}.")
  return first, last


def in_memory(source: Source | StreamSource) -> Source:
  """Reads all of `source` now and serves it from memory.

  What is held is what the source stores (encoded images stay encoded), so it
  takes about as much memory as the files take on disk.

  Raises:
    DataError: an example cannot be read; names its file and record.
  """
  if isinstance(source, StreamSource):
    return _StreamInMemory(source)
  return _InMemory(source)


def open_source(name: str, **kwargs) -> Source | StreamSource:
  """Opens the source that a config names.

  Args:
    name: "bv:digits", "bv:npz", "bv:folder", "bv:jsonl", or the name of a
      dataset prepared by TensorFlow Datasets ("cifar10", "imagenet2012:5.1.0").
    **kwargs: arguments of that source; see the function that `name` stands for
      in `arrays`, `folder`, `jsonl` and `tfds_source`.

  Raises:
    ConfigError: there is no such source, or it does not take these arguments.
    DataError: the stored data is incomplete or damaged.
  """
  where = f"data(name={name!r})"
  if name in _SOURCES:
    module, function = _SOURCES[name]
    open_fn = getattr(importlib.import_module(module), function)
    return config_lib.call(open_fn, kwargs, where)
  if name.startswith("bv:"):
    raise config_lib.ConfigError(
        f"Unknown source {name!r}{config_lib.nearest(name, _SOURCES)}; there "
        f"are {sorted(_SOURCES)}, and any dataset of TensorFlow Datasets.")
  from big_vision.datasets import tfds_source
  return config_lib.call(tfds_source.open_tfds, kwargs, where, dataset=name)
