"""A source together with its preprocessing, and the import of TensorFlow."""

import contextlib
import functools
import os
import sys

from big_vision import config as config_lib
from big_vision import ranges
from big_vision.datasets import core
from big_vision.datasets import memory
from big_vision.datasets import registry
from big_vision.datasets import specs


class PreprocessedSource:
  """One source with its preprocessing.

  Args:
    config: Mapping with `data` (the source: name, split, ...), `pp`,
      `cache_raw` and `shuffle_buffer_size`; only `data` is required.
    where: Place in the config, for messages.
    pp_modules: Names of more modules of ops, in addition to the default ones.

  Attributes:
    where: As given.
    name: Name of the source.
    source: The opened source; held in memory after `fill_cache`.
    is_stream: Whether the source is read as a stream.
    buffer_size: Number of records in a stream's shuffle buffer.
    holds_only_indices: Whether examples are bare indices without preprocessing.

  Raises:
    ConfigError: The config names something that does not exist or fit.
    DataError: The stored data is damaged or empty.
  """

  def __init__(self, config, where, pp_modules):
    # Imported here, because ops import TensorFlow.
    from big_vision.pp import builder
    self.where = where
    options = dict(config["data"])
    self.name = options.get("name")
    if not isinstance(self.name, str):
      raise config_lib.ConfigError(
          f"{where}.data is {options}; it needs a `name`, or the weights of a "
          "mixture.")
    self.source = registry.open_source(**options)
    get = functools.partial(config_lib.get_checked, config, where=where)
    self._cache_raw = get("cache_raw", bool, False)
    self.is_stream = not self._cache_raw and isinstance(
        self.source, core.StreamSource)
    if self.is_stream:
      self.buffer_size = get("shuffle_buffer_size", ranges.Count, 10_000)
    pp = config.get("pp", "")
    self._pp = builder.make_preprocess(pp, tuple(pp_modules or ()))
    self.holds_only_indices = not pp and isinstance(
        self.source, core.IndexSource)
    if not len(self.source):
      raise core.DataError(f"{where}.data, {options}, is empty.")

  def fill_cache(self):
    """Reads all stored data into memory once, if the config asks for it."""
    if self._cache_raw:
      self.source = memory.in_memory(self.source)

  def preprocess(self, example):
    """Applies the preprocessing string, then narrows to jax's types."""
    return specs.to_jax_types(self._pp(example))

  def example_for_types(self, position):
    """Returns an example before preprocessing; only its types are valid."""
    import tensorflow as tf
    if isinstance(self.source, core.StreamSource):
      return self.source.parse(tf.constant(b""))
    return self.source.read(position)


def import_tensorflow():
  """Imports TensorFlow and keeps it off the accelerators that jax uses."""
  with _quiet():
    import tensorflow as tf
    for kind in ("GPU", "TPU"):
      try:
        tf.config.set_visible_devices([], kind)
      except RuntimeError:
        pass  # TensorFlow runs already, so its devices were set before.
  return tf


@contextlib.contextmanager
def _quiet():
  """Drops what C++ code prints: TensorFlow complains if there is no CUDA."""
  sys.stderr.flush()
  kept = os.dup(2)
  try:
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
      os.dup2(nowhere.fileno(), 2)
      yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
