"""From a config to everything a run needs, before any array exists.

Training, evaluating and planning a run all start here, so that a config means
the same to each of them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from big_vision import config as config_lib
from big_vision import durations
from big_vision import input_pipeline
from big_vision import modules
from big_vision import sharding
from big_vision import state as state_lib
from big_vision import tree
from big_vision.evaluators import schedule as evaluators
from big_vision.task import Info, Task


class Built(NamedTuple):
  """What a config stands for, before any array exists."""
  mesh: jax.sharding.Mesh
  rules: list
  batch_sharding: jax.sharding.NamedSharding
  data: input_pipeline.TrainingPipeline
  info: Info
  task: Task
  strategy: list
  shapes: Any        # The state, as jax.ShapeDtypeStruct with sharding.
  shardings: Any
  rng_init: jax.Array
  rng_train: jax.Array


def build(config: config_lib.Config, devices=None) -> Built:
  """Builds the mesh, the data, the task and the shape of its state.

  Args:
    config: the whole config of a run.
    devices: of the mesh; None for all there are. They may be such that nothing
      can run on them, only be compiled for.

  Raises:
    ConfigError: whatever in the config cannot be.
  """
  trainer = modules.find("trainer", config.get("trainer", "classification"))
  seed = config.get("seed", 0)
  rng_init, rng_train = jax.random.split(jax.random.key(seed))
  mesh = sharding.make_mesh(config.get("mesh", sharding.DEFAULT_MESH), devices)
  preset, strategy = (
      config.get(f"sharding_{what}") for what in ("preset", "strategy"))
  if preset is not None and strategy is not None:
    raise config_lib.ConfigError(
        "config.sharding_preset and config.sharding_strategy say the same "
        "thing; remove one of them.")
  rules = sharding.make_rules(mesh, config.get("sharding_rules"), preset)
  batch_sharding = sharding.batch_sharding(mesh, rules)

  data = input_pipeline.make_training(
      config.input, seed=seed, pp_modules=config.get("pp_modules"))
  sharding.check_divides(
      data.batch_size, batch_sharding, "config.input.batch_size")
  total_steps = durations.get_steps(
      "total", config, batch_size=data.batch_size, data_size=data.data_size)
  if total_steps is None:
    raise config_lib.ConfigError(
        "How long to train is not set: config.total_{steps,epochs,examples}.")
  info = Info(total_steps, data.batch_size, data.data_size, data.batch_spec,
              mesh)
  with sharding.use(mesh, rules):
    task = trainer.make_task(config, info)
    shapes = state_lib.infer_shapes(task, info, rng_init)
  if strategy is None:
    strategy = sharding.preset_strategy(
        preset or "replicate", shapes, mesh)
  shardings = sharding.infer(shapes, strategy, mesh, rules)
  shapes = state_lib.with_shardings(shapes, shardings)
  return Built(mesh, rules, batch_sharding, data, info, task, strategy, shapes,
               shardings, rng_init, rng_train)


def describe(built: Built) -> str:
  """A line for people: on what this run is, and how large it is."""
  mesh, info = built.mesh, built.info
  return (
      f"{mesh.size} x {mesh.devices.flat[0].device_kind}, mesh "
      f"{dict(mesh.shape)}, {jax.process_count()} process(es); "
      f"{tree.num_elements(built.shapes.get('params', {})):,} parameters; "
      f"{info.data_size:,} examples, {info.total_steps:,} steps of "
      f"{info.batch_size}.")


class LoopOptions(NamedTuple):
  """What the config says of the loop itself; periods are in steps."""
  log_every: int
  ckpt_every: int | None
  keep_ckpt_every: int | None
  keep_best: Mapping[str, Any]
  resume: str | None
  wandb: Mapping[str, Any] | None
  profile: Mapping[str, Any]
  compilation_cache: str | None
  max_rollbacks: int


def loop_options(config: config_lib.Config, info: Info) -> LoopOptions:
  """Reads what no task, data or evaluator does.

  Raises:
    ConfigError: a period that is said twice or is none.
  """
  def every(name, default=None):
    return durations.get_steps(
        name, config, batch_size=info.batch_size, data_size=info.data_size,
        total_steps=info.total_steps, default=default)
  return LoopOptions(
      every("log_training", 50), every("ckpt"), every("keep_ckpt"),
      config.get("keep_best", {}), config.get("resume"), config.get("wandb"),
      config.get("profile", {}), config.get("compilation_cache"),
      config.get("max_rollbacks", 0))


def make_evaluators(
    config: config_lib.Config, built: Built, workdir: str | None = None):
  """The evaluators of the config, their data opened."""
  return evaluators.make_evaluators(
      config.get("evals"), built.task.predict_fns,
      batch_sharding=built.batch_sharding,
      batch_size=config.get("batch_size_eval", built.info.batch_size),
      total_steps=built.info.total_steps, data_size=built.info.data_size,
      train_batch_size=built.info.batch_size,
      pp_modules=config.get("pp_modules"), workdir=workdir,
      seed=config.get("seed", 0))
