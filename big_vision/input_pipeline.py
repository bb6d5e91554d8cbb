"""From sources and preprocessing to batches on the devices.

Batch N is a pure function of (seed, N). Row r of batch N is position
p = N * batch_size + r of an endless sequence; position p is example
shuffle(p mod n) of epoch p div n, where the shuffle is a stateless permutation
of the whole source, and random ops draw from a seed made of (seed, p). Hence
starting anywhere costs nothing, and how many processes there are, or which of
them makes which rows, changes nothing.

TensorFlow is imported when a pipeline is built.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import os
import sys
from typing import Any

import jax
import numpy as np

from big_vision import batches as batches_lib
from big_vision import config as config_lib
from big_vision import sharding as sharding_lib
from big_vision.datasets import core

DataError = core.DataError

# What draws from the seed, each with its own number.
_SALT_SHUFFLE, _SALT_MIXTURE, _SALT_OPS = 1, 2, 3
# How many examples are tried in the place of a damaged one.
_MAX_ATTEMPTS = 8
# In so many positions, a mixture has its weights exactly.
_MIXTURE_BLOCK = 10_000
# Records are fetched so many at a time, where a source is faster then.
_FETCH = 32
# An evaluation can be ended between so many batches. Asking makes processes
# wait for each other; seldom enough to cost little, and often enough to be done
# within the grace after a signal.
CHECKED_BATCHES = 8


def make_training(
    config: Mapping[str, Any], *, seed: int,
    pp_modules: Sequence[str] | None = None) -> "TrainingPipeline":
  """The training data that `config.input` describes; opens it, reads nothing.

  Args:
    config: `data` (the source: name, split, ...), `pp`, `batch_size` (over all
      devices), `cache_raw` (hold what is stored in memory), `skip_errors`,
      `shuffle_buffer_size` (only of sources that cannot be read by index). A
      mixture has `data` = {name: weight} and a block `name` for each of them,
      with data, pp, cache_raw of its own.
    seed: of the order and of random ops.
    pp_modules: modules of ops; None for the default ones.

  Raises:
    ConfigError: what does not exist or fit.
    DataError: what is stored is not as it should be.
  """
  return TrainingPipeline(config, seed, pp_modules)


def make_evaluation(
    data: Mapping[str, Any], pp: str, batch_size: int, *,
    sharding: jax.sharding.NamedSharding, skip_errors: bool = False,
    pp_modules: Sequence[str] | None = None,
    check: Callable[[], None] = lambda: None) -> "EvaluationPipeline":
  """One pass over a source, in its order, padded to whole batches.

  Args:
    data: the source: name, split, ...
    pp: preprocessing string, without random ops.
    batch_size: over all devices.
    sharding: of the batches' first axis.
    skip_errors: mask damaged examples instead of stopping.
    pp_modules: modules of ops; None for the default ones.
    check: called before every CHECKED_BATCHES-th batch, on all processes alike;
      what it raises ends the pass.

  Raises:
    ConfigError, DataError: as `make_training`.
  """
  return EvaluationPipeline(data, pp, batch_size, sharding, skip_errors,
                            pp_modules, check)


class TrainingPipeline:
  """An endless sequence of batches.

  Attributes:
    batch_size: over all devices.
    data_size: examples of an epoch; of a mixture, of all its sources.
    batch_spec: {key: jax.ShapeDtypeStruct}, of global batches.
  """

  def __init__(self, config, seed, pp_modules):
    _import_tensorflow()
    self._seed = int(seed) % 2 ** 31
    self.batch_size = config["batch_size"]
    if not isinstance(self.batch_size, int) or self.batch_size < 1:
      raise config_lib.ConfigError(
          f"config.input.batch_size is {self.batch_size!r}; it must be a "
          "positive integer.")
    self._skip_errors = bool(config.get("skip_errors", False))
    data = config["data"]
    if data and all(isinstance(w, (int, float)) for w in data.values()):
      weights = [(name, data[name]) for name in data]
      self._parts = [
          _Part(config[name], f"config.input.{name}", pp_modules)
          for name, _ in weights]
      self._counts = _slots(dict(weights))
    else:
      self._parts = [_Part(config, "config.input", pp_modules)]
      self._counts = None
    self.data_size = sum(len(part) for part in self._parts)

    streams = [p for p in self._parts if p.is_stream]
    if streams and (self._counts is not None or self._skip_errors):
      raise config_lib.ConfigError(
          f"{streams[0].where}.data is stored as TFRecord, which can only be "
          "read in order: it cannot be mixed, nor can its damaged examples be "
          "replaced (skip_errors). Convert it once: python -m "
          f"big_vision.tools.prepare_dataset {streams[0].name}")
    specs = [_element_spec(
        lambda p, part=part: part.load_spec(p, self._seed), part.where)
             for part in self._parts]
    for part, spec in zip(self._parts[1:], specs[1:]):
      if spec != specs[0]:
        raise config_lib.ConfigError(
            f"{part.where} and {self._parts[0].where} yield different "
            f"examples: {spec} and {specs[0]}.")
    self.batch_spec = _batch_spec(specs[0], self.batch_size, "config.input.pp")

  def start(self, first_batch: int, sharding: jax.sharding.NamedSharding, *,
            prefetch: int = 2) -> batches_lib.Batches:
    """Begins, in the background, to make batch `first_batch` and those after.

    Args:
      first_batch: from 0.
      sharding: of the batches' first axis; this process makes the rows that its
        devices need.
      prefetch: how many batches may wait on the devices.
    """
    sharding_lib.check_divides(
        self.batch_size, sharding, "config.input.batch_size")
    for part in self._parts:
      part.fill_cache()
    rows = batches_lib.local_rows(sharding, self.batch_size)
    dataset = self._dataset(first_batch, rows)
    return batches_lib.Batches(
        dataset, first_batch=first_batch, rows=rows, sharding=sharding,
        batch_size=self.batch_size, prefetch=prefetch,
        explain=self._explain, describe=self._describe)

  def _dataset(self, first_batch, rows):
    """tf.data.Dataset of this process's rows of each batch."""
    import tensorflow as tf
    b = self.batch_size
    part = self._parts[0]
    if self._counts is None and part.is_index:
      dataset = tf.data.Dataset.counter(np.int64(first_batch)).map(
          lambda n: part.finish_indices(part.index(
              n * b + tf.constant(rows, tf.int64), 0, self._seed)),
          **_parallel())
      return _in_order(dataset)
    if part.is_stream:
      mine = np.isin(np.arange(b), rows)
      records = part.source.stream(
          self._seed, part.buffer_size, first_batch * b)
      positions = tf.data.Dataset.counter(np.int64(first_batch * b))
      dataset = tf.data.Dataset.zip(positions, records).filter(
          lambda p, record: tf.constant(mine)[p % b]).map(
              lambda p, record: part.finish(
                  p, part.source.parse(record), self._seed), **_parallel())
    else:
      positions = tf.data.Dataset.counter(np.int64(first_batch)).flat_map(
          lambda n: tf.data.Dataset.from_tensor_slices(
              n * b + tf.constant(rows, tf.int64)))
      if self._skip_errors:
        dataset = _with_substitutes(positions, self._load)
      elif self._counts is None and isinstance(part.source, core.RecordSource):
        dataset = positions.batch(_FETCH).map(
            lambda p: (p, part.source.fetch(part.index(p, 0, self._seed))),
            **_parallel()).unbatch().map(
                lambda p, record: part.finish(
                    p, part.source.parse(record), self._seed), **_parallel())
      else:
        dataset = positions.map(self._load, **_parallel())
    return _finish(dataset, len(rows))

  def _locate(self, position, attempt=0):
    """(which part, its index) at a position, all int64."""
    import tensorflow as tf
    if self._counts is None:
      return np.int64(0), self._parts[0].index(position, attempt, self._seed)
    counts = np.asarray(self._counts, np.int64)
    edges = np.concatenate([[0], np.cumsum(counts)])
    block, place = position // _MIXTURE_BLOCK, position % _MIXTURE_BLOCK
    slot = _shuffle(place, _MIXTURE_BLOCK, self._seed, block, _SALT_MIXTURE)
    which = tf.searchsorted(edges[1:], [slot], side="right")[0]
    within = block * tf.gather(counts, which) + slot - tf.gather(edges, which)
    index = tf.switch_case(which, [
        lambda part=part: part.index(within, attempt, self._seed)
        for part in self._parts])
    return which, index

  def _load(self, position, attempt=0):
    """The preprocessed example of a position."""
    import tensorflow as tf
    which, index = self._locate(position, attempt)
    if self._counts is None:
      part = self._parts[0]
      return part.finish(position, part.source.read(index), self._seed)
    return tf.switch_case(which, [
        lambda part=part: part.finish(
            position, part.source.read(index), self._seed)
        for part in self._parts])

  def _describe(self, position, attempt=0):
    import tensorflow as tf
    which, index = self._locate(tf.constant(position, tf.int64), attempt)
    return self._parts[int(which)].source.describe(int(index))

  def _explain(self, error, positions):
    """The DataError to raise for an error in a batch of `positions`."""
    if self._parts[0].is_stream:
      return DataError(self._parts[0].source.describe_error(error))
    return _find_culprit(error, positions, self._load, self._describe)


