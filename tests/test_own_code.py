"""Trains a project that is only in a directory on the Python path.

It has a model, a trainer, an evaluator, a source, a preprocessing op and a
config. It is trained, killed, resumed and evaluated by the usual commands, from
another directory, without a change to this package.
"""

import signal
import sys

import pytest

from tests import processes

FILES = {
    "model.py": '''
import flax.linen as nn


class Model(nn.Module):
  width: int = 8

  @nn.compact
  def __call__(self, x):
    out = {"hidden": nn.relu(nn.Dense(self.width, name="hidden")(x))}
    return nn.Dense(1, name="head")(out["hidden"])[:, 0], out
''',
    "trainer.py": '''
from big_vision import config as config_lib
from big_vision import modules
from big_vision import optim
from big_vision.task import Task
import jax
import jax.numpy as jnp
import optax


def make_task(config, info):
  models = modules.find("model", config.model_name)
  model = config_lib.call(models.Model, config.model, "config.model")
  init_params = lambda x: model.init(jax.random.key(0), x)["params"]
  params_spec = jax.eval_shape(init_params, info.batch_spec["x"])
  tx, sched_fns = optim.make(
      config, params_spec, total_steps=info.total_steps,
      batch_size=info.batch_size, data_size=info.data_size)

  def init(rng, batch, given):
    params = model.init(rng, batch["x"])["params"]
    return {"params": params, "opt": tx.init(params)}

  def update(state, batch, rng):
    def loss_fn(params):
      y, _ = model.apply({"params": params}, batch["x"])
      noise = jax.random.normal(rng, y.shape) / 100
      return jnp.mean(jnp.log(jnp.cosh(y - batch["y"] + noise)))
    loss, grads = jax.value_and_grad(loss_fn)(state["params"])
    updates, opt = tx.update(grads, state["opt"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "opt": opt}, {"training_loss": loss}

  def predict(state, batch, *, rng=None):
    return model.apply({"params": state["params"]}, batch["x"])

  return Task(init, update, {"predict": predict}, sched_fns=sched_fns)
''',
    "worst.py": '''
import numpy as np


class Evaluator:

  def __init__(self, predict_fn, loader, *, data, pp_fn):
    def measure(state, batch, rng):
      y, _ = predict_fn(state, batch, rng=rng)
      return abs(y - batch["y"])
    self._measure = loader.compile(measure)
    self._examples = loader.open(data, pp_fn)

  def run(self, state):
    errors = self._examples.collect(self._measure, state)
    yield "worst", np.max(errors)
    yield "num", len(errors)
''',
    "waves.py": '''
from big_vision.datasets import core
import tensorflow as tf


class Waves(core.Source):

  def __init__(self, size):
    self._size = size

  def __len__(self):
    return self._size

  def read(self, index):
    t = tf.cast(index, tf.float32) / self._size
    return {"x": tf.stack([t, tf.cos(9 * t)]), "y": tf.sin(5 * t)}

  def describe(self, index):
    return f"wave {index}"


def open_source(size):
  return Waves(size)
''',
    "ops.py": '''
from big_vision.pp import registry


@registry.register("stretch")
def stretch(factor):
  return lambda data: {**data, "x": data["x"] * factor}
''',
    "config.py": '''
from ml_collections import ConfigDict


def get_config():
  pp = "stretch(2.0)|keep('x', 'y')"
  return ConfigDict(dict(
      trainer="mylab.trainer", model_name="mylab.model", model=dict(width=16),
      pp_modules=["mylab.ops"], total_steps=300, log_training_steps=1,
      ckpt_steps=20, optax_name="scale_by_adam", lr=1e-2,
      input=dict(data=dict(name="mylab.waves", size=200), batch_size=16, pp=pp),
      evals=dict(far=dict(
          type="mylab.worst", data=dict(name="mylab.waves", size=50), pp_fn=pp,
          log_steps=100))))
''',
}


@pytest.fixture
def lab(tmp_path):
  """Writes the project; returns the keyword arguments of its commands."""
  folder = tmp_path / "code" / "mylab"
  folder.mkdir(parents=True)
  (folder / "__init__.py").touch()
  for name, text in FILES.items():
    (folder / name).write_text(text)
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  return dict(config=str(folder / "config.py"), cwd=elsewhere,
              PYTHONPATH=f"{folder.parent}:{processes.ROOT}")


def _package():
  """Returns the files of this package, and when they were changed."""
  return {path: path.stat().st_mtime_ns
          for path in (processes.ROOT / "big_vision").rglob("*")
          if path.is_file() and "__pycache__" not in path.parts}


def test_a_project_elsewhere_is_trained_killed_resumed_and_evaluated(
    tmp_path, lab):
  package = _package()
  whole, workdir = tmp_path / "whole", tmp_path / "workdir"
  uninterrupted = processes.start(whole, **lab)
  killed = processes.start(workdir, **lab)
  processes.wait_for_step(killed, workdir, 50)
  killed.send_signal(signal.SIGKILL)
  killed.wait()
  processes.finish(uninterrupted)
  assert "Continuing after step" in processes.finish(
      processes.start(workdir, **lab))
  processes.assert_same(whole, workdir)
  rows = processes.rows(workdir)
  assert [row["step"] for row in rows] == list(range(301))
  assert rows[-1]["far/num"] == 50
  assert rows[-1]["far/worst"] < rows[0]["far/worst"] / 4

  evaluation = processes.start_command(
      [sys.executable, "-m", "big_vision.tools.eval_only", "--workdir",
       str(workdir)], cwd=lab["cwd"],
      env=processes.environ(PYTHONPATH=lab["PYTHONPATH"]))
  assert f"far/worst {rows[-1]['far/worst']:.4f}" in processes.finish(
      evaluation)
  assert _package() == package
