"""Tiny configs of VQGAN, and a run of them without the training loop."""

from big_vision import config as config_lib
from big_vision import sharding
from big_vision import state as state_lib
from big_vision.task import Info
import jax
import numpy as np

SHAPE = (8, 8, 8, 1)
STAGE1 = dict(
    trainer="proj.vqgan.stage1",
    model=dict(width=4, mults=(1, 2), depth=1, attn_factors=(), z_width=4,
               quantizer="vq(num_codes=6, width=3)"),
    optax_name="scale_by_adam", optax=dict(b1=0.5, b2=0.9), lr=1e-2)
GAN = dict(start_steps=2, model=dict(width=4, depth=1),
           optimizer=dict(optax_name="scale_by_adam", lr=1e-2))


def config(**kw):
  """Returns a config of stage 1 with some keys replaced."""
  return config_lib.Config({**STAGE1, **kw})


def batch(step):
  """Returns a batch that is a function of the step."""
  rng = np.random.default_rng(step)
  return {"image": rng.uniform(-1, 1, SHAPE).astype(np.float32),
          "label": rng.integers(0, 3, SHAPE[0]).astype(np.int32)}


def make_info(mesh):
  """Returns the `Info` of a run of 10 steps over these batches."""
  return Info(
      total_steps=10, batch_size=SHAPE[0], data_size=80, mesh=mesh,
      batch_spec=jax.tree.map(
          lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch(0)))


def make_task(make, config):
  """Returns the task of a run on one device."""
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  with sharding.use(mesh, sharding.make_rules(mesh, None)):
    return make(config, make_info(mesh))


class Run:
  """A task, its state and its updates, on some of the simulated devices."""

  def __init__(self, make_task, config, num_devices=1,
               strategy=sharding.DEFAULT_STRATEGY):
    self.mesh = sharding.make_mesh(devices=jax.devices()[:num_devices])
    self.rules = sharding.make_rules(self.mesh, None)
    info = make_info(self.mesh)
    rng = jax.random.key(0)
    with sharding.use(self.mesh, self.rules):
      self.task = make_task(config, info)
      shapes = state_lib.infer_shapes(self.task, info, rng)
      shardings = sharding.infer(shapes, strategy, self.mesh)
      self.shapes = state_lib.with_shardings(shapes, shardings)
      self.state = state_lib.make(self.task, info, rng, self.shapes, shardings)
      self.frozen = state_lib.put_frozen(self.task, strategy, self.mesh)
      self.update = state_lib.make_update(self.task, rng, shardings, self.mesh)

  def steps(self, num_steps):
    """Takes `num_steps` updates; returns (state, measurements) after each."""
    found = []
    for _ in range(num_steps):
      step = int(self.state["step"])
      placed = jax.device_put(
          batch(step), sharding.batch_sharding(self.mesh, self.rules))
      with sharding.use(self.mesh, self.rules):
        self.state, measurements, ok = self.update(
            self.state, self.frozen, placed,
            tuple(sorted(self.task.static(step).items())))
      assert ok
      found.append(jax.device_get((self.state, measurements)))
    return found
