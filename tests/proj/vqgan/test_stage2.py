"""Stage 2's step alone: pkeep, accumulation, shards, sampling, bfloat16."""

import functools

from big_vision import tree
from big_vision.proj.vqgan import autoencoder
from big_vision.proj.vqgan import stage2
from flax import linen as nn
import jax
import numpy as np
import pytest

from tests.proj.vqgan import runs

NUM_CODES, NUM_CLASSES = 6, 3
CONFIG = dict(
    trainer="proj.vqgan.stage2", stage1="finished",
    model=dict(num_classes=NUM_CLASSES, width=8, depth=2, num_heads=2),
    optax_name="big_vision.sgd", lr=1.0)


@pytest.fixture(scope="module", autouse=True)
def _stage1():
  """Replaces the trained autoencoder by a random one with 4 x 4 codes."""
  model = autoencoder.Model(channels=1, **runs.STAGE1["model"])
  variables = jax.device_get(
      jax.jit(model.init)(jax.random.key(1), runs.batch(0)["image"]))
  jax.config.update("jax_disable_most_optimizations", True)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(stage2.stage1, "load", lambda *unused: (model, variables))
    yield
  jax.config.update("jax_disable_most_optimizations", False)


def _run(*where, **kw):
  return runs.Run(stage2.make_task, runs.config_lib.Config({**CONFIG, **kw}),
                  *where)


class _Parrot(nn.Module):
  """Predicts the codes it sees; each one that was replaced costs 50 nats."""
  num_codes: int
  num_places: int
  num_classes: int = 0

  @nn.compact
  def __call__(self, codes, label=None, *, train=False):
    scale = self.param("scale", nn.initializers.constant(50.0), ())
    return scale * jax.nn.one_hot(codes, self.num_codes)


@pytest.mark.parametrize("pkeep", [1.0, 0.75, 0.0])
def test_pkeep_is_the_share_of_codes_seen_in_training(pkeep, monkeypatch):
  """A random code equals the replaced one with probability 1 / NUM_CODES."""
  monkeypatch.setattr(stage2.gpt, "Model", _Parrot)
  images = runs.batch(0)
  monkeypatch.setattr(runs, "batch", lambda step: images)
  run = _run(model={}, pkeep=pkeep, lr=1e-30)
  losses = [measured["training_loss"] for _, measured in run.steps(20)]
  wrong = (1 - pkeep) * (1 - 1 / NUM_CODES)
  num_codes = 20 * 8 * 16
  error = 4 * 50 * np.sqrt(wrong * (1 - wrong) / num_codes)
  np.testing.assert_allclose(np.mean(losses), 50 * wrong, atol=error + 1e-5)
  if pkeep < 1:
    assert len(np.unique(losses)) > 1  # Every step draws again.
  # Evaluation replaces no codes.
  predicted = run.task.predict_fns["nll"](
      {**jax.device_get(run.state), "frozen": jax.device_get(run.frozen)},
      images)
  np.testing.assert_allclose(predicted["nll"], 0, atol=1e-5)


@pytest.fixture(scope="module")
def whole():
  return _run().steps(2)


@pytest.mark.parametrize("where, changes", [
    ((), dict(grad_accum_steps=2)),
    ((8, ((".*", "fsdp(axis='data', min_size_to_shard_mb=0)"),)), {}),
])
def test_accumulation_and_shards_equal_the_whole_batch(whole, where, changes):
  run = _run(*where, **changes)
  if where:
    axes = {axis for leaf in jax.tree.leaves(run.shapes)
            for axis in leaf.sharding.spec}
    assert "data" in axes
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  for (state, measured), (wanted, wanted_measured) in zip(run.steps(2), whole):
    close(measured["training_loss"], wanted_measured["training_loss"])
    for (name, x), (_, y) in zip(tree.flatten_with_names(state),
                                 tree.flatten_with_names(wanted), strict=True):
      close(x, y, err_msg=name)
  assert whole[0][1]["l2_updates"] > 1e-2


def test_sample_draws_from_its_key_alone():
  run = _run()
  sample = jax.jit(run.task.predict_fns["sample"])
  state = {**jax.device_get(run.state), "frozen": jax.device_get(run.frozen)}
  first, again, other = (
      sample(state, runs.batch(0), rng=jax.random.key(seed))["image"]
      for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert first.shape == runs.SHAPE
  assert np.abs(first - other).max() > 1e-3
  with pytest.raises(ValueError, match="rng=None; pass a jax.random.key"):
    sample(state, runs.batch(0))


def test_images_that_cannot_be_drawn_are_nan():
  """Not images of other classes, nor of code 0."""
  run = _run()
  sample = jax.jit(run.task.predict_fns["sample"])
  state = {**jax.device_get(run.state), "frozen": jax.device_get(run.frozen)}
  label = np.arange(-1, len(runs.batch(0)["image"]) - 1, dtype=np.int32)
  image = sample(state, {**runs.batch(0), "label": label},
                 rng=jax.random.key(0))["image"]
  np.testing.assert_array_equal(
      np.isfinite(image).all(axis=(1, 2, 3)), (0 <= label) & (label < 3))
  assert np.isnan(image[0]).all()


def test_bfloat16_agrees_and_keeps_its_state_in_float32(whole):
  run = _run(model=dict(CONFIG["model"], dtype_mm="bfloat16"))
  for (state, measured), (_, wanted) in zip(run.steps(2), whole):
    np.testing.assert_allclose(
        measured["training_loss"], wanted["training_loss"], rtol=0.02)
    assert measured["training_loss"] != wanted["training_loss"]
    assert {x.dtype for x in jax.tree.leaves(state["params"])} == {
        np.dtype(np.float32)}