class EvaluationPipeline:
  """One pass over a source; can be iterated any number of times.

  Batches are dicts of global arrays; "_mask", float32[b], is 1 for examples, 0
  for padding and for damaged examples.

  Attributes:
    num_examples: of the source.
    batch_spec: {key: jax.ShapeDtypeStruct}, of global batches.
    num_skipped: damaged examples of the last pass.
  """

  def __init__(self, data, pp, batch_size, sharding, skip_errors, pp_modules,
               check):
    _import_tensorflow()
    sharding_lib.check_divides(
        batch_size, sharding, "An evaluator's batch_size")
    self._part = _Part(
        {"data": data, "pp": pp}, f"The evaluation of {data}", pp_modules)
    self._batch_size, self._sharding = batch_size, sharding
    self._skip_errors, self._check = skip_errors, check
    if skip_errors and self._part.is_stream:
      raise config_lib.ConfigError(
          "skip_errors needs a source that is read by index; convert it once: "
          "python -m big_vision.tools.prepare_dataset "
          f"{self._part.name}")
    self.num_examples = len(self._part)
    self.num_skipped = 0
    if not self.num_examples:
      raise DataError(f"{data} is empty.")
    spec = _element_spec(
        lambda p: self._mask(p, self._part.load_spec(p, None)),
        self._part.where)
    self.batch_spec = _batch_spec(spec, batch_size, "pp_fn")

  def __len__(self):
    return -(-self.num_examples // self._batch_size)

  def __iter__(self):
    rows = batches_lib.local_rows(self._sharding, self._batch_size)
    with batches_lib.Batches(
        self._dataset(rows), first_batch=0, rows=rows, sharding=self._sharding,
        batch_size=self._batch_size, prefetch=2, explain=self._explain,
        describe=self._describe) as batches:
      for i in range(len(self)):
        if i and i % CHECKED_BATCHES == 0:
          self._check()
        yield next(batches)
      self.num_skipped = batches.num_skipped

  def _index(self, position, attempt=0):
    """Padding repeats the last example."""
    import tensorflow as tf
    last = np.int64(self.num_examples - 1)
    return (tf.minimum(position, last) + attempt) % self.num_examples

  def _mask(self, position, example, attempt=0):
    import tensorflow as tf
    real = tf.cast(position < self.num_examples, tf.float32)
    real *= tf.cast(tf.equal(attempt, 0), tf.float32)
    return {**example, "_mask": real * example.get("_mask", 1.)}

  def _load(self, position, attempt=0):
    example = self._part.source.read(self._index(position, attempt))
    return self._mask(
        position, self._part.finish(position, example, None), attempt)

  def _dataset(self, rows):
    import tensorflow as tf
    b, part = self._batch_size, self._part
    if part.is_stream:
      mine = np.isin(np.arange(b), rows)
      once = part.source.stream(None, 0)
      padding = len(self) * b - self.num_examples
      records = once.concatenate(once.repeat().take(padding))
      dataset = tf.data.Dataset.zip(
          tf.data.Dataset.counter(np.int64(0)), records).filter(
              lambda p, record: tf.constant(mine)[p % b]).map(
                  lambda p, record: self._mask(p, part.finish(
                      p, part.source.parse(record), None)), **_parallel())
    else:
      positions = tf.data.Dataset.range(len(self)).flat_map(
          lambda n: tf.data.Dataset.from_tensor_slices(
              n * b + tf.constant(rows, tf.int64)))
      if self._skip_errors:
        dataset = _with_substitutes(positions, self._load)
      elif isinstance(part.source, core.RecordSource):
        dataset = positions.batch(_FETCH).map(
            lambda p: (p, part.source.fetch(self._index(p))),
            **_parallel()).unbatch().map(
                lambda p, record: self._mask(p, part.finish(
                    p, part.source.parse(record), None)), **_parallel())
      else:
        dataset = positions.map(self._load, **_parallel())
    return _finish(dataset, len(rows))

  def _describe(self, position, attempt=0):
    import tensorflow as tf
    return self._part.source.describe(
        int(self._index(tf.constant(position, tf.int64), attempt)))

  def _explain(self, error, positions):
    if self._part.is_stream:
      return DataError(self._part.source.describe_error(error))
    return _find_culprit(error, positions, self._load, self._describe)


class _Part:
  """One source with its preprocessing."""

  def __init__(self, config, where, pp_modules):
    # Not above: ops import TensorFlow.
    from big_vision.pp import builder
    self.where = where
    options = dict(config["data"])
    self.name = options.get("name")
    if not isinstance(self.name, str):
      raise config_lib.ConfigError(
          f"{where}.data is {options}; it needs a `name`, or weights of the "
          "sources of a mixture.")
    self.source = core.open_source(**options)
    self._cache_raw = config.get("cache_raw", False)
    self.is_stream = not self._cache_raw and isinstance(
        self.source, core.StreamSource)
    if self.is_stream:
      self.buffer_size = config.get("shuffle_buffer_size", 10_000)
    kw = {} if pp_modules is None else {"modules": tuple(pp_modules)}
    pp = config.get("pp", "")
    self._pp = builder.make_preprocess(pp, **kw)
    self.is_index = not pp and isinstance(self.source, core.IndexSource)
    if not len(self.source):
      raise DataError(f"{where}.data, {options}, is empty.")

  def __len__(self):
    return len(self.source)

  def fill_cache(self):
    """Reads all that is stored, once, if the config wants it in memory."""
    if self._cache_raw:
      self.source = core.in_memory(self.source)

  def index(self, position, attempt, seed):
    """Which example is at `position` (int64[] or int64[n]) of training."""
    n = len(self.source)
    epoch, offset = position // n, position % n
    return (_shuffle(offset, n, seed, epoch, _SALT_SHUFFLE) + attempt) % n

  def finish(self, position, example, seed):
    """The preprocessed example; `seed` None means evaluation."""
    import tensorflow as tf
    if seed is not None:
      example = {**example, "_seed": tf.random.experimental.stateless_fold_in(
          tf.constant([seed, _SALT_OPS], tf.int32), position)}
    return _to_jax_types(self._pp(example))

  def finish_indices(self, indices):
    """The examples int64[n] of an `IndexSource`, all at once."""
    return _to_jax_types(self.source.read(indices))

  def load_spec(self, position, seed):
    """Like an example, for its types."""
    import tensorflow as tf
    if isinstance(self.source, core.StreamSource):
      return self.finish(position, self.source.parse(tf.constant(b"")), seed)
    return self.finish(position, self.source.read(position), seed)


def _import_tensorflow():
  """TensorFlow, kept off the accelerators that jax uses."""
  with _quiet():
    import tensorflow as tf
    for kind in ("GPU", "TPU"):
      try:
        tf.config.set_visible_devices([], kind)
      except RuntimeError:
        pass  # It runs already, so it has been told.
  return tf


@contextlib.contextmanager
def _quiet():
  """Drops what C++ code prints: TensorFlow complains that there is no CUDA."""
  sys.stderr.flush()
  kept = os.dup(2)
  try:
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
      os.dup2(nowhere.fileno(), 2)
      yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)


