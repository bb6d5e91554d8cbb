"""Builds everything a config describes, before any array exists.

Training, evaluating and planning a run all start here, so that a config means
the same to each of them.
"""

from collections.abc import Iterator, Mapping
import contextlib
import linecache
import traceback
from typing import Any, NamedTuple

import jax

from big_vision import config as config_lib
from big_vision import durations
from big_vision import input_pipeline
from big_vision import modules
from big_vision import ranges
from big_vision import sharding
from big_vision import state as state_lib
from big_vision import tree
from big_vision.evaluators import schedule as evaluators
from big_vision.task import Info, Task


class Built(NamedTuple):
  """Everything that a config describes, before any array exists.

  Attributes:
    mesh: Devices of the run.
    rules: Rules of `sharding.make_rules`, for activations and batches.
    batch_sharding: Sharding of the arrays of a batch.
    data: Training data and its preprocessing, not yet started.
    info: Sizes of the run.
    task: The trainer's task.
    strategy: Rules for the state's sharding, pairs of a regex and a strategy.
    shapes: The state as jax.ShapeDtypeStruct with shardings.
    shardings: The state's shardings.
    rng_init: Key for the initial state.
    rng_train: Key for the updates, to be folded with the step.
  """
  mesh: jax.sharding.Mesh
  rules: list
  batch_sharding: jax.sharding.NamedSharding
  data: input_pipeline.TrainingPipeline
  info: Info
  task: Task
  strategy: list
  shapes: Any
  shardings: Any
  rng_init: jax.Array
  rng_train: jax.Array


def build(config: config_lib.Config, devices=None) -> Built:
  """Builds the mesh, the data, the task and the shape of its state.

  Args:
    config: The whole config of a run.
    devices: Devices of the mesh; None for all that exist. They may be
      descriptions of devices, for which programs can be compiled but not run.

  Raises:
    ConfigError: The config is invalid, or asks for something that does not
      exist.
  """
  trainer = modules.find("trainer", config.get("trainer", "classification"))
  seed = _get_seed(config)
  rng_init, rng_train = jax.random.split(jax.random.key(seed))
  mesh = sharding.make_mesh(config.get("mesh", sharding.DEFAULT_MESH), devices)
  preset, strategy = (
      config.get(f"sharding_{what}") for what in ("preset", "strategy"))
  if preset is not None and strategy is not None:
    raise config_lib.ConfigError(
        "config.sharding_preset and config.sharding_strategy both place the "
        "state; remove one of them.")
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
        "The length of the run is not set; set one of "
        "config.total_{steps,epochs,examples}.")
  info = Info(
      total_steps=total_steps, batch_size=data.batch_size,
      data_size=data.data_size, batch_spec=data.batch_spec, mesh=mesh)
  with sharding.use(mesh, rules), _refusals_are_config_errors():
    task = trainer.make_task(config, info)
    shapes = state_lib.infer_shapes(task, info, rng_init)
  if strategy is None:
    strategy = sharding.preset_strategy(
        preset or "replicate", shapes, mesh)
  shardings = sharding.infer(shapes, strategy, mesh, rules)
  shapes = state_lib.with_shardings(shapes, shardings)

  def load(shapes):
    with _refusals_are_config_errors():
      return task.load(shapes)

  return Built(
      mesh=mesh, rules=rules, batch_sharding=batch_sharding, data=data,
      info=info, task=task._replace(load=load), strategy=strategy,
      shapes=shapes, shardings=shardings, rng_init=rng_init,
      rng_train=rng_train)


# Their errors are about arrays, not about options that a config has.
_LIBRARIES = ("flax", "jax", "jaxlib", "numpy", "optax")


@contextlib.contextmanager
def _refusals_are_config_errors() -> Iterator[None]:
  """Turns errors by which models and trainers refuse options into ConfigErrors.

  Models and layers know nothing of configs and raise ValueError (OSError for
  files of weights). Here all their options come from the config. Errors that no
  `raise` statement of theirs has raised are bugs and pass unchanged, and so do
  subclasses.
  """
  try:
    yield
  except (ValueError, OSError) as error:
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    statement = linecache.getline(frame.f_code.co_filename, line).lstrip()
    if type(error) not in (ValueError, OSError) or package in _LIBRARIES or (
        not statement.startswith("raise ")):
      raise
    raise config_lib.ConfigError(str(error)) from error


def describe(built: Built) -> str:
  """Returns lines about the devices, the sizes and the data of a run."""
  mesh, info = built.mesh, built.info
  return "\n".join([
      f"{mesh.size} x {mesh.devices.flat[0].device_kind}, mesh "
      f"{dict(mesh.shape)}, {jax.process_count()} process(es); "
      f"{tree.num_elements(built.shapes.get('params', {})):,} parameters; "
      f"{info.data_size:,} examples, {info.total_steps:,} steps of "
      f"{info.batch_size}.", *built.data.notes()])


class LoopOptions(NamedTuple):
  """The config's options for the training loop.

  Attributes:
    log_every: Number of steps between logged measurements.
    ckpt_every: Number of steps between checkpoints; None or 0 saves at the end
      only.
    keep_ckpt_every: Number of steps between checkpoints that are kept forever;
      None keeps the newest only.
    keep_best: Options of `checkpoints.Best`.
    resume: Workdir of another run to continue from while this run has no
      checkpoint of its own; None starts from the initial state.
    wandb: Options of `metrics.Writer` for Weights & Biases; None disables it.
    profile: Options of `profiler.Profiler`.
    compilation_cache: Directory of compiled programs; None for no cache.
    max_rollbacks: Number of times that a run may go back to its last checkpoint
      after a loss that is not finite.
  """
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
  """Reads the options of the loop itself, which no task or evaluator reads.

  Raises:
    ConfigError: A period is given in two units, or is not a number; or an
      option has no effect without another one.
  """
  for name, key in (("keep_best", "metric"), ("profile", "first_step")):
    options = config.get(name, {})
    if options and key not in options:
      raise config_lib.ConfigError(
          f"config.{name} is {options.to_dict()}, which has no effect without "
          f"{key!r}; add that or remove config.{name}.")
  def every(name, default=None, zero=True):
    return durations.get_steps(
        name, config, batch_size=info.batch_size, data_size=info.data_size,
        total_steps=info.total_steps, default=default, zero=zero)
  return LoopOptions(
      log_every=every("log_training", 50, zero=False),
      ckpt_every=every("ckpt"),
      keep_ckpt_every=every("keep_ckpt", zero=False),
      keep_best=config.get("keep_best", {}), resume=config.get("resume"),
      wandb=config.get("wandb"), profile=config.get("profile", {}),
      compilation_cache=config.get("compilation_cache"),
      max_rollbacks=config_lib.get_checked(
          config, "max_rollbacks", ranges.CountOrZero, 0))


def make_evaluators(
    config: config_lib.Config, built: Built, workdir: str | None = None):
  """Makes the evaluators of the config and opens their data."""
  return evaluators.make_evaluators(
      config.get("evals"), built.task.predict_fns,
      batch_sharding=built.batch_sharding,
      batch_size=config_lib.get_checked(
          config, "batch_size_eval", ranges.Count, built.info.batch_size),
      total_steps=built.info.total_steps, data_size=built.info.data_size,
      train_batch_size=built.info.batch_size,
      pp_modules=config.get("pp_modules"), workdir=workdir,
      seed=_get_seed(config))


def _get_seed(config: config_lib.Config) -> int:
  """Returns the run's seed; one out of range would act like another one."""
  return config_lib.get_checked(config, "seed", ranges.Seed, 0)

