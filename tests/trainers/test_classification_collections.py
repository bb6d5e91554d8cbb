"""Collections other than parameters: random features and batch statistics."""

import sys
import types

from big_vision import config as config_lib
from big_vision import sharding
from big_vision import state as state_lib
from big_vision import tree
from big_vision.run import checkpoints
from big_vision.task import Info
from big_vision.trainers import classification
import flax.linen as nn
import jax
import numpy as np
import pytest

SHAPE = (8, 8, 8, 1)


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation():
  """These steps run a few times only, so fast compilation saves time."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def _config(**kw):
  model = dict(dict(
      patch_size=4, width=8, depth=2, num_heads=2, mlp_dim=8,
      attention="favor(num_features=6)"), **kw.pop("model", {}))
  return config_lib.Config(dict(dict(
      model_name="vit", num_classes=3, loss="softmax_xent", model=model,
      optax_name="scale_by_adam", lr=1e-2, wd=1e-3), **kw))


def _batch(step):
  rng = np.random.default_rng(step)
  return {"image": rng.normal(size=SHAPE).astype(np.float32),
          "labels": np.eye(3, dtype=np.float32)[rng.integers(0, 3, 8)]}


class Run:
  """A task, its state and its updates, as the training loop has them."""

  def __init__(self, config, seed=0, num_devices=1):
    self.mesh = sharding.make_mesh(devices=jax.devices()[:num_devices])
    self.rules = sharding.make_rules(self.mesh, None)
    spec = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _batch(0))
    info = Info(total_steps=10, batch_size=8, data_size=80, batch_spec=spec,
                mesh=self.mesh)
    self.rng = jax.random.key(seed)
    with sharding.use(self.mesh, self.rules):
      self.task = classification.make_task(config, info)
      shapes = state_lib.infer_shapes(self.task, info, self.rng)
      shardings = sharding.infer(
          shapes, sharding.DEFAULT_STRATEGY, self.mesh)
      self.shapes = state_lib.with_shardings(shapes, shardings)
      self.state = state_lib.make(
          self.task, info, self.rng, self.shapes, shardings)
      self.update = state_lib.make_update(
          self.task, self.rng, shardings, self.mesh)

  def steps(self, num_steps):
    """Takes `num_steps` further steps; returns the state after each."""
    states = []
    for _ in range(num_steps):
      batch = _batch(int(self.state["step"]))
      batch = jax.device_put(
          batch, sharding.batch_sharding(self.mesh, self.rules))
      with sharding.use(self.mesh, self.rules):
        self.state, _, ok = self.update(self.state, {}, batch, ())
      assert ok
      states.append(jax.device_get(self.state))
    return states


def _differ(a, b):
  """Names of the leaves that are not the same, bit by bit."""
  return {name for (name, x), (_, y) in zip(
      tree.flatten_with_names(a), tree.flatten_with_names(b), strict=True)
          if not np.array_equal(x, y)}


_NAMES = {f"Transformer/encoderblock_{i}/MultiHeadDotProductAttention_0/favor"
          for i in range(2)}


def test_features_are_drawn_at_their_steps_and_only_then():
  run = Run(_config(redraw_steps=2))
  states = [jax.device_get(run.state), *run.steps(5)]
  assert set(states[0]) == {"params", "opt", "features", "step"}
  assert not any("favor" in name for name, _ in tree.flatten_with_names(
      [states[0]["params"], states[0]["opt"]]))
  # The third and the fifth update start with new features.
  for step, changed in enumerate((set(), set(), _NAMES, set(), _NAMES)):
    assert _differ(states[step]["features"],
                   states[step + 1]["features"]) == changed, step
    assert _differ(states[step]["params"], states[step + 1]["params"])
  first, second = jax.tree.leaves(states[3]["features"])
  assert np.abs(first - second).max() > 0.1


def test_features_stay_without_redraws():
  run = Run(_config())
  before = jax.device_get(run.state)
  assert not _differ(before["features"], run.steps(3)[-1]["features"])


def test_draws_depend_on_seed_step_and_layer_only():
  """Data, parameters, accumulation and devices make no difference."""
  plain = Run(_config(redraw_steps=2)).steps(3)
  other = Run(_config(redraw_steps=2, lr=0.5, grad_accum_steps=2),
              num_devices=2).steps(3)
  for step in range(3):
    assert _differ(plain[step]["params"], other[step]["params"])
    assert not _differ(plain[step]["features"], other[step]["features"])
  of_another_seed = Run(_config(redraw_steps=2), seed=1).state["features"]
  assert _differ(plain[0]["features"], of_another_seed) == _NAMES


def test_every_scanned_layer_has_its_own_features():
  run = Run(_config(redraw_steps=1, model=dict(
      scan=True, remat_policy="nothing_saveable")))
  (first,), (second,) = (jax.tree.leaves(s["features"]) for s in run.steps(2))
  assert first.shape == (2, 6, 4)
  for a, b in ((first[0], first[1]), (second[0], second[1]),
               (first[0], second[0])):
    assert np.abs(a - b).max() > 0.1


def test_a_resumed_run_has_the_same_features_and_ends_the_same(tmp_path):
  config = _config(redraw_steps=2, model=dict(dropout=0.1))
  whole = Run(config)
  wanted = whole.steps(5)
  first = Run(config)
  first.steps(3)
  with checkpoints.Checkpoints(str(tmp_path)) as saver:
    saver.save(3, first.state, {})
  second = Run(config)
  with checkpoints.Checkpoints(str(tmp_path)) as saver:
    _, second.state, _ = saver.restore(second.shapes)
  assert not _differ(jax.device_get(second.state), wanted[2])
  assert not _differ(second.steps(2)[-1], wanted[-1])


def test_evaluation_reads_the_features_of_the_state():
  run = Run(_config(redraw_steps=1, ema_decay=0.9,
                    model=dict(head_zeroinit=False)))
  state, = run.steps(1)
  for name in ("predict", "predict_ema"):
    predict = jax.jit(run.task.predict_fns[name])
    logits, _ = predict(state, _batch(0))
    # Evaluation draws nothing: another step gives the same bits.
    np.testing.assert_array_equal(
        logits, predict({**state, "step": np.int32(7)}, _batch(0))[0])
    others = jax.tree.map(lambda w: -2 * w, state["features"])
    other, _ = predict({**state, "features": others}, _batch(0))
    assert np.abs(logits - other).max() > 1e-4


def test_redraws_of_a_model_without_features_are_an_error():
  with pytest.raises(config_lib.ConfigError,
                     match="redraw_steps is 4, but 'vit'.*'favor' has"):
    Run(_config(redraw_steps=4, model=dict(attention="dense")))


# -- collections that a forward pass changes ----------------------------------


class _Normalized(nn.Module):
  """Classifies the mean of an image, normalized over the batch."""
  num_classes: int

  @nn.compact
  def __call__(self, image, *, train=False):
    x = nn.BatchNorm(use_running_average=not train, momentum=0.75,
                     name="norm")(image.mean(axis=(1, 2)))
    return nn.Dense(self.num_classes, name="head")(x), {}


@pytest.fixture
def _with_normalized(monkeypatch):
  module = types.ModuleType("big_vision.models.normalized")
  module.Model = _Normalized
  monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize("grad_accum_steps", [1, 2])
@pytest.mark.usefixtures("_with_normalized")
def test_batch_statistics_are_an_entry_of_the_state(grad_accum_steps):
  config = config_lib.Config(dict(
      model_name="normalized", num_classes=3, loss="softmax_xent",
      optax_name="scale_by_adam", lr=1e-2,
      grad_accum_steps=grad_accum_steps))
  run = Run(config)
  assert set(run.state) == {"params", "opt", "batch_stats", "step"}
  mean, var = 0.0, 1.0
  for step, state in enumerate(run.steps(3)):
    x = _batch(step)["image"].mean(axis=(1, 2, 3)).astype(np.float64)
    # Each part has every other example; the parts' statistics are averaged.
    parts = [x[i::grad_accum_steps] for i in range(grad_accum_steps)]
    mean = 0.75 * mean + 0.25 * np.mean([part.mean() for part in parts])
    var = 0.75 * var + 0.25 * np.mean([part.var() for part in parts])
    stats = state["batch_stats"]["norm"]
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-4)
  # Evaluation uses the statistics and does not change them.
  logits, _ = run.task.predict_fns["predict"](state, _batch(0))
  x = _batch(0)["image"].mean(axis=(1, 2))
  scale, bias, head = (
      state["params"]["norm"]["scale"], state["params"]["norm"]["bias"],
      state["params"]["head"])
  normal = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
  np.testing.assert_allclose(
      logits, normal @ head["kernel"] + head["bias"], rtol=1e-3, atol=1e-4)
