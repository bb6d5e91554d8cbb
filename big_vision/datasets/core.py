"""What a data source is, and opening one by the name a config gives it.

A source knows how examples are stored. It neither shuffles nor decodes images:
order is the input pipeline's, decoding is preprocessing's. There are two kinds:

- `Source` reads any example by its index. Order, resuming and splitting over
  hosts then cost nothing. A `RecordSource` can fetch many at a time, which is
  faster.
- `StreamSource` can only read from a beginning onwards (TFRecord). It makes the
  same promise, batch N is a function of (seed, N), by skipping records that are
  not parsed.

Examples are flat or nested dicts of tensors whose dtypes are known without
reading data. TensorFlow is imported when it is used, so that configs can look
at data on a machine that has none.
"""

import abc
from collections.abc import Callable, Mapping
import importlib

import numpy as np

from big_vision import config as config_lib
from big_vision import modules

_SOURCES = {
    "bv:digits": ("big_vision.datasets.arrays", "digits"),
    "bv:npz": ("big_vision.datasets.arrays", "npz"),
    "bv:photographs": ("big_vision.datasets.arrays", "photographs"),
    "bv:folder": ("big_vision.datasets.folder", "folder"),
    "bv:jsonl": ("big_vision.datasets.jsonl", "jsonl"),
    "bv:copy": ("big_vision.datasets.sequences", "copy"),
    "bv:reverse": ("big_vision.datasets.sequences", "reverse"),
    "bv:addition": ("big_vision.datasets.sequences", "addition"),
    "bv:listops": ("big_vision.datasets.listops", "listops"),
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
    """Where example `index` is, for messages: "FILE record 17", from 0."""


class IndexSource(Source):
  """Examples that are nothing but a number: what is due of data on the devices.

  For tasks that hold their data there (`Task.frozen`). A whole batch of numbers
  is made at once (1.4M instead of 47k examples/s on one core).

  Args:
    size: of the source.
    key: under which an example has its index, int64[].
  """

  def __init__(self, size: int, key: str):
    self._size, self._key = size, key

  def __len__(self):
    return self._size

  def read(self, index):
    """One example of int64[], or a batch of int64[n]."""
    return {self._key: index}


class RecordSource(Source):
  """A `Source` whose examples are serialized records.

  `read(i)` is `parse(fetch([i])[0])`. Fetching many records at a time is faster
  by far (ArrayRecord, 64 at a time: 21k instead of 3.6k records/s on 2 cores).
  """

  @abc.abstractmethod
  def fetch(self, indices):
    """Records as they are stored.

    Never fails: a record that cannot be read is replaced by one of which
    `parse` tells the reason, so that it does not take others with it.

    Args:
      indices: int64[n], tensor in [0, len).

    Returns:
      string[n].
    """

  @abc.abstractmethod
  def check_record(self, record):
    """`record`, string[]; fails in the graph if `fetch` could not read it."""

  @abc.abstractmethod
  def parse(self, record) -> dict:
    """The example of one record, string[], as `read` returns it."""

  def read(self, index):
    return self.parse(self.fetch(index[None])[0])


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
        the rest is read, but not parsed.

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


class ArraySource(Source):
  """Rows of arrays in memory.

  Args:
    arrays: {feature: array[n, ...]}, all of the same n.
    describe: where row i comes from, for messages.
    num_classes: how many values "label" takes, if there are labels.
    class_names: their names, if known.
  """

  def __init__(
      self, arrays: Mapping[str, np.ndarray], describe: Callable[[int], str],
      num_classes: int | None = None, class_names: list[str] | None = None):
    self._len = len(next(iter(arrays.values())))
    self._describe = describe
    self.num_classes = num_classes
    self.class_names = class_names
    self._tensors = {key: on_cpu(array) for key, array in arrays.items()}

  def __len__(self):
    return self._len

  def read(self, index):
    import tensorflow as tf
    return {key: tf.gather(t, index) for key, t in self._tensors.items()}

  def describe(self, index):
    return self._describe(index)


def on_cpu(values, dtype=None):
  """A tensor of `values` in the memory of the host.

  Also where TensorFlow sees an accelerator: it can be larger than that.
  """
  import tensorflow as tf
  with tf.device("CPU"):
    return tf.constant(values, dtype)


class _RecordsInMemory(Source):
  """Records as they are stored, parsed when they are read."""

  def __init__(self, source, records: list[bytes], describe):
    import tensorflow as tf
    self._parse = source.parse
    self._describe = describe
    self._records = on_cpu(records, tf.string)
    self._len = len(records)
    self.num_classes = source.num_classes
    self.class_names = source.class_names

  def __len__(self):
    return self._len

  def read(self, index):
    import tensorflow as tf
    return self._parse(tf.gather(self._records, index))

  def describe(self, index):
    return self._describe(index)


class _ExamplesInMemory(Source):
  """Examples of another source, held as one tensor for every feature."""

  def __init__(self, source: Source):
    import tensorflow as tf
    self._describe = source.describe
    self._len = len(source)
    self.num_classes = source.num_classes
    self.class_names = source.class_names

    # Values of ragged shape cannot be stacked; they are held serialized.
    def read_flat(index):
      return tuple(
          value if value.shape.is_fully_defined()
          else tf.io.serialize_tensor(value)
          for value in tf.nest.flatten(source.read(index)))

    indices = tf.data.Dataset.range(self._len)
    self._spec = indices.map(source.read).element_spec
    specs = tf.nest.flatten(self._spec)
    columns = [[] for _ in specs]
    examples = indices.map(
        read_flat, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    for example in _named_errors(examples, source.describe):
      for column, value in zip(columns, example):
        column.append(value)
    self._columns = [
        on_cpu(column,
               spec.dtype if spec.shape.is_fully_defined() else tf.string)
        for column, spec in zip(columns, specs)]

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
  """Reads all of `source` now and serves it from memory, by index.

  What is held is what is stored (encoded images stay encoded), so it takes
  about as much memory as the files take on disk.

  Raises:
    DataError: an example cannot be read; names its file and record.
  """
  import tensorflow as tf
  if isinstance(source, (
      ArraySource, IndexSource, _RecordsInMemory, _ExamplesInMemory)):
    return source
  if isinstance(source, StreamSource):
    records = source.stream(None, 1)
    describe = source.describe_position
  elif isinstance(source, RecordSource):
    records = tf.data.Dataset.range(len(source)).batch(128).map(
        source.fetch).unbatch().map(source.check_record)
    describe = source.describe
  else:
    return _ExamplesInMemory(source)
  return _RecordsInMemory(
      source, list(_named_errors(records, describe)), describe)


def open_source(name: str, **kwargs) -> Source | StreamSource:
  """Opens the source that a config names.

  Args:
    name: "bv:digits", "bv:npz", "bv:photographs", "bv:folder", "bv:jsonl";
      data for reasoning that is generated, "bv:copy", "bv:reverse",
      "bv:addition", "bv:listops"; a module that defines `open_source`,
      "proj.nerf.blender" or "mylab.birds", see `modules.find`; or the name of a
      dataset prepared by TensorFlow Datasets ("cifar10",
      "imagenet2012:5.1.0").
    **kwargs: arguments of that source; see the function that `name` stands for
      in `arrays`, `folder`, `jsonl`, `sequences`, `listops` and
      `tfds_source`.

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
  if modules.is_module_name(name):
    module = modules.find("source", name)
    return config_lib.call(module.open_source, kwargs, where)
  from big_vision.datasets import tfds_source
  return config_lib.call(tfds_source.open_tfds, kwargs, where, dataset=name)
