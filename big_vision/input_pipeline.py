"""Turns sources and preprocessing strings into batches on the devices.

Batch N is a pure function of (seed, N). Row r of batch N is the example at
position N * batch_size + r of an endless sequence (`datasets.order`), and its
random ops draw from a seed made of (seed, position). So starting at any batch
is free, and neither the number of processes nor the split of rows among them
changes a batch.

TensorFlow is imported when a pipeline is built, not with this module.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
import numpy as np

from big_vision import batches as batches_lib
from big_vision import config as config_lib
from big_vision import ranges
from big_vision import sharding as sharding_lib
from big_vision.datasets import core
from big_vision.datasets import order
from big_vision.datasets import preprocessed
from big_vision.datasets import reading as reading_lib
from big_vision.datasets import specs

DataError = core.DataError

# Number of evaluation batches between two checks for a request to stop. A check
# makes processes wait for each other: it must be rare enough to cost little,
# and frequent enough to end within the grace period after a signal.
CHECKED_BATCHES = 8


def make_training(
    config: Mapping[str, Any], *, seed: int,
    pp_modules: Sequence[str] | None = None) -> "TrainingPipeline":
  """Opens the training data that `config.input` describes; reads nothing.

  Args:
    config: Input config: `data` (the source: name, split, ...), `pp`,
      `batch_size` (over all devices), `cache_raw` (hold the stored data in
      memory), `skip_errors` (replace damaged examples), `shuffle_buffer_size`
      (only for sources that cannot be read by index). A mixture has `data` =
      {name: weight} and, for each name, a block `name` with its own data, pp
      and cache_raw.
    seed: Seed of the order and of random ops.
    pp_modules: Names of more modules of ops, in addition to the default ones.

  Raises:
    ConfigError: The config names something unknown or unsuitable.
    DataError: The stored data is damaged or empty.
  """
  return TrainingPipeline(config, seed, pp_modules)


def make_evaluation(
    data: Mapping[str, Any], pp: str, batch_size: int, *,
    sharding: jax.sharding.NamedSharding, skip_errors: bool = False,
    pp_modules: Sequence[str] | None = None,
    check: Callable[[], None] = lambda: None) -> "EvaluationPipeline":
  """Opens data for evaluation: in the source's order, with padded batches.

  Args:
    data: Source: name, split, ...
    pp: Preprocessing string without random ops.
    batch_size: Number of examples in a batch, over all devices.
    sharding: Sharding of the batches' first axis.
    skip_errors: Whether damaged examples are masked instead of raising.
    pp_modules: Names of more modules of ops, in addition to the default ones.
    check: Function called before every CHECKED_BATCHES-th batch, on all
      processes alike; an exception that it raises ends the pass.

  Raises:
    ConfigError: The config names something unknown or unsuitable.
    DataError: The stored data is damaged or empty.
  """
  return EvaluationPipeline(
      data, pp, batch_size, sharding, skip_errors, pp_modules, check)


class TrainingPipeline:
  """An endless sequence of batches.

  Attributes:
    batch_size: Number of examples in a batch, over all devices.
    data_size: Number of examples in an epoch; for a mixture, in all sources.
    class_names: Names of the classes in the order of the labels; None if they
      are unknown, or if the sources of a mixture differ in them.
    batch_spec: {key: jax.ShapeDtypeStruct} of global batches.
  """

  def __init__(self, config, seed, pp_modules):
    preprocessed.import_tensorflow()
    self._seed = config_lib.check(seed, "config.seed", ranges.Seed)
    self.batch_size = config_lib.check(
        config["batch_size"], "config.input.batch_size", ranges.Count)
    self._skip_errors = config_lib.get_checked(
        config, "skip_errors", bool, False, where="config.input")
    data = config["data"]
    if data and all(isinstance(w, (int, float)) for w in data.values()):
      self._parts = [
          preprocessed.PreprocessedSource(
              config[name], f"config.input.{name}", pp_modules)
          for name in data]
      self._slots = order.mixture_slots({name: data[name] for name in data})
    else:
      self._parts = [preprocessed.PreprocessedSource(
          config, "config.input", pp_modules)]
      self._slots = None
    self.data_size = sum(len(part.source) for part in self._parts)
    names = self._parts[0].source.class_names
    same = all(part.source.class_names == names for part in self._parts)
    self.class_names = names if same else None
    self._check_streams()
    self.batch_spec = self._infer_batch_spec()

  def start(self, first_batch: int, sharding: jax.sharding.NamedSharding, *,
            prefetch: int = 2) -> batches_lib.Batches:
    """Starts making batches in the background.

    Args:
      first_batch: Number of the first batch, from 0.
      sharding: Sharding of the batches' first axis; this process makes the
        rows that its devices need.
      prefetch: Number of batches that may wait on the devices.

    Raises:
      ConfigError: The batch size does not divide among the shards.
      DataError: Data that `cache_raw` reads now is damaged.
    """
    sharding_lib.check_divides(
        self.batch_size, sharding, "config.input.batch_size")
    for part in self._parts:
      part.fill_cache()
    rows = batches_lib.local_rows(sharding, self.batch_size)
    reading = self._reading()
    dataset = reading_lib.make_dataset(
        reading, rows, self.batch_size, first_batch=first_batch,
        skip_errors=self._skip_errors)
    return batches_lib.Batches(
        dataset, first_batch=first_batch, rows=rows, sharding=sharding,
        batch_size=self.batch_size, prefetch=prefetch,
        explain=functools.partial(reading_lib.explain, reading),
        describe=functools.partial(reading_lib.describe, reading))

  def notes(self) -> list[str]:
    """Returns sentences about data that is probably not what was meant."""
    notes = [
        f"{part.where}.data has one class only, so there is nothing to tell "
        "apart." for part in self._parts if part.source.num_classes == 1]
    if self.batch_size > self.data_size:
      notes.append(
          f"A batch of {self.batch_size:,} is larger than the data, "
          f"{self.data_size:,} examples, so each batch repeats examples.")
    return notes

  def _check_streams(self):
    """Raises ConfigError if a stream would have to be read by index."""
    streams = [part for part in self._parts if part.is_stream]
    if streams and (self._slots is not None or self._skip_errors):
      raise config_lib.ConfigError(
          f"{streams[0].where}.data is stored as TFRecord, which can only be "
          "read in order: it cannot be mixed, nor can its damaged examples be "
          "replaced (skip_errors). Convert it once: python -m "
          f"big_vision.tools.prepare_dataset {streams[0].name}")

  def _infer_batch_spec(self):
    """Returns the types of a batch; raises if the parts of a mixture differ."""
    def spec_of(part):
      return specs.element_spec(
          lambda position: self._preprocess(
              part, position, part.example_for_types(position)), part.where)

    first, *others = map(spec_of, self._parts)
    for part, spec in zip(self._parts[1:], others):
      if spec != first:
        raise config_lib.ConfigError(
            f"{part.where} and {self._parts[0].where} yield different "
            f"examples: {spec} and {first}.")
    return specs.batch_spec(first, self.batch_size, "config.input.pp")

  def _preprocess(self, part, position, example):
    seed = order.op_seed(position, self._seed)
    return part.preprocess({**example, "_seed": seed})

  def _reading(self):
    """Returns the sequence of training examples."""
    parts, seed = self._parts, self._seed

    def locate_in_source(position, attempt):
      return 0, order.example_index(
          position, len(parts[0].source), seed, attempt)

    def locate_in_mixture(position, attempt):
      import tensorflow as tf
      source_idx, within = order.locate_in_mixture(position, self._slots, seed)
      index = tf.switch_case(source_idx, [
          functools.partial(
              order.example_index, within, len(part.source), seed, attempt)
          for part in parts])
      return source_idx, index

    def finish(source_idx, position, example, attempt):
      del attempt
      return self._preprocess(parts[source_idx], position, example)

    stream = finish_batch = None
    if parts[0].is_stream:
      stream = functools.partial(
          parts[0].source.stream, seed, parts[0].buffer_size)
    elif self._slots is None and parts[0].holds_only_indices:
      finish_batch = lambda positions, examples: specs.to_jax_types(examples)
    return reading_lib.Reading(
        sources=[part.source for part in parts],
        locate=locate_in_source if self._slots is None else locate_in_mixture,
        finish=finish, stream=stream, finish_batch=finish_batch)


class EvaluationPipeline:
  """One pass over a source; can be iterated any number of times.

  Batches are dicts of global arrays. "_mask", float32[b], is 1 for examples and
  0 for padding and for damaged examples.

  Attributes:
    num_examples: Number of examples of the source.
    class_names: Names of the classes in the order of the labels; None if they
      are unknown.
    batch_spec: {key: jax.ShapeDtypeStruct} of global batches.
    num_skipped: Number of damaged examples in the last pass.
  """

  def __init__(self, data, pp, batch_size, sharding, skip_errors, pp_modules,
               check):
    preprocessed.import_tensorflow()
    sharding_lib.check_divides(
        batch_size, sharding, "An evaluator's batch_size")
    self._part = preprocessed.PreprocessedSource(
        {"data": data, "pp": pp}, f"The evaluation of {data}", pp_modules)
    self._batch_size, self._sharding = batch_size, sharding
    self._skip_errors, self._check = skip_errors, check
    if skip_errors and self._part.is_stream:
      raise config_lib.ConfigError(
          "skip_errors needs a source that is read by index; convert it once: "
          "python -m big_vision.tools.prepare_dataset "
          f"{self._part.name}")
    self.num_examples = len(self._part.source)
    self.class_names = self._part.source.class_names
    self.num_skipped = 0
    spec = specs.element_spec(
        lambda position: self._finish(
            0, position, self._part.example_for_types(position), 0),
        self._part.where)
    self.batch_spec = specs.batch_spec(spec, batch_size, "pp_fn")

  def __len__(self):
    return -(-self.num_examples // self._batch_size)

  def __iter__(self):
    rows = batches_lib.local_rows(self._sharding, self._batch_size)
    reading = reading_lib.Reading(
        sources=[self._part.source], locate=self._locate, finish=self._finish,
        stream=self._stream if self._part.is_stream else None)
    dataset = reading_lib.make_dataset(
        reading, rows, self._batch_size, num_batches=len(self),
        skip_errors=self._skip_errors)
    with batches_lib.Batches(
        dataset, first_batch=0, rows=rows, sharding=self._sharding,
        batch_size=self._batch_size, prefetch=2,
        explain=functools.partial(reading_lib.explain, reading),
        describe=functools.partial(reading_lib.describe, reading)) as batches:
      for i in range(len(self)):
        if i and i % CHECKED_BATCHES == 0:
          self._check()
        yield next(batches)
      self.num_skipped = batches.num_skipped

  def _locate(self, position, attempt):
    """Finds the example at a position; padding repeats the last example."""
    import tensorflow as tf
    last = np.int64(self.num_examples - 1)
    return 0, (tf.minimum(position, last) + attempt) % self.num_examples

  def _stream(self, first):
    """Streams one pass, and then pads with the first examples."""
    once = self._part.source.stream(None, 0, first)
    padding = len(self) * self._batch_size - self.num_examples
    return once.concatenate(once.repeat().take(padding))

  def _finish(self, source_idx, position, example, attempt):
    """Preprocesses an example and adds "_mask"."""
    import tensorflow as tf
    del source_idx  # There is only one source.
    example = self._part.preprocess(example)
    # A substitute for a damaged example is masked too.
    mask = tf.cast(position < self.num_examples, tf.float32)
    mask *= tf.cast(tf.equal(attempt, 0), tf.float32)
    return {**example, "_mask": mask * example.get("_mask", 1.)}
