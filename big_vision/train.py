"""The loop.

  python -m big_vision.train --config big_vision/configs/quickstart.py \
      --workdir workdirs/quickstart

It knows no method: a trainer (`trainers/classification.py`, or what
`config.trainer` names) states a `Task`, see `task.py`. It knows no model and no
data either: the config names them, see `build.py`.
"""

import os

from absl import app
from absl import flags
import jax
from ml_collections import config_flags

from big_vision import build as build_lib
from big_vision import checkpoint
from big_vision import config as config_lib
from big_vision import input_pipeline
from big_vision import launch
from big_vision import metrics
from big_vision import sharding
from big_vision import state as state_lib
from big_vision import tree
from big_vision.evaluators import common as evaluators

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What to train: FILE.py or FILE.py:arg=value,...",
    lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints and metrics go; a run that is there is "
    "continued.")
_ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
    "allow_config_change", False, "Continue the run in --workdir although its "
    "config was another.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, where several "
    "processes are not detected by themselves.")
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which process this is, from 0.")


def train(config: config_lib.Config, workdir: str):
  """Trains what `config` says, from where `workdir` left off, to the end.

  Raises:
    ConfigError, DataError, StorageError, NonFiniteError: see their classes.
    Interrupted: SIGTERM or Ctrl-C; the state is saved.
  """
  interrupts = launch.Interrupts()
  built = build_lib.build(config)
  mesh, info, task = built.mesh, built.info, built.task
  launch.say(
      f"{mesh.size} x {mesh.devices.flat[0].device_kind}, mesh "
      f"{dict(mesh.shape)}, {jax.process_count()} process(es); "
      f"{tree.num_elements(built.shapes.get('params', {})):,} parameters; "
      f"{info.data_size:,} examples, {info.total_steps:,} steps of "
      f"{info.batch_size}.")

  def every(name, default=None):
    return config_lib.duration(
        name, config, batch_size=info.batch_size, data_size=info.data_size,
        total_steps=info.total_steps, default=default)

  log_every, ckpt_every = every("log_training", 50), every("ckpt")
  checkpoints = checkpoint.Checkpoints(
      os.path.join(workdir, "checkpoints"), keep_every=every("keep_ckpt"))
  best = config_lib.call(
      checkpoint.Best, config.get("keep_best", {}), "config.keep_best",
      directory=os.path.join(workdir, "checkpoints_best"))
  resume, wandb = config.get("resume"), config.get("wandb")

  # The step to continue from is known from a name alone, so the input can fill
  # its buffers while the rest is made.
  batches = built.data.start(checkpoints.latest() or 0, built.batch_sharding)
  evals = build_lib.make_evaluators(config, built, workdir)
  config.check_all_read()
  if jax.process_index() == 0:
    config_lib.store_in_workdir(workdir, config)

  # In this order: this run's own checkpoint, another run's that the config
  # names, parameters that the task loads, from scratch.
  restored = checkpoints.restore(built.shapes)
  if restored is None and resume is not None:
    restored = checkpoint.Checkpoints(
        os.path.join(resume, "checkpoints"), read_only=True).restore(
            built.shapes)
    if restored is None:
      raise config_lib.ConfigError(
          f"config.resume={resume!r} has no checkpoints to continue from.")
  if restored is None:
    first_step, saved = 0, {}
    state = state_lib.make(task, info, built.rng_init, built.shapes,
                           built.shardings)
  else:
    first_step, state, saved = restored
    launch.say(f"Continuing after step {first_step}.")
  if first_step != batches.first_batch:
    batches.close()
    batches = built.data.start(first_step, built.batch_sharding)

  frozen = state_lib.put_frozen(task, built.strategy, mesh)
  update = state_lib.make_update(task, built.rng_train, built.shardings, mesh)
  writer = metrics.Writer(
      workdir, resume_step=first_step, config=config.to_dict(), wandb=wandb,
      enabled=jax.process_index() == 0)
  chrono = metrics.Chrono(
      first_step, info.total_steps, info.batch_size, mesh.size,
      mesh.devices.flat[0].device_kind, info.data_size, saved.get("chrono"))

  def evaluate(step):
    """Metrics of all evaluators that are due after `step`."""
    values = evaluators.run_all(
        [evaluator for evaluator in evals if evaluator.due(step)],
        {**state, "frozen": frozen}, chrono.paused)
    if values:
      launch.say(metrics.format_evals(step, values))
    return values

  with sharding.use(mesh, built.rules), batches, writer, checkpoints, best:
    if first_step == 0:
      writer.write(0, {"num_params": tree.num_elements(
          state.get("params", {})), **evaluate(0)})
    unchecked = None
    for step in range(first_step + 1, info.total_steps + 1):
      static = tuple(sorted(task.static(step - 1).items()))
      state, measurements, ok = update(state, frozen, next(batches), static)
      # Looking at the step before keeps one step on the devices while the host
      # waits; nothing below is done with a state that was not looked at.
      if unchecked is not None:
        state_lib.check_finite(*unchecked)
      unchecked = step, measurements, ok
      chrono.tick(step)
      stop = interrupts.exit_code(step)
      last = step == info.total_steps

      row = {}
      if step % log_every == 0 or last or step == 1:
        state_lib.check_finite(*unchecked)
        row = {name: float(value) for name, value in measurements.items()}
        row |= {name: float(fn(step - 1)) for name, fn in task.sched_fns.items()}
        row |= chrono.measure(step, batches.wait_s)
        row["num_skipped"] = batches.num_skipped
        launch.say(metrics.format_progress(step, info.total_steps, row))
      if any(evaluator.due(step) for evaluator in evals):
        state_lib.check_finite(*unchecked)
        row |= evaluate(step)
      # The row before the checkpoint: a run that continues from it must find
      # all rows up to it.
      if row:
        writer.write(step, row)
      if last or stop or (ckpt_every and step % ckpt_every == 0):
        state_lib.check_finite(*unchecked)
        with chrono.paused("checkpoint"):
          checkpoints.save(step, state, {"chrono": chrono.state()})
      best.update(step, state, row)
      if stop:
        checkpoints.wait()
        raise launch.Interrupted(step, stop)

  launch.say(
      f"Done: {info.total_steps} steps. Metrics and checkpoints are in "
      f"{workdir}. To look at them:\n"
      f"  bash run.sh big_vision.tools.report {workdir}\n"
      "To evaluate again:\n"
      f"  bash run.sh big_vision.tools.eval_only --workdir {workdir}")


def main(argv):
  del argv
  with launch.exit_codes({
      config_lib.ConfigError: launch.EXIT_CONFIG,
      state_lib.NonFiniteError: launch.EXIT_NON_FINITE,
      checkpoint.StorageError: launch.EXIT_STORAGE,
      input_pipeline.DataError: launch.EXIT_DATA}):
    launch.start_processes(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    config = config_lib.resolve(_CONFIG.value)
    launch.check_workdir(_WORKDIR.value)
    config_lib.check_workdir(
        _WORKDIR.value, config, _ALLOW_CONFIG_CHANGE.value)
    train(config, _WORKDIR.value)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