def _parallel():
  import tensorflow as tf
  return dict(num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _finish(dataset, num_rows):
  """Batches, made ahead, in order."""
  return _in_order(dataset.batch(num_rows, drop_remainder=True))


def _in_order(dataset):
  """What is batched already, made ahead, in order."""
  import tensorflow as tf
  options = tf.data.Options()
  options.deterministic = True
  return dataset.prefetch(2).with_options(options)


def _with_substitutes(positions, load):
  """Examples of `positions`; a damaged one is replaced by those after it.

  Each position gets a little dataset of candidates, of which the first whole
  one is taken, so that no position is lost and batches stay what they are.
  """
  import tensorflow as tf

  def candidates(position):
    def attempt(k):
      return {**load(position, k), "_attempt": tf.cast(k, tf.int32)}
    tries = tf.data.Dataset.range(_MAX_ATTEMPTS).map(attempt)
    # If all of them fail, the last error is the position's.
    last = tf.data.Dataset.range(_MAX_ATTEMPTS - 1, _MAX_ATTEMPTS).map(attempt)
    return tries.ignore_errors().concatenate(last).take(1)

  return positions.interleave(
      candidates, cycle_length=16, block_length=1,
      num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _find_culprit(error, positions, load, describe) -> Exception:
  """Goes through a batch one by one for the example that cannot be loaded."""
  import tensorflow as tf
  if not isinstance(error, tf.errors.OpError):
    return error
  for position in positions:
    try:
      load(tf.constant(position, tf.int64))
    except tf.errors.OpError as found:
      return DataError(
          f"{describe(int(position))} cannot be used: {found.message[:400]}\n"
          "Mend or remove it, or set config.input.skip_errors=True to replace "
          "such examples.")
  return error


def _shuffle(place, size, seed, block, salt):
  """Where `place`, int64[] or int64[n], is in a permutation of range(size).

  There is one for every (seed, block, salt), `block` of the shape of `place`.
  """
  import tensorflow as tf
  fill = lambda value: tf.fill(tf.shape(block), np.int64(value))
  # The raw op: tf.random.experimental.index_shuffle pads vectors of seeds along
  # the wrong axis (TensorFlow 2.21).
  return tf.raw_ops.RandomIndexShuffle(
      index=place, seed=tf.stack([fill(salt), fill(seed), block], axis=-1),
      max_index=np.int64(size - 1), rounds=4)


def _slots(weights: Mapping[str, float]) -> list[int]:
  """How many of `_MIXTURE_BLOCK` positions each source gets."""
  total = sum(weights.values())
  if total <= 0 or min(weights.values()) <= 0:
    raise config_lib.ConfigError(
        f"The weights of a mixture must be positive; they are {dict(weights)}.")
  exact = {k: w / total * _MIXTURE_BLOCK for k, w in weights.items()}
  counts = {k: int(x) for k, x in exact.items()}
  # Largest remainders get what rounding down has left.
  by_remainder = sorted(exact, key=lambda k: counts[k] - exact[k])
  for k in by_remainder[:_MIXTURE_BLOCK - sum(counts.values())]:
    counts[k] += 1
  if min(counts.values()) == 0:
    raise config_lib.ConfigError(
        f"A weight below 1 / {_MIXTURE_BLOCK} of all never gets a turn: "
        f"{dict(weights)}.")
  return list(counts.values())


def _to_jax_types(example):
  """int64 becomes int32 and float64 float32, as jax has them."""
  import tensorflow as tf

  def narrow(value):
    if value.dtype == tf.float64:
      return tf.cast(value, tf.float32)
    if value.dtype in (tf.int64, tf.uint64):
      narrowed = tf.cast(value, tf.int32)
      with tf.control_dependencies([tf.debugging.assert_equal(
          tf.cast(narrowed, value.dtype), value,
          "An integer does not fit into 32 bits.")]):
        return tf.identity(narrowed)
    return value
  return {key: narrow(value) for key, value in example.items()}


def _element_spec(load, where):
  """Types of the examples that `load` makes of a position; reads none.

  Raises:
    ConfigError: the preprocessing does not suit the examples.
  """
  import tensorflow as tf
  try:
    return tf.data.Dataset.from_tensors(np.int64(0)).map(load).element_spec
  except (ValueError, TypeError) as error:
    # TensorFlow puts the code's lines before the message.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raise config_lib.ConfigError(
        f"{where}: the preprocessing does not suit its examples. "
        f"{lines[-1] if lines else error}") from error


def _batch_spec(spec, batch_size, where) -> dict[str, jax.ShapeDtypeStruct]:
  """Global shapes; raises ConfigError for what cannot be batched."""
  import tensorflow as tf
  batch_spec = {}
  for key, tensor in spec.items():
    if not isinstance(tensor, tf.TensorSpec) or tensor.dtype == tf.string:
      raise config_lib.ConfigError(
          f"{where} leaves {key!r}, which is {tensor}: only numbers go to the "
          f"devices. Name what to keep, as keep('image', 'labels'), or decode "
          f"it; there are {sorted(spec)}.")
    if not tensor.shape.is_fully_defined():
      raise config_lib.ConfigError(
          f"{where} leaves {key!r} of shape {tensor.shape}; all examples must "
          "have the same shape: resize, crop or pad it.")
    batch_spec[key] = jax.ShapeDtypeStruct(
        (batch_size, *tensor.shape), tensor.dtype.as_numpy_dtype)
  return batch_spec
