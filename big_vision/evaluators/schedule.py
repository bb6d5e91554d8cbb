"""Makes the evaluators of a config, and runs those that are due."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from big_vision import config as config_lib
from big_vision import durations
from big_vision import files
from big_vision import modules
from big_vision import ranges
from big_vision import sharding
from big_vision.evaluators import harness
from big_vision.run import pictures


@dataclasses.dataclass(frozen=True)
class Scheduled:
  """An evaluator of a run, with its name and the steps at which it runs.

  Attributes:
    name: Key in `config.evals`; with "_ema" appended for the twin that sees
      averaged parameters.
    prefix: Text that is put before the name of every metric.
    evaluator: The `Evaluator`.
    loader: The loader that it was made with; None if it reads no data.
    log_steps: Steps between two runs; None or 0 for only the first and the last
      step.
    skip_first: Whether to leave out the run before the first update.
    total_steps: Steps of the training run; None outside of training.
  """
  name: str
  prefix: str
  evaluator: Any
  loader: harness.Loader | None = None
  log_steps: int | None = None
  skip_first: bool = False
  total_steps: int | None = None

  def due(self, step: int) -> bool:
    """Returns whether to run after update `step` (0: before the first one)."""
    if self.total_steps is None or step == self.total_steps:
      return True
    if step == 0:
      return not self.skip_first
    return bool(self.log_steps) and step % self.log_steps == 0

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields (prefixed name, value); errors name the evaluator."""
    try:
      for name, value in self.evaluator.run(state):
        yield f"{self.prefix}{name}", self._as_value(name, value)
    except Exception as error:
      error.add_note(f"This was the evaluator config.evals.{self.name}.")
      raise


  def _as_value(self, name, value):
    """Returns a picture as it is, and anything else as a number."""
    if pictures.is_picture(value):
      return value
    if np.ndim(value) or isinstance(value, (Mapping, str)) or value is None:
      raise config_lib.ConfigError(
          f"The evaluator config.evals.{self.name} yielded {name!r} with a "
          f"{type(value).__name__} of shape {np.shape(value)}; a number, or a "
          "picture as uint8[h, w, 1 or 3], is needed.")
    return float(value)


def make_evaluators(
    evals: Mapping[str, Mapping[str, Any]] | None,
    predict_fns: Mapping[str, Callable], *,
    batch_sharding: jax.sharding.NamedSharding, batch_size: int,
    total_steps: int | None = None, data_size: int | None = None,
    train_batch_size: int | None = None,
    pp_modules: Sequence[str] | None = None, workdir: str | None = None,
    seed: int = 0, where: str = "config.evals") -> list[Scheduled]:
  """Makes the evaluators that a config asks for.

  Keys of `evals.<name>`: `type` (the evaluator's module, default `<name>`),
  `pred` (name of the predict function, default "predict"), `pred_kw` (its
  keyword arguments), `prefix` (default "<name>/"), `skip_first`,
  `log_{steps,examples,epochs,percent}`, `batch_size`; all others are the
  evaluator's own options. If the task also has `<pred>_ema`, a second evaluator
  measures that, under `<prefix>ema/`.

  Data is opened here, so that missing data is noticed at the start, and read
  only when an evaluator runs.

  Args:
    evals: `config.evals`; None for no evaluators.
    predict_fns: The task's functions
      {name: (state, batch, *, rng=None, **kw) -> Any}.
    batch_sharding: Sharding of the batches' first axis.
    batch_size: Number of examples in a batch, over all devices, for evaluators
      that do not set their own.
    total_steps: Steps of the training run, for the schedule; None outside of
      training, where `log_*` and `skip_first` mean nothing.
    data_size: Number of examples in a training epoch, for `log_epochs`.
    train_batch_size: Batch size of training, for `log_epochs` and
      `log_examples`.
    pp_modules: Modules with preprocessing ops, in addition to the default ones.
    workdir: Directory of the run. It replaces "{workdir}" in the evaluators'
      strings, and the evaluator's name replaces "{name}"; a twin's name ends in
      "_ema".
    seed: Seed of the run, from which predict functions draw.
    where: Path of `evals` in the config, for messages.

  Returns:
    The evaluators in the order of the config, a twin after its evaluator.

  Raises:
    ConfigError: A type, pred or key is unknown; the error lists the known ones.
  """
  loader = harness.Loader(
      batch_sharding, batch_size, pp_modules=pp_modules, seed=seed)
  # Equal arguments give the same function object, so that evaluators that
  # differ only in their data share a program.
  bound, made = {}, []
  for name, options in (evals or {}).items():
    path = f"{where}.{name}"
    if not isinstance(options, Mapping):
      raise config_lib.ConfigError(
          f"{path} is {options!r}; it must be a dict of the evaluator's keys.")
    rest = {key: _fill_in(value, "{workdir}", workdir)
            for key, value in options.items()}
    def take(key, default=None):
      value = rest.pop(key, None)  # None means "not set".
      return default if value is None else value

    module = modules.find("evaluator", take("type", name), f"{path}.type")
    pred = take("pred", "predict")
    if pred not in predict_fns:
      raise config_lib.ConfigError(
          f"{path}.pred: the task has no predict function {pred!r}"
          f"{config_lib.nearest(pred, predict_fns)}. It has "
          f"{sorted(predict_fns)}.")
    pred_kw = harness.plain(take("pred_kw", {}))
    prefix = take("prefix", f"{name}/")
    skip_first = config_lib.check(
        take("skip_first", False), f"{path}.skip_first", bool)
    log_steps = None if total_steps is None else durations.get_steps(
        "log", options, batch_size=train_batch_size, data_size=data_size,
        total_steps=total_steps, where=path)
    for unit in ("steps", "examples", "epochs", "percent"):
      take(f"log_{unit}")
    own_loader = loader.with_batch_size(config_lib.check(
        take("batch_size", batch_size), f"{path}.batch_size", ranges.Count))
    sharding.check_divides(
        own_loader.batch_size, batch_sharding, f"{path}.batch_size")

    twins = [(name, pred, prefix)]
    if f"{pred}_ema" in predict_fns:
      twins.append((f"{name}_ema", f"{pred}_ema", f"{prefix}ema/"))
    for twin_name, twin_pred, twin_prefix in twins:
      own = {key: _fill_in(value, "{name}", twin_name)
             for key, value in rest.items()}
      _check_outfile(own.get("outfile"), workdir, f"{path}.outfile")
      predict_fn = bound.setdefault(
          (twin_pred, repr(pred_kw)),
          functools.partial(predict_fns[twin_pred], **pred_kw))
      evaluator = config_lib.call(
          module.Evaluator, own, path, predict_fn=predict_fn,
          loader=own_loader)
      made.append(Scheduled(
          name=twin_name, prefix=twin_prefix, evaluator=evaluator,
          loader=own_loader, log_steps=log_steps, skip_first=skip_first,
          total_steps=total_steps))
  return made


