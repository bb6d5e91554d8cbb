"""Evaluates a checkpoint of a run.

  python -m big_vision.tools.eval_only --workdir WORKDIR

reads the config stored in the workdir and its newest checkpoint; `--step`
selects another checkpoint, `--best` the best one. `--config` takes the
evaluators, and nothing else, from another config, so that a finished run can be
measured in new ways.
"""

import os
from typing import Any

from absl import flags
import jax

from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import sharding
from big_vision import state as state_lib
from big_vision.evaluators import schedule
from big_vision.run import checkpoints
from big_vision.run import cluster
from big_vision.run import command_line
from big_vision.run import config_files
from big_vision.run import console
from big_vision.run import pictures
from big_vision.run import pretrained
from big_vision.run import progress
from big_vision.run import watchdog
from big_vision.run import workdir as workdir_lib


def evaluate(config: config_lib.Config, workdir: str, *,
             step: int | None = None, best: bool = False) -> dict[str, Any]:
  """Runs all evaluators of `config` on a checkpoint of `workdir`.

  Prints the metrics, and writes pictures to the workdir.

  Args:
    config: Config of the run, with the evaluators to run.
    workdir: Directory of the run.
    step: Step of the checkpoint; None for the newest.
    best: Whether to use the best checkpoint instead of the newest.

  Returns:
    {name: number, or picture as uint8[h, w, 1 or 3]}.

  Raises:
    ConfigError: There is no such checkpoint.
  """
  built = build_lib.build(config)
  workdir_lib.check_class_names(workdir, built.data.class_names)
  evals = build_lib.make_evaluators(config, built, workdir)
  directory = os.path.join(
      workdir, "checkpoints_best" if best else "checkpoints")
  restored = checkpoints.Checkpoints(directory, read_only=True).restore(
      built.shapes, step)
  if restored is None:
    raise config_lib.ConfigError(
        f"{directory} has no checkpoint to evaluate.")
  step, state, _ = restored
  console.say(f"Evaluating {directory} after step {step}.")
  frozen = state_lib.put_frozen(built.task, built.strategy, built.mesh)
  with sharding.use(built.mesh, built.rules):
    values = schedule.run_all(evals, {**state, "frozen": frozen})
  console.say(progress.format_evals(step, values))
  if jax.process_index() == 0:
    pictures.save_all(workdir, step, values)
  return values


def define_flags():
  """Defines the command's flags; importing this module must not."""
  config_files.define_flag(
      "Config with the evaluators; by default the run's own.")
  command_line.define_workdir("Directory of the run.")
  flags.DEFINE_integer(
      "step", None, "Step of the checkpoint; by default the newest.")
  flags.DEFINE_bool("best", False, "Take the best checkpoint instead.")
  cluster.define_flags()


def main(argv):
  del argv
  args = flags.FLAGS
  with command_line.exit_with_code():
    cluster.start_processes(
        args.coordinator_address, args.num_processes, args.process_id)
    stored = pretrained.read_config(args.workdir)
    if args.config is not None:
      given = config_lib.resolve(args.config)
      stored = config_lib.Config(
          {**stored.to_dict(), "evals": given.to_dict().get("evals", {})})
    with watchdog.from_config(stored):
      evaluate(stored, args.workdir, step=args.step, best=args.best)


if __name__ == "__main__":
  define_flags()
  command_line.run(main)
