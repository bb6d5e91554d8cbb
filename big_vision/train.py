"""The loop.

  python -m big_vision.train --config big_vision/configs/quickstart.py \
      --workdir workdirs/quickstart

It knows no method: a trainer (`trainers/classification.py`, or what
`config.trainer` names) states a `Task`, see `task.py`. It knows no model and no
data either: the config names them, see `build.py`.
"""

import contextlib
import os

from absl import app
from absl import flags
import jax
from ml_collections import config_flags

from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import sharding
from big_vision import state as state_lib
from big_vision.evaluators import schedule as evaluators
from big_vision.hardware import hlo
from big_vision.run import checkpoints
from big_vision.run import cluster
from big_vision.run import command_line
from big_vision.run import console
from big_vision.run import interrupts as interrupts_lib
from big_vision.run import metrics
from big_vision.run import profiler
from big_vision.run import start as start_lib
from big_vision.run import watchdog
from big_vision.run import workdir as workdir_lib


class _RollBack(Exception):
  """What `_train` is to go on with: rollbacks, next_batch, interrupts."""


def train(config: config_lib.Config, workdir: str):
  """Trains what `config` says, from where `workdir` left off, to the end.

  Where a loss or a norm is not finite, the run stops. With
  `config.max_rollbacks` it goes back to its last checkpoint instead, at most so
  often, and on with the data that follows the batch where that was seen.

  Raises:
    ConfigError, DataError, StorageError, NonFiniteError: see their classes.
    Interrupted: SIGTERM or Ctrl-C; the state is saved.
  """
  going_on = 0, 0, None
  while True:
    try:
      return _train(config, workdir, *going_on)
    except _RollBack as error:
      going_on = error.args
      console.say(f"{error.__cause__}\nRollback {going_on[0]}: from the last "
                 f"checkpoint on, with the data from batch {going_on[1]}.")


