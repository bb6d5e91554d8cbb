"""Trains a run: the loop that all methods share.

  python -m big_vision.train --config big_vision/configs/quickstart.py \
      --workdir workdirs/quickstart

The loop knows nothing of methods: `config.trainer` names a module that defines
a `Task` (see `task.py`), by default `trainers/classification.py`. Nor does it
know models or data, which the config names too (see `build.py`). Everything
around a step (logging, evaluation, checkpoints) is in `run/session.py`.
"""

from absl import flags

from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import sharding
from big_vision import state as state_lib
from big_vision.run import cluster
from big_vision.run import command_line
from big_vision.run import comparison
from big_vision.run import config_files
from big_vision.run import console
from big_vision.run import progress
from big_vision.run import session as session_lib
from big_vision.run import watchdog
from big_vision.run import workdir as workdir_lib


def train(config: config_lib.Config, workdir: str):
  """Trains a run from its last checkpoint, if it has one, to its end.

  A loss or a norm that is not finite stops the run. With `config.max_rollbacks`
  it restarts from the last checkpoint instead, at most that many times, with
  the data that follows the batch that was not finite.

  Args:
    config: Config of the run.
    workdir: Directory for checkpoints and metrics; it exists.

  Raises:
    ConfigError, DataError, StorageError, NonFiniteError: See their classes.
    Interrupted: SIGTERM or Ctrl-C; the state is saved.
  """
  rollback = _train(config, workdir)
  while rollback is not None:
    rollback = _train(config, workdir, rollback)


def _train(
    config: config_lib.Config, workdir: str,
    rollback: session_lib.Rollback | None = None
) -> session_lib.Rollback | None:
  """Trains to the end (returns None) or to a rollback (returns it)."""
  built = build_lib.build(config)
  if rollback is None:
    comparison.check_same(config, built.info.data_size)
  console.say(build_lib.describe(built))
  mesh, task = built.mesh, built.task
  session = session_lib.Session(config, workdir, built, rollback)
  state, frozen = session.start.state, session.frozen
  update = state_lib.make_update(task, built.rng_train, built.shardings, mesh)
  count_flops = progress.FlopCounter(update)
  first_step, total_steps = session.start.step + 1, built.info.total_steps
  try:
    with sharding.use(mesh, built.rules), session:
      session.evaluate_start(state)
      for step in range(first_step, total_steps + 1):
        static = tuple(sorted(task.static(step - 1).items()))
        session.begin_step(step, state)
        batch = next(session.batches)
        watchdog.enter_update(step, static)
        flops = count_flops(state, frozen, batch, static)
        state, measurements, ok = update(state, frozen, batch, static)
        del batch  # The next one needs its memory.
        session.finish_step(step, state, measurements, ok, flops)
  except state_lib.NonFiniteError as error:
    return session.roll_back(error)
  console.say(
      f"Done: {total_steps} steps. Metrics and checkpoints are in {workdir}. "
      "To look at them:\n"
      f"  bash run.sh big_vision.tools.report {workdir}\n"
      "To evaluate again:\n"
      f"  bash run.sh big_vision.tools.eval_only --workdir {workdir}")
  return None


def define_flags():
  """Defines the command's flags; importing this module must not."""
  config_files.define_flag(
      "What to train: FILE.py or FILE.py:arg=value,...")
  command_line.define_workdir(
      "Directory for checkpoints and metrics. A run that is "
      "already there continues.")
  flags.DEFINE_bool(
      "allow_config_change", False, "Continue the run in --workdir even though "
      "its config was different.")
  cluster.define_flags()
  flags.mark_flag_as_required("config")


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
  command_line.run(main)