def is_expected(
    metric: str, scheduled: Sequence[Scheduled], ran: Sequence[Scheduled],
    has_row: bool) -> bool:
  """Returns whether a metric, if it exists, was measured just now.

  A metric belongs to the evaluators with whose prefix it begins. One without
  such an evaluator is measured by training.

  Args:
    metric: Name of the metric.
    scheduled: All evaluators of the run.
    ran: Evaluators that ran just now.
    has_row: Whether the measurements of a training step were logged just now.
  """
  owners = [e for e in scheduled if metric.startswith(e.prefix)]
  may_be_of_training = not owners or any(not e.prefix for e in owners)
  return all(e in ran for e in owners) and (has_row or not may_be_of_training)


def run_all(
    scheduled: Iterable[Scheduled], state: Mapping[str, Any],
    around: Callable[[str], Any] = contextlib.nullcontext,
    check: Callable[[], None] = lambda: None) -> dict[str, Any]:
  """Runs evaluators and returns everything they measure.

  Args:
    scheduled: Evaluators from `make_evaluators`.
    state: The task's state, with "frozen".
    around: Function of a name that returns the context manager in which the
      evaluator of that name runs.
    check: Function that is called before each evaluator and every few batches
      of its data, on all processes alike; its exceptions end the evaluation.

  Returns:
    {name: number, or picture as uint8[h, w, 1 or 3]}.

  Raises:
    ConfigError: Two evaluators measure something under the same name.
  """
  values = {}
  for evaluator in scheduled:
    check()
    checking = (contextlib.nullcontext() if evaluator.loader is None
                else evaluator.loader.checking(check))
    with around(f"eval/{evaluator.name}"), checking:
      for name, value in evaluator.run(state):
        if name in values:
          raise config_lib.ConfigError(
              f"config.evals.{evaluator.name} measures {name!r}, which "
              "another evaluator does too; give it another `prefix`.")
        values[name] = value
  return values


def _check_outfile(outfile: str | None, workdir: str | None, path: str):
  """Raises ConfigError for a file that is not below the workdir.

  A workdir may come from somebody else: evaluating it must not write anywhere.
  """
  if outfile and workdir and not files.is_below(outfile, workdir):
    raise config_lib.ConfigError(
        f"{path} is {outfile!r}, which is not below the workdir {workdir}; "
        'write "{workdir}/...".')


def _fill_in(value, placeholder: str, text: str | None):
  """Replaces `placeholder` in a string; returns any other value as it is."""
  if text and isinstance(value, str):
    return value.replace(placeholder, text)
  return value