def _train(config, workdir, rollbacks, next_batch, interrupts):
  """From the last checkpoint on, with data not before the batch `next_batch`.

  A run that is killed after a rollback, before it has saved again, comes to the
  same step and does the same again.
  """
  built = build_lib.build(config)
  mesh, info, task = built.mesh, built.info, built.task
  console.say(build_lib.describe(built))
  options = build_lib.loop_options(config, info)
  log_every, ckpt_every = options.log_every, options.ckpt_every
  saver = checkpoints.Checkpoints(
      os.path.join(workdir, "checkpoints"), keep_every=options.keep_ckpt_every)
  best = config_lib.call(
      checkpoints.Best, options.keep_best, "config.keep_best",
      directory=os.path.join(workdir, "checkpoints_best"))
  profile = config_lib.call(
      profiler.Profiler, options.profile, "config.profile", workdir=workdir)
  if options.compilation_cache is not None:
    jax.config.update("jax_compilation_cache_dir", options.compilation_cache)

  # The step to continue from is known from a name alone, so the input can fill
  # its buffers while the rest is made.
  batches = built.data.start(saver.latest() or 0, built.batch_sharding)
  evals = build_lib.make_evaluators(config, built, workdir)
  config.check_all_read()
  if jax.process_index() == 0:
    workdir_lib.store_config(workdir, config)

  start = start_lib.find(built, saver, options.resume)
  first_step, state = start.step, start.state
  rollbacks = max(rollbacks, start.rollbacks)
  first_batch = max(next_batch, start.batch)
  if first_batch != batches.first_batch:
    batches.close()
    batches = built.data.start(first_batch, built.batch_sharding)

  frozen = state_lib.put_frozen(task, built.strategy, mesh)
  update = state_lib.make_update(task, built.rng_train, built.shardings, mesh)
  writer = metrics.Writer(
      workdir, resume_step=first_step - (start.unevaluated is not None),
      config=config.to_dict(), wandb=options.wandb,
      enabled=jax.process_index() == 0)
  chrono = metrics.Chrono(
      first_step, info.total_steps, info.batch_size, mesh.size,
      mesh.devices.flat[0].device_kind, info.data_size, start.chrono)

  @contextlib.contextmanager
  def aside(name):
    """What is no part of a step: its time is counted and limited by itself."""
    with watchdog.within(name), chrono.paused(name):
      yield

  def evaluate(step, due):
    """Metrics of the evaluators that are due; None if the run is to stop."""
    values = None
    with interrupts.abandoning():
      values = evaluators.run_all(
          due, {**state, "frozen": frozen}, aside,
          lambda: interrupts.check(step))
      console.say(metrics.format_evals(step, values))
    return values

  def conclude(step, row, stop=None):
    """Evaluates, writes and saves what is due after `step`, or stops.

    Who stops a run does not wait for evaluators: those that are due run when it
    is continued.
    """
    due = [evaluator for evaluator in evals if evaluator.due(step)]
    is_saved = stop or step > first_step and (
        step == info.total_steps or ckpt_every and step % ckpt_every == 0)
    if unchecked is not None and (due or is_saved):
      state_lib.check_finite(*unchecked)
    values = {}
    if due:
      values = evaluate(step, due)
      stop = interrupts.exit_code(step)
    # The row before the checkpoint: a run that continues from it must find
    # all rows up to it.
    if row or values:
      writer.write(step, row | (values or {}))
    if is_saved or stop:
      with aside("checkpoint"):
        saver.save(step, state, {
            "chrono": chrono.state(),
            "examples": (step - first_step + first_batch) * info.batch_size,
            "rollbacks": rollbacks,
            "unevaluated": row if values is None else None})
    if values is not None:
      best.update(step, state, row | values)
    if stop:
      with watchdog.within("checkpoint"):
        saver.wait()
      raise interrupts_lib.Interrupted(step, stop)

  @contextlib.contextmanager
  def rolling_back():
    """Turns a loss that is not finite into a rollback, if one is left."""
    try:
      yield
    except state_lib.NonFiniteError as error:
      if rollbacks >= options.max_rollbacks:
        raise
      step, *_ = unchecked
      raise _RollBack(rollbacks + 1, step - first_step + first_batch,
                      interrupts) from error

  interrupts = interrupts or interrupts_lib.Interrupts()
  unchecked = None
  with (rolling_back(), sharding.use(mesh, built.rules), batches, writer,
        saver, best, profile):
    if start.unevaluated is not None:
      conclude(first_step, start.unevaluated)
    for step in range(first_step + 1, info.total_steps + 1):
      static = tuple(sorted(task.static(step - 1).items()))
      profile.before(step, state)
      watchdog.enter("data", step)
      batch = next(batches)
      if step == first_step + 1:
        chrono.flops = hlo.count_flops(
            update.trace(state, frozen, batch, static).jaxpr)
      watchdog.enter_update(step, static)
      state, measurements, ok = update(state, frozen, batch, static)
      del batch  # The next one needs its memory.
      # Looking at the step before keeps one step on the devices while the host
      # waits; nothing is done with a state that was not looked at.
      if unchecked is not None:
        state_lib.check_finite(*unchecked)
      unchecked = step, measurements, ok
      chrono.tick(step)

      row = {}
      if step % log_every == 0 or step in (1, info.total_steps):
        state_lib.check_finite(*unchecked)
        row = {name: float(value) for name, value in measurements.items()}
        row |= {name: float(fn(step - 1))
                for name, fn in task.sched_fns.items()}
        row |= chrono.measure(step, batches.wait_s) | metrics.memory()
        row["num_skipped"] = batches.num_skipped
        if options.max_rollbacks:
          row["num_rollbacks"] = rollbacks
        console.say(metrics.format_progress(step, info.total_steps, row))
      conclude(step, row, interrupts.exit_code(step))
    watchdog.enter("checkpoint")

  console.say(
      f"Done: {info.total_steps} steps. Metrics and checkpoints are in "
      f"{workdir}. To look at them:\n"
      f"  bash run.sh big_vision.tools.report {workdir}\n"
      "To evaluate again:\n"
      f"  bash run.sh big_vision.tools.eval_only --workdir {workdir}")


def define_flags():
  """Called when this is the program, so that others may import it."""
  config_flags.DEFINE_config_file(
      "config", None, "What to train: FILE.py or FILE.py:arg=value,...",
      lock_config=True)
  flags.DEFINE_string(
      "workdir", None, "Where checkpoints and metrics go; a run that is there "
      "is continued.")
  flags.DEFINE_bool(
      "allow_config_change", False, "Continue the run in --workdir although "
      "its config was another.")
  cluster.define_flags()
  flags.mark_flags_as_required(["config", "workdir"])


def main(argv):
  del argv
  args = flags.FLAGS
  with command_line.exit_with_code():
    cluster.start_processes(
        args.coordinator_address, args.num_processes, args.process_id)
    config = config_lib.resolve(args.config)
    workdir_lib.make(args.workdir)
    with workdir_lib.lock(args.workdir), watchdog.from_config(config):
      workdir_lib.check_config(args.workdir, config, args.allow_config_change)
      train(config, args.workdir)


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=command_line.parse_flags)
