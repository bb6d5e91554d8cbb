"""What evaluators share, and how they are made from a config.

An evaluator is a module below `big_vision.evaluators` with a class

  Evaluator(predict_fn, *, batch_sharding, batch_size, <its own>)
    .run(state) yields (metric name, float or picture, see `pictures`)

`predict_fn(state, batch)` is not jitted: the evaluator jits it together with
what it measures, once. The state is an argument, neither donated nor kept.
TensorFlow is imported when data is opened, not when a module is.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import contextvars
import dataclasses
import functools
from typing import Any
import weakref

import jax
import jax.numpy as jnp
import numpy as np

from big_vision import config as config_lib
from big_vision import durations
from big_vision import modules
from big_vision import sharding
from big_vision import tree
from big_vision.run import pictures

# Enough for the devices to always have work, few enough to fit.
NUM_IN_FLIGHT = 4
# What `run_all` was given to call.
_check = contextvars.ContextVar("check", default=lambda: None)
# Pipelines in use, so that evaluators of the same data (the loss and the
# accuracy, the parameters and their average) open it once.
_PIPELINES = weakref.WeakValueDictionary()


@dataclasses.dataclass(frozen=True)
class Scheduled:
  """An evaluator of a run: its name, what it measures, when.

  Attributes:
    name: key in `config.evals`; with "_ema" appended for the averaged twin.
    prefix: put before the name of every metric.
    evaluator: the `Evaluator`.
    log_steps: steps between two runs; None or 0 for first and last step only.
    skip_first: whether not to run before the first update.
    total_steps: steps of the training run; None outside of training.
  """
  name: str
  prefix: str
  evaluator: Any
  log_steps: int | None = None
  skip_first: bool = False
  total_steps: int | None = None

  def due(self, step: int) -> bool:
    """Whether to run after update `step` (0: before the first update)."""
    if self.total_steps is None or step == self.total_steps:
      return True
    if step == 0:
      return not self.skip_first
    return bool(self.log_steps) and step % self.log_steps == 0

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields (prefixed name, value); errors say which evaluator it was."""
    try:
      for name, value in self.evaluator.run(state):
        yield f"{self.prefix}{name}", (
            value if pictures.is_picture(value) else float(value))
    except Exception as error:
      error.add_note(f"This was the evaluator config.evals.{self.name}.")
      raise


