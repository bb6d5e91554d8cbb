"""Does everything around a step: logs, evaluates, saves, stops, rolls back."""

from collections.abc import Iterator, Mapping
import contextlib
import os
from typing import Any, NamedTuple

import jax

from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import state as state_lib
from big_vision.evaluators import schedule as schedule_lib
from big_vision.run import checkpoints
from big_vision.run import console
from big_vision.run import interrupts as interrupts_lib
from big_vision.run import metrics
from big_vision.run import profiler
from big_vision.run import progress
from big_vision.run import start as start_lib
from big_vision.run import watchdog
from big_vision.run import workdir as workdir_lib


class Rollback(NamedTuple):
  """The decision to restart from the last checkpoint, with later data.

  Attributes:
    count: Number of rollbacks of the run, this one included.
    first_batch: Number of the first batch after the one that was not finite.
    interrupts: Requests to stop, which the restart must not forget.
  """
  count: int
  first_batch: int
  interrupts: interrupts_lib.Interrupts


class Session:
  """A run from its last checkpoint until it ends, stops or rolls back.

  A context manager: on leaving, everything is written and closed. Everything
  between two steps happens in `begin_step` and `finish_step`.

  Args:
    config: Config of the run.
    workdir: Directory of the run.
    built: Mesh, data and task that `config` describes.
    rollback: Rollback that this session follows; None for the first session.

  Attributes:
    start: Step, state and place in the data that the session starts from.
    frozen: Frozen arrays of the task.
    batches: Iterator over the training batches.

  Raises:
    ConfigError: The config is invalid, or has keys that nothing reads.
    StorageError: No checkpoint can be read.
  """

  def __init__(self, config: config_lib.Config, workdir: str,
               built: build_lib.Built, rollback: Rollback | None = None):
    self._built, self._info = built, built.info
    self._options = build_lib.loop_options(config, built.info)
    self._make_savers(workdir)
    # The names of the checkpoints tell where the run continues, so the input
    # can fill its buffers while the rest is made.
    self.batches = built.data.start(
        self._saver.latest() or 0, built.batch_sharding)
    try:
      self._make_rest(config, workdir, rollback)
    except BaseException:
      # The thread that reads data would abort the process as it exits.
      self.batches.close()
      raise

  def _make_rest(self, config, workdir, rollback):
    """Makes everything but the input, and finds the start of the run."""
    built = self._built
    self._evals = build_lib.make_evaluators(config, built, workdir)
    config.check_all_read()
    if jax.process_index() == 0:
      workdir_lib.keep_class_names(workdir, built.data.class_names)
      workdir_lib.store_config(workdir, config)

    self.start = start_lib.find(built, self._saver, self._options.resume)
    self._num_rollbacks = self.start.rollbacks
    self._first_batch = self.start.batch
    # A run that is killed after a rollback, before it saves again, reaches the
    # same step and rolls back once more.
    if rollback is not None:
      self._num_rollbacks = max(self._num_rollbacks, rollback.count)
      self._first_batch = max(self._first_batch, rollback.first_batch)
    if self._first_batch != self.batches.first_batch:
      self.batches.close()
      self.batches = built.data.start(self._first_batch, built.batch_sharding)
    self.frozen = state_lib.put_frozen(built.task, built.strategy, built.mesh)
    self._config = config.to_dict()
    self._make_records(workdir)
    self._interrupts = (interrupts_lib.Interrupts() if rollback is None
                        else rollback.interrupts)
    # (step, measurements, ok) of the last step, if they are not yet checked.
    self._unchecked = None
    self._stack = contextlib.ExitStack()

  def _make_savers(self, workdir):
    """Makes the objects that save checkpoints, the best one, and profiles."""
    options = self._options
    self._saver = checkpoints.Checkpoints(
        os.path.join(workdir, "checkpoints"),
        keep_every=options.keep_ckpt_every)
    self._best = config_lib.call(
        checkpoints.Best, options.keep_best, "config.keep_best",
        directory=os.path.join(workdir, "checkpoints_best"))
    self._profile = config_lib.call(
        profiler.Profiler, options.profile, "config.profile", workdir=workdir)
    if options.compilation_cache is not None:
      jax.config.update("jax_compilation_cache_dir", options.compilation_cache)

  def _make_records(self, workdir):
    """Makes the objects that write metrics and measure time."""
    start, info, mesh = self.start, self._info, self._built.mesh
    if start.num_rows is not None and jax.process_index() == 0:
      metrics.check_complete(workdir, start.step, start.num_rows)
    # An unevaluated row is written again, with its evaluation.
    self._writer = metrics.Writer(
        workdir, resume_step=start.step - (start.unevaluated is not None),
        config=self._config, wandb=self._options.wandb,
        enabled=jax.process_index() == 0)
    self._chrono = progress.Chrono(
        first_step=start.step, total_steps=info.total_steps,
        batch_size=info.batch_size, num_devices=mesh.size,
        device_kind=mesh.devices.flat[0].device_kind, data_size=info.data_size,
        saved=start.chrono)

  def __enter__(self):
    for resource in (self.batches, self._writer, self._saver, self._best,
                     self._profile):
      self._stack.enter_context(resource)
    return self

  def __exit__(self, exception_type, *exception):
    if exception_type is None:
      watchdog.enter("checkpoint")  # Closing waits for the last one.
    return self._stack.__exit__(exception_type, *exception)

  def evaluate_start(self, state: state_lib.State):
    """Evaluates the state at the start, unless that was done before.

    A run that was stopped before its evaluators had run evaluates when it
    continues; a new run evaluates its initial state.
    """
    if self.start.unevaluated is not None:
      self._evaluate_and_save(self.start.step, state, self.start.unevaluated)

  def begin_step(self, step: int, state: state_lib.State):
    """Starts or ends a profile, and tells the watchdog to expect a batch."""
    self._profile.before(step, state)
    watchdog.enter("data", step)

  def finish_step(self, step: int, state: state_lib.State,
                  measurements: Mapping[str, Any], ok, flops: float):
    """Logs, evaluates and saves what is due after a step.

    Args:
      step: Step that was started last; its result may not have arrived yet.
      state: State after it.
      measurements: Measurements of the step, by name.
      ok: bool[], whether its loss and norms are finite.
      flops: Floating-point operations of the step, over all devices.

    Raises:
      NonFiniteError: A loss or a norm of this step or the one before is not
        finite; `roll_back` decides what follows.
      Interrupted: The run was asked to stop; the state is saved.
    """
    # Checking the step before keeps one step on the devices while the host
    # waits. This step is checked before anything is done with its state.
    self._check_finite()
    self._unchecked = step, measurements, ok
    self._chrono.tick(step, flops, self.batches.wait_s)
    row = {}
    if (step % self._options.log_every == 0
        or step in (1, self._info.total_steps)):
      self._check_finite()
      row = self._make_row(step, measurements)
      console.say(
          progress.format_progress(step, self._info.total_steps, row))
    self._evaluate_and_save(
        step, state, row, self._interrupts.exit_code(step))

  def roll_back(self, error: state_lib.NonFiniteError) -> Rollback:
    """Returns the rollback that follows `error`; raises it if none is left."""
    if self._num_rollbacks >= self._options.max_rollbacks:
      raise error
    step, *_ = self._unchecked
    rollback = Rollback(
        count=self._num_rollbacks + 1, first_batch=self._num_batches(step),
        interrupts=self._interrupts)
    console.say(
        f"{error}\nRollback {rollback.count}: restarting from the last "
        f"checkpoint, with the data from batch {rollback.first_batch} on.")
    return rollback

  def _num_batches(self, step):
    """Returns the number of batches that are used up after `step`."""
    return step - self.start.step + self._first_batch

  def _check_finite(self):
    if self._unchecked is not None:
      state_lib.check_finite(*self._unchecked)

  def _make_row(self, step, measurements) -> dict[str, float]:
    """Returns the row of metrics of a step, without evaluators."""
    row = {name: float(value) for name, value in measurements.items()}
    row |= {name: float(fn(step - 1))
            for name, fn in self._built.task.sched_fns.items()}
    row |= self._chrono.measure(step, self.batches.wait_s)
    row |= progress.memory()
    row["num_skipped"] = self.batches.num_skipped
    if self._options.max_rollbacks:
      row["num_rollbacks"] = self._num_rollbacks
    return row

  def _evaluate_and_save(self, step, state, row, exit_code=None):
    """Does what is due after `step`, and stops if there is an `exit_code`.

    A request to stop skips pending evaluators; they run when the run resumes.
    """
    due = [evaluator for evaluator in self._evals if evaluator.due(step)]
    ckpt_every = self._options.ckpt_every
    is_saved = exit_code or step > self.start.step and (
        step == self._info.total_steps or ckpt_every and step % ckpt_every == 0)
    if due or is_saved:
      self._check_finite()
    values = {}
    if due:
      values = self._evaluate(step, state, due)
      exit_code = self._interrupts.exit_code(step)
    # The row comes before the checkpoint: a run that resumes from a checkpoint
    # must find all rows up to it.
    if row or values:
      self._writer.write(step, row | (values or {}))
    if is_saved or exit_code:
      self._save(step, state, unevaluated=row if values is None else None)
    if values is not None:
      self._best.update(
          step, state, row | values, expected=self._best.metric is not None and
          schedule_lib.is_expected(
              self._best.metric, self._evals, due, "training_loss" in row))
    if exit_code:
      with watchdog.within("checkpoint"):
        self._saver.wait()
      raise interrupts_lib.Interrupted(step, exit_code)

  def _evaluate(self, step, state, due) -> dict[str, Any] | None:
    """Runs the evaluators that are due; None if the run is asked to stop."""
    def evaluate():
      values = schedule_lib.run_all(
          due, {**state, "frozen": self.frozen}, self._between_steps,
          lambda: self._interrupts.check(step))
      console.say(progress.format_evals(step, values))
      return values
    return self._interrupts.call_unless_stopped(evaluate)

  def _save(self, step, state, unevaluated):
    with self._between_steps("checkpoint"):
      self._writer.sync()
      self._saver.save(step, state, {
          "config": self._config,
          "num_rows": self._writer.num_rows,
          "chrono": self._chrono.state(),
          "examples": self._num_batches(step) * self._info.batch_size,
          "rollbacks": self._num_rollbacks,
          "unevaluated": unevaluated})

  @contextlib.contextmanager
  def _between_steps(self, name: str) -> Iterator[None]:
    """Times and watches work that happens between steps."""
    with watchdog.within(name), self._chrono.paused(name):
      yield
