"""Opens data, compiles measurements and collects results for evaluators.

An evaluator is a module with a class

  Evaluator(predict_fn, loader, *, <options>)
    .run(state) yields (metric name, number or picture)

whose options are the keys that the config sets in `config.evals.NAME`. This is
a complete evaluator, which works on any number of devices and hosts:

  class Evaluator:

    def __init__(self, predict_fn, loader, *, data, pp_fn):
      def measure(state, batch, rng):
        logits, _ = predict_fn(state, batch, rng=rng)
        return {"max_logit": logits.max(axis=-1)}  # One number per example.
      self._measure = loader.compile(measure)
      self._examples = loader.open(data, pp_fn)

    def run(self, state):
      yield from self._examples.mean(self._measure, state).items()

`measure` returns values per example; padding is left out before anything is
averaged, and a value that is already an average is an error. `rng` depends on
the run's seed and the batch's number only, so predict functions that draw
random numbers give the same result at every evaluation and on any number of
devices.

TensorFlow is imported when data is opened, not when a module is imported.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import copy
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np

from big_vision import config as config_lib
from big_vision import sharding
from big_vision import tree

# Batches that may wait on the devices: enough for them to always have work, few
# enough to fit into memory.
NUM_IN_FLIGHT = 4
# Keeps the draws of evaluations apart from all other uses of the seed.
_SALT = 0xE7A1


class Measured(NamedTuple):
  """The results of one batch.

  Attributes:
    values: Tree of arrays [b, ...].
    mask: float32[b], 1 for examples, 0 for padding.
  """
  values: Any
  mask: jax.Array


class Loader:
  """Opens data for evaluators and compiles what they measure.

  One loader serves all evaluators of a run: those that ask for the same data
  (the loss and the accuracy, the parameters and their average), or for the same
  program on other data (val, test, ...), share it.

  Attributes:
    batch_sharding: jax.sharding.NamedSharding of the batches' first axis.
    batch_size: Number of examples in a batch, over all devices.
    seed: Seed of the run.
  """

  def __init__(
      self, batch_sharding: jax.sharding.NamedSharding, batch_size: int, *,
      pp_modules: Sequence[str] | None = None, seed: int = 0):
    """Makes a loader; opens and compiles nothing yet.

    Args:
      batch_sharding: Sharding of the batches' first axis.
      batch_size: Number of examples in a batch, over all devices.
      pp_modules: Modules with preprocessing ops, in addition to the default
        ones.
      seed: Seed of the run, from which predict functions draw.
    """
    self.batch_sharding = batch_sharding
    self.batch_size = batch_size
    self.seed = int(seed)
    self._pp_modules = None if pp_modules is None else tuple(pp_modules)
    self._shared = _Shared()

  def with_batch_size(self, batch_size: int) -> "Loader":
    """Returns a loader that differs from this one in its batch size only."""
    other = copy.copy(self)
    other.batch_size = batch_size
    return other

  def open(self, data: Mapping[str, Any], pp_fn: str) -> "Examples":
    """Opens the examples of `data`; reads nothing yet.

    Args:
      data: Name and options of a source. One pass over it is an evaluation.
      pp_fn: Preprocessing string.

    Returns:
      The `Examples`; the same object for equal arguments.

    Raises:
      ConfigError: The source or the preprocessing is invalid.
      DataError: The data is missing or empty.
    """
    data = plain(data)
    key = repr((sorted(data.items()), pp_fn, self.batch_size))
    if key not in self._shared.examples:
      self._shared.examples[key] = Examples(
          self._make_pipeline(data, pp_fn), self.batch_size)
    return self._shared.examples[key]

  def _make_pipeline(self, data, pp_fn):
    # Not above: this imports TensorFlow.
    from big_vision import input_pipeline  # pylint: disable=g-import-not-at-top
    kw = {} if self._pp_modules is None else {"pp_modules": self._pp_modules}
    return input_pipeline.make_evaluation(
        data, pp_fn, self.batch_size, sharding=self.batch_sharding,
        check=self._check, **kw)

  def compile(self, measure: Callable, **options) -> Callable:
    """Compiles a function of a batch, for `Examples.collect` and `.mean`.

    Args:
      measure: (state, batch, rng, **options) -> tree of arrays [b, ...], one
        value or array per example, padding included. `rng` differs from batch
        to batch.
      **options: Hashable keyword arguments of `measure`, fixed from now on.
        Equal functions with equal options are compiled once.

    Returns:
      The compiled function (state, batch, batch number) -> `Measured`, whose
      arrays every process holds in full. While tracing it raises ConfigError
      for values that are not per example.
    """
    return self.jit(_measure, measure=measure, seed=self.seed,
                    options=tuple(sorted(options.items())))

  def jit(self, function: Callable, **options) -> Callable:
    """Compiles any function, with results that every process holds in full.

    Args:
      function: A pure function of arrays.
      **options: Hashable keyword arguments of `function`, fixed from now on.
        Equal functions with equal options are compiled once.
    """
    key = function, tuple(sorted(options.items()))
    if key not in self._shared.programs:
      def program(*args):
        return function(*args, **options)
      self._shared.programs[key] = jax.jit(
          program,
          out_shardings=sharding.replicated(self.batch_sharding.mesh))
    return self._shared.programs[key]

  @contextlib.contextmanager
  def checking(self, check: Callable[[], None]):
    """Calls `check` every few batches of any evaluation in a `with` block.

    An exception raised by `check` ends the evaluation. It is called on all
    processes alike.
    """
    previous, self._shared.check = self._shared.check, check
    try:
      yield
    finally:
      self._shared.check = previous

  def _check(self):
    if self._shared.check is not None:
      self._shared.check()


class _Shared:
  """The state that all loaders of a run have in common."""

  def __init__(self):
    self.examples = {}  # {description: Examples}
    self.programs = {}  # {(function, options): compiled function}
    self.check = None


class Examples:
  """The examples of one data set; iterating gives one pass of batches.

  Batches are {key: jax.Array [b, ...]}, the last one padded; "_mask",
  float32[b], is 1 for examples and 0 for padding.

  Attributes:
    num_examples: Number of examples, without padding.
    class_names: Names of the classes in the order of the labels, if known.
  """

  def __init__(self, pipeline, batch_size: int):
    self._pipeline = pipeline
    self._batch_size = batch_size
    self.num_examples = pipeline.num_examples
    self.class_names = pipeline.class_names

  def __iter__(self) -> Iterator[dict[str, jax.Array]]:
    return iter(self._pipeline)

  def collect(
      self, measure: Callable, state: Mapping[str, Any],
      num_examples: int | None = None):
    """Measures all batches and returns the results of the real examples.

    Results per example, not sums, come to the host: they are small, what
    follows can be exact, and no metric depends on the number of devices.
    Padding is left out rather than multiplied by zero, as a model may return
    NaN for it.

    Args:
      measure: Function that `Loader.compile` returned.
      state: The task's state.
      num_examples: Number of examples to measure, the first ones; None, or more
        than there are, for all.

    Returns:
      The tree that `measure` returns, of NumPy arrays [n, ...] in the order of
      the data.

    Raises:
      ValueError: There are no examples.
      TypeError: `measure` was not compiled by a loader.
    """
    num_batches = num_examples and -(-num_examples // self._batch_size)
    # The host waits for a batch that was sent NUM_IN_FLIGHT batches ago, so the
    # devices always have work and memory is bounded.
    in_flight, parts = collections.deque(), []

    def fetch():
      values, mask = jax.device_get(in_flight.popleft())
      is_real = mask > 0
      parts.append(jax.tree.map(lambda x: x[is_real], values))

    for number, batch in enumerate(itertools.islice(self, num_batches)):
      in_flight.append(measure(state, batch, np.int32(number)))
      if not isinstance(in_flight[-1], Measured):
        raise TypeError(
            f"{measure} is not compiled; pass what loader.compile(...) "
            "returned.")
      if len(in_flight) > NUM_IN_FLIGHT:
        fetch()
    while in_flight:
      fetch()
    if not parts or not sum(len(x) for x in jax.tree.leaves(parts)):
      raise ValueError("There are no examples to evaluate: the data is empty.")
    return jax.tree.map(lambda *x: np.concatenate(x)[:num_examples], *parts)

  def check_has(self, num_examples: int | None, option: str):
    """Raises ConfigError unless `num_examples` examples can be measured.

    Args:
      num_examples: Number of examples that an evaluator needs; None for all.
      option: Name of the evaluator's option that sets it, for the message.
    """
    if num_examples is not None and not 1 <= num_examples <= self.num_examples:
      raise config_lib.ConfigError(
          f"{option} is {num_examples}; it must be from 1 to "
          f"{self.num_examples}, the number of examples in the data, or None "
          "for all of them.")

  def mean(
      self, measure: Callable, state: Mapping[str, Any]) -> dict[str, float]:
    """Measures all batches and averages over the real examples, in float64.

    Args:
      measure: Function that `Loader.compile` returned.
      state: The task's state.

    Returns:
      {name: mean}; names of nested values are joined by "/".

    Raises:
      ValueError: There are no examples.
    """
    values = self.collect(measure, state)
    return {name: float(np.mean(value, dtype=np.float64))
            for name, value in tree.flatten_with_names(values)}


def make_rng(seed: int, number) -> jax.Array:
  """Makes the key from which an evaluation draws for one batch.

  Args:
    seed: Seed of the run.
    number: int32[], position of the batch in its pass over the data.
  """
  rng = jax.random.fold_in(jax.random.key(seed), _SALT)
  return jax.random.fold_in(rng, number)


def _measure(state, batch, number, *, measure, seed, options) -> Measured:
  """Applies `measure` to a batch with the batch's own rng."""
  values = measure(state, batch, make_rng(seed, number), **dict(options))
  check_per_example(values, len(batch["_mask"]))
  return Measured(values=values, mask=batch["_mask"])


