"""A short tiny run, with a fault that an environment variable asks for.

The variables are not part of the config, so the run can resume without a fault:

  FAULT_STEP=5     the step after 5 updates never ends
  FAULT_DATA=24    preparing the 25th example of a process never ends
  FAULT_EVAL=FILE  evaluations take a minute while FILE exists, and make
                   FILE.reached
  FAULT_FOLDER=DIR images from a folder instead
  FAULT_NPZ=FILE   images from a .npz instead
"""

import importlib.util
import os
import pathlib
import sys
import time
import types

from big_vision.configs import common
import jax
import numpy as np


def _tiny(arg):
  path = pathlib.Path(__file__).parent / "tiny_config.py"
  spec = importlib.util.spec_from_file_location("tiny_config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


def get_config(arg=None):
  arg = common.parse_arg(
      arg, steps=6, evals=0, depth=1, watchdog=None, fsdp=False, model=1,
      rollbacks=0)
  config = _tiny(f"steps={arg.steps},fsdp={arg.fsdp},model={arg.model}")
  config.model.depth = arg.depth
  config.ckpt_steps = 2
  config.max_rollbacks = arg.rollbacks
  if arg.watchdog:
    config.watchdog = arg.watchdog
  test = config.evals.test.copy_and_resolve_references()
  test.log_steps = 4
  test.batch_size = 8
  test.pp_fn = f"slow|{test.pp_fn}"
  config.evals = {f"test{i}": test.copy_and_resolve_references()
                  for i in range(arg.evals)}
  config.input.pp = f"stuck|{config.input.pp}"
  if folder := os.environ.get("FAULT_FOLDER"):
    config.input.data = dict(name="bv:folder", path=folder, split="train")
    config.input.pp = (
        "decode(channels=1)|resize(8)|value_range(-1, 1)|"
        "onehot(10, key='label', key_result='labels')|keep('image', 'labels')")
  if fname := os.environ.get("FAULT_NPZ"):
    config.input.data = dict(name="bv:npz", fname=fname)
    config.input.pp = (
        "onehot(10, key='label', key_result='labels')|keep('image', 'labels')")
  config.trainer = "fault"
  _register_ops()
  _register_trainer()
  return config


def _register_ops():
  """Registers ops that take a long time, or never end."""
  from big_vision.pp import registry
  import tensorflow as tf

  def passing(trap):
    """Returns an op that calls `trap` for every example."""
    def op(data):
      with tf.control_dependencies([tf.py_function(trap, [], [])]):
        return {key: tf.identity(value) for key, value in data.items()}
    return op

  @registry.register("slow")
  def _():
    path = pathlib.Path(os.environ.get("FAULT_EVAL", ""))

    def trap():
      if path.exists():
        path.with_suffix(".reached").touch()
        time.sleep(.5)
    return passing(trap) if "FAULT_EVAL" in os.environ else dict

  @registry.register("stuck")
  def _():
    count = 0

    def trap():
      nonlocal count
      count += 1
      if count > int(os.environ["FAULT_DATA"]):
        time.sleep(10_000)
    return passing(trap) if "FAULT_DATA" in os.environ else dict


def _register_trainer():
  """Registers the classification trainer with a step that may never end."""
  from big_vision.trainers import classification

  def make_task(config, info):
    task = classification.make_task(config, info)
    if "FAULT_STEP" not in os.environ:
      return task

    def trap(step):
      if step == int(os.environ["FAULT_STEP"]):
        time.sleep(10_000)
      return np.float32(0)

    def update(state, *args, **kw):
      changed, measurements = task.update(state, *args, **kw)
      measurements["training_loss"] += jax.pure_callback(
          trap, jax.ShapeDtypeStruct((), np.float32), state["step"])
      return changed, measurements
    return task._replace(update=update)

  module = types.ModuleType("big_vision.trainers.fault")
  module.make_task = make_task
  sys.modules[module.__name__] = module