def make_evaluators(
    evals: Mapping[str, Mapping[str, Any]] | None,
    predict_fns: Mapping[str, Callable], *,
    batch_sharding: jax.sharding.NamedSharding, batch_size: int,
    total_steps: int | None = None, data_size: int | None = None,
    train_batch_size: int | None = None,
    pp_modules: Sequence[str] | None = None, workdir: str | None = None,
    where: str = "config.evals") -> list[Scheduled]:
  """Makes the evaluators that a config asks for.

  Keys of `evals.<name>`: `type` (module below `big_vision.evaluators`, default
  `<name>`), `pred` (which predict function, default "predict"), `pred_kw` (its
  keyword arguments), `prefix` (default "<name>/"), `skip_first`,
  `log_{steps,examples,epochs,percent}`, `batch_size`; the others are the
  evaluator's own. Where the task also has `<pred>_ema`, a second evaluator
  measures it, under `<prefix>ema/`.

  Data is opened here, so that what is missing shows at the start, and read
  only when an evaluator runs.

  Args:
    evals: `config.evals`; None for no evaluators.
    predict_fns: the task's; {name: (state, batch, **kw) -> Any}.
    batch_sharding: how batches are spread over the devices.
    batch_size: over all devices, for evaluators that do not set their own.
    total_steps: of the training run, for the schedule; None outside of
      training, where `log_*` and `skip_first` mean nothing.
    data_size: examples of a training epoch, for `log_epochs`.
    train_batch_size: for `log_epochs` and `log_examples`.
    pp_modules: modules with the preprocessing ops; None for the default ones.
    workdir: of the run; replaces "{workdir}" in the evaluators' strings, as
      the evaluator's name, which the twin of an average has its own of,
      replaces "{name}".
    where: the path of `evals`, for messages.

  Returns:
    In the order of the config, a twin after its evaluator.

  Raises:
    ConfigError: an unknown type, pred or key; says which exist.
  """
  given = {} if pp_modules is None else {"pp_modules": tuple(pp_modules)}
  bound = {}
  made = []
  for name, options in (evals or {}).items():
    path = f"{where}.{name}"
    if not isinstance(options, Mapping):
      raise config_lib.ConfigError(
          f"{path} is {options!r}; it must be a dict of the evaluator's keys.")
    rest = {key: value.replace("{workdir}", workdir)
            if workdir and isinstance(value, str) else value
            for key, value in options.items()}
    def take(key, default=None):
      value = rest.pop(key, None)  # None means "not set".
      return default if value is None else value

    evaluator_type = take("type", name)
    module = modules.find("evaluator", evaluator_type, f"{path}.type")
    pred = take("pred", "predict")
    if pred not in predict_fns:
      raise config_lib.ConfigError(
          f"{path}.pred: the task has no predict function {pred!r}"
          f"{config_lib.nearest(pred, predict_fns)}. It has "
          f"{sorted(predict_fns)}.")
    pred_kw = plain(take("pred_kw", {}))
    prefix = take("prefix", f"{name}/")
    skip_first = take("skip_first", False)
    log_steps = None if total_steps is None else durations.get_steps(
        "log", options, batch_size=train_batch_size, data_size=data_size,
        total_steps=total_steps)
    for unit in ("steps", "examples", "epochs", "percent"):
      take(f"log_{unit}")
    own_batch_size = take("batch_size", batch_size)
    sharding.check_divides(own_batch_size, batch_sharding, f"{path}.batch_size")

    twins = [(name, pred, prefix)]
    if f"{pred}_ema" in predict_fns:
      twins.append((f"{name}_ema", f"{pred}_ema", f"{prefix}ema/"))
    for twin_name, twin_pred, twin_prefix in twins:
      # One function object for the same arguments, so that evaluators which
      # differ in their data alone can share a compiled function.
      predict_fn = bound.setdefault(
          (twin_pred, repr(pred_kw)),
          functools.partial(predict_fns[twin_pred], **pred_kw))
      own = {key: value.replace("{name}", twin_name)
             if isinstance(value, str) else value
             for key, value in rest.items()}
      evaluator = config_lib.call(
          module.Evaluator, own, path, predict_fn=predict_fn,
          batch_sharding=batch_sharding, batch_size=own_batch_size, **given)
      made.append(Scheduled(
          twin_name, twin_prefix, evaluator, log_steps, skip_first,
          total_steps))
  return made


def run_all(
    scheduled: Iterable[Scheduled], state: Mapping[str, Any],
    around: Callable[[str], Any] = contextlib.nullcontext,
    check: Callable[[], None] = lambda: None) -> dict[str, Any]:
  """What all these evaluators measure.

  Args:
    scheduled: of `make_evaluators`.
    state: of the task, with "frozen".
    around: name -> context manager in which that evaluator runs.
    check: called before each evaluator and every few batches of its data, on
      all processes alike; what it raises ends the evaluation.

  Raises:
    ConfigError: two evaluators measure something under the same name.
  """
  values = {}
  token = _check.set(check)
  try:
    for evaluator in scheduled:
      check()
      with around(f"eval/{evaluator.name}"):
        for name, value in evaluator.run(state):
          if name in values:
            raise config_lib.ConfigError(
                f"config.evals.{evaluator.name} measures {name!r}, which "
                "another evaluator does too; give it another `prefix`.")
          values[name] = value
  finally:
    _check.reset(token)
  return values