def check_per_example(values, b: int, scalars: bool = False):
  """Raises ConfigError unless `values` is a tree of arrays [b, ...].

  Args:
    values: Tree to check.
    b: Number of examples in the batch, padding included.
    scalars: Whether the arrays must be [b], one number per example.
  """
  named = tree.flatten_with_names(values)
  if named and all(
      np.shape(leaf)[:1] == (b,) and (np.ndim(leaf) == 1 or not scalars)
      for _, leaf in named):
    return
  listing = "\n".join(
      f"  {name or type(leaf).__name__}: {np.shape(leaf)}"
      for name, leaf in named)
  wanted = f"({b},)" if scalars else f"({b}, ...)"
  raise config_lib.ConfigError(
      "Evaluators average over examples, without padding, so they need values "
      f"per example: arrays of shape {wanted}. There are:\n"
      f"{listing or '  no arrays'}")


def check_finite(values: np.ndarray, name: str):
  """Raises ValueError unless all of `values`, number[n, ...], are finite.

  Args:
    values: Values of n examples.
    name: Plural noun for them, for the message.
  """
  is_finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
  if not is_finite.all():
    raise ValueError(
        f"{np.sum(~is_finite)} of {len(values)} {name} are not finite. The "
        "model has diverged, or a label is not one of its classes.")


def get_from_batch(
    batch: Mapping[str, Any], key: str, option: str = "label_key"):
  """Returns `batch[key]`, where `key` is the value of an evaluator's option.

  Args:
    batch: The batch.
    key: Key to look up.
    option: Name of the evaluator's option, for the message.

  Raises:
    ConfigError: Preprocessing did not keep the key; the error lists those it
      kept.
  """
  if key not in batch:
    raise config_lib.ConfigError(
        f"{option}={key!r} is not in the batch"
        f"{config_lib.nearest(key, batch)}. There are {sorted(batch)}; does "
        "the preprocessing keep it?")
  return batch[key]


def plain(value):
  """Copies a value of the config, with every mapping turned into a dict.

  This marks all of its keys as read.
  """
  if isinstance(value, Mapping):
    return {key: plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(plain(item) for item in value)
  return value
