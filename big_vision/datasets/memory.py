"""Sources whose examples are held in memory."""

from collections.abc import Callable, Mapping

import numpy as np

from big_vision.datasets import core


class ArraySource(core.Source):
  """Examples that are rows of arrays in memory.

  Args:
    arrays: {feature: array[n, ...]}, all with the same n.
    describe: Function that says for messages where row i comes from.
    num_classes: Number of values that "label" takes, if there are labels.
    class_names: Names of the classes, if known.
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
  """Returns a tensor of `values` in the memory of the host.

  Without the device scope, TensorFlow would put it on an accelerator that it
  sees, whose memory may be too small.
  """
  import tensorflow as tf
  with tf.device("CPU"):
    return tf.constant(values, dtype)


class _RecordsInMemory(core.Source):
  """Holds records as they are stored; parses them when they are read."""

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


class _ExamplesInMemory(core.Source):
  """Holds the examples of another source, one tensor for each feature."""

  def __init__(self, source: core.Source):
    import tensorflow as tf
    self._describe = source.describe
    self._len = len(source)
    self.num_classes = source.num_classes
    self.class_names = source.class_names

    # Values whose shapes differ cannot be stacked; they are held serialized.
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
  """Yields NumPy elements of a dataset; errors say where one is stored."""
  import tensorflow as tf
  elements = dataset.as_numpy_iterator()
  position = 0
  while True:
    try:
      element = next(elements)
    except StopIteration:
      return
    except tf.errors.OpError as error:
      raise core.DataError(
          f"{describe(position)} cannot be read: {error.message}") from error
    yield element
    position += 1


def in_memory(source: core.Source | core.StreamSource) -> core.Source:
  """Reads all of `source` now and serves it from memory, by index.

  Data is held as it is stored (encoded images stay encoded), so it takes about
  as much memory as the files take on disk.

  Raises:
    DataError: An example cannot be read; the error names its file and record.
  """
  import tensorflow as tf
  if isinstance(source, (
      ArraySource, core.IndexSource, _RecordsInMemory, _ExamplesInMemory)):
    return source
  if isinstance(source, core.StreamSource):
    records = source.stream(None, 1)
    describe = source.describe_position
  elif isinstance(source, core.RecordSource):
    records = tf.data.Dataset.range(len(source)).batch(128).map(
        source.fetch).unbatch().map(source.check_record)
    describe = source.describe
  else:
    return _ExamplesInMemory(source)
  return _RecordsInMemory(
      source, list(_named_errors(records, describe)), describe)