def plain(value):
  """`value` with every mapping in it a dict; counts as reading the config."""
  if isinstance(value, Mapping):
    return {key: plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(plain(item) for item in value)
  return value


def open_data(
    data: Mapping[str, Any], pp_fn: str, batch_size: int,
    batch_sharding: jax.sharding.NamedSharding,
    pp_modules: Sequence[str] | None = None):
  """The evaluation pipeline of `data`, shared by those who ask for the same.

  Args:
    data: `name` and options of a source, one pass over which is an evaluation.
    pp_fn: preprocessing string.
    batch_size: over all devices.
    batch_sharding: of the batches.
    pp_modules: modules with the preprocessing ops; None for the default ones.

  Returns:
    The `EvaluationPipeline`: iterating gives one pass of {key: jax.Array}, with
    "_mask" float32[b], 1 for examples and 0 for padding.
  """
  # Not above: this imports TensorFlow.
  from big_vision import input_pipeline  # pylint: disable=g-import-not-at-top
  data = plain(data)
  kw = {} if pp_modules is None else {"pp_modules": tuple(pp_modules)}
  key = repr((sorted(data.items()), pp_fn, batch_size, kw)), batch_sharding
  pipeline = _PIPELINES.get(key)
  if pipeline is None:
    pipeline = input_pipeline.make_evaluation(
        data, pp_fn, batch_size, sharding=batch_sharding,
        check=lambda: _check.get()(), **kw)
    _PIPELINES[key] = pipeline
  return pipeline


def jit(
    measure: Callable, batch_sharding: jax.sharding.NamedSharding) -> Callable:
  """`measure` compiled, with results that every process holds in full."""
  return jax.jit(
      measure, out_shardings=sharding.replicated(batch_sharding.mesh))


def collect(
    measure: Callable, state: Mapping[str, Any],
    batches: Iterable[Mapping[str, jax.Array]],
    num_in_flight: int = NUM_IN_FLIGHT):
  """Applies `measure` to all batches and returns the real examples' results.

  Results per example, not sums, come to the host: they are small, what follows
  can be exact, and no metric depends on the number of devices. Padding is left
  out rather than multiplied by zero, as a model may return NaN for it.

  Args:
    measure: (state, batch) -> (tree of [b, ...], mask [b]); see `jit`.
    state: of the task.
    batches: global batches.
    num_in_flight: batches that may wait on the devices. The host waits for one
      sent this long ago, so the devices always have work and memory is bounded.

  Returns:
    The tree, of NumPy arrays [n, ...], in the order of the data.

  Raises:
    ValueError: there is no example.
  """
  in_flight, parts = collections.deque(), []

  def fetch():
    values, mask = jax.device_get(in_flight.popleft())
    real = mask > 0
    parts.append(jax.tree.map(lambda x: x[real], values))

  for batch in batches:
    in_flight.append(measure(state, batch))
    if len(in_flight) > num_in_flight:
      fetch()
  while in_flight:
    fetch()
  if not parts or not len(jax.tree.leaves(parts)[0]):
    raise ValueError("There is no example to evaluate: the data is empty.")
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def make_represent(
    predict_fn: Callable, layer: str | None, label_key: str) -> Callable:
  """A function (state, batch) -> features and labels, for probes.

  Args:
    predict_fn: (state, batch) -> (logits [b, k], out), `out` a dict of
      intermediates.
    layer: name in `out` ("pre_logits", "encoder/block07"); None for the logits.
    label_key: of int[b] in the batch.

  Returns:
    (state, batch) -> ((features float32[b, d], labels int[b]), mask).
    While tracing it raises ConfigError for a layer or label that does not exist
    or does not have this shape.
  """
  def represent(state, batch):
    logits, out = predict_fn(state, batch)
    features = logits
    if layer is not None:
      named = dict(tree.flatten_with_names(out))
      if layer not in named:
        raise config_lib.ConfigError(
            f"representation_layer={layer!r} is not in the model's output"
            f"{config_lib.nearest(layer, named)}. There are {sorted(named)}.")
      features = named[layer]
    if features.ndim != 2:
      raise config_lib.ConfigError(
          f"representation_layer={layer!r} has the shape {features.shape}; "
          "one vector per example, [b, d], is needed.")
    labels = get_from_batch(batch, label_key)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
      raise config_lib.ConfigError(
          f"label_key={label_key!r} is {labels.dtype}{list(labels.shape)} in "
          "the batch; one class index per example, int[b], is needed.")
    return (features.astype(jnp.float32), labels), batch["_mask"]
  return represent


def check_classes(labels: np.ndarray, where: str):
  """Raises ValueError if there are labels that stand for "unknown"."""
  if (labels < 0).any():
    raise ValueError(
        f"{where}: {np.sum(labels < 0)} of {labels.size} labels are negative. "
        "Is this a split whose labels are not public?")


def get_from_batch(
    batch: Mapping[str, Any], key: str, option: str = "label_key"):
  """`batch[key]`, where `option` of the evaluator is `key`.

  Raises:
    ConfigError: preprocessing did not keep it; says what there is.
  """
  if key not in batch:
    raise config_lib.ConfigError(
        f"{option}={key!r} is not in the batch"
        f"{config_lib.nearest(key, batch)}. There are {sorted(batch)}; does "
        "the preprocessing keep it?")
  return batch[key]
