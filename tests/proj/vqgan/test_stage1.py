"""Stage 1; mistakes Q4, Q5, Q6, Q7 and Q9 of systems.md, resuming, devices."""

import functools

from big_vision import config as config_lib
from big_vision import tree
from big_vision.proj.vqgan import autoencoder
from big_vision.proj.vqgan import discriminator
from big_vision.proj.vqgan import stage1
from big_vision.run import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import drawn
from tests.proj.vqgan import runs

EMA = dict(runs.STAGE1["model"], mults=(1,),
           quantizer="ema(num_codes=6, width=3)")


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation():
  """Steps that run a few times: compiling them is what takes time."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def _assert_same(a, b, assertion=np.testing.assert_array_equal):
  for (name, x), (_, y) in zip(tree.flatten_with_names(a),
                               tree.flatten_with_names(b), strict=True):
    assertion(x, y, err_msg=name)


# Gradients at once: with this optimizer and lr, old - new is the gradient.
_PLAIN = dict(optax_name="big_vision.sgd", optax={}, lr=1.0)


@pytest.fixture(scope="module")
def plain():
  """States and measurements of 3 updates; the discriminator's first is last."""
  gan = dict(runs.GAN, optimizer=_PLAIN, weight=0.5)
  run = runs.Run(stage1.make_task, runs.config(gan=gan, **_PLAIN, lr_mults=[
      # Small steps, but for what is compared.
      ("encoder/.*|quant_conv/.*", 0.5), (".*", 1.0)]))
  start = jax.device_get(run.state), None
  return [start, *run.steps(3)]


def test_q5_before_its_start_the_discriminator_is_not_there(plain):
  for (old, _), (new, measured) in zip(plain[:2], plain[1:3]):
    _assert_same(old["disc"], new["disc"])
    assert "training_adaptive_weight" not in measured
    np.testing.assert_allclose(
        measured["training_loss"], measured["training_l1"]
        + measured["training_codebook"] + measured["training_commitment"],
        rtol=1e-6)
  old, new = plain[2][0]["disc"]["params"], plain[3][0]["disc"]["params"]
  assert any(np.any(x != y) for x, y in zip(
      jax.tree.leaves(old), jax.tree.leaves(new)))


def test_q4_q6_gradients_are_those_of_the_whole_losses(plain):
  """The oracle differentiates each loss by itself, with all parameters."""
  (old, _), (new, measured) = plain[2:]
  model = autoencoder.Model(channels=1, **runs.STAGE1["model"])
  disc = discriminator.Model(**runs.GAN["model"])
  image = runs.batch(2)["image"]

  def reconstruct(params):
    return model.apply({"params": params}, image)

  def judge(disc_params, x):
    return disc.apply({"params": disc_params}, x)

  def rec_loss(params):
    return jnp.abs(image - reconstruct(params)[0]).mean()

  def generator_loss(params, disc_params):
    return -judge(disc_params, reconstruct(params)[0]).mean()

  def quantizer_loss(params):
    return sum(reconstruct(params)[1]["losses"].values())

  def disc_loss(disc_params, fake):
    real, fake = judge(disc_params, image), judge(disc_params, fake)
    return (jnp.maximum(1 - real, 0).mean()
            + jnp.maximum(1 + fake, 0).mean()) / 2

  @drawn.jit
  def oracle(params, disc_params):
    rec, gen, quant = (jax.grad(fn)(params, *args) for fn, *args in (
        (rec_loss,), (generator_loss, disc_params), (quantizer_loss,)))
    return rec, gen, quant, jax.grad(disc_loss)(
        disc_params, reconstruct(params)[0])

  rec, gen, quant, to_disc = jax.device_get(
      oracle(old["params"], old["disc"]["params"]))
  weight = 0.5 * (np.linalg.norm(rec["conv_out"]["kernel"])
                  / (np.linalg.norm(gen["conv_out"]["kernel"]) + 1e-4))
  np.testing.assert_allclose(
      measured["training_adaptive_weight"], weight, rtol=1e-3)
  close = functools.partial(
      np.testing.assert_allclose, rtol=2e-3, atol=2e-5)
  wanted = jax.tree.map(lambda r, g, q: r + weight * g + q, rec, gen, quant)
  wanted = tree.map_with_names(
      lambda name, x: x * (0.5 if name.startswith(("encoder", "quant_conv"))
                           else 1), wanted)
  _assert_same(jax.tree.map(
      np.subtract, old["params"], new["params"]), wanted, close)
  _assert_same(jax.tree.map(
      np.subtract, old["disc"]["params"], new["disc"]["params"]), to_disc,
               close)


def test_q7_the_discriminator_has_parameters_only(plain):
  assert set(plain[0][0]) == {"params", "opt", "disc", "step"}
  assert set(plain[0][0]["disc"]) == {"params", "opt"}


@pytest.fixture(scope="module")
def whole():
  """5 updates with all there is, on 8 devices, the state split."""
  return runs.Run(stage1.make_task, _everything(), 8, _FSDP)


_FSDP = ((".*", "fsdp(axis='data', min_size_to_shard_mb=0)"),)


def _everything():
  return runs.config(model=dict(EMA, dropout=0.1), ema_decay=0.9,
                     gan=dict(runs.GAN, start_steps=0))


def test_continued_is_bit_identical_on_8_devices(whole, tmp_path):
  assert {axis for leaf in jax.tree.leaves(whole.shapes)
          for axis in leaf.sharding.spec if axis} == {"data"}
  whole.steps(3)
  with checkpoints.Checkpoints(str(tmp_path)) as saver:
    saver.save(3, whole.state, {})
  wanted = whole.steps(2)
  assert {name for name in wanted[0][0]} == {
      "params", "opt", "disc", "codebook", "ema", "step"}
  with checkpoints.Checkpoints(str(tmp_path)) as saver:
    _, whole.state, _ = saver.restore(whole.shapes)
  _assert_same(whole.steps(2), wanted)


def test_evaluation_sees_the_average_and_its_twin(whole):
  task, state = whole.task, jax.device_get(whole.state)
  assert set(task.predict_fns) == {
      f"{name}{twin}" for name in ("reconstruct", "loss", "judge")
      for twin in ("", "_ema")}
  image = runs.batch(0)
  frozen = {**state, "frozen": {}}
  spec = jax.eval_shape(task.predict_fns["reconstruct_ema"], frozen, image)
  assert spec["image"].shape == runs.SHAPE
  assert spec["codes"].shape == (8, 8, 8)


@pytest.fixture(scope="module")
def single():
  """2 updates of a learning codebook, whole and on one device."""
  return runs.Run(stage1.make_task, runs.config(model=EMA, **_PLAIN)).steps(2)


_close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def test_q9_codebooks_are_the_same_on_1_and_8_devices(single):
  many = runs.Run(
      stage1.make_task, runs.config(model=EMA, **_PLAIN), 8).steps(2)
  for one, eight in zip(single, many):
    _assert_same(one, eight, _close)
  first, last = (state["codebook"]["quantize"]["usage"] for state, _ in single)
  assert np.abs(first - last).max() > 1e-3


def test_accumulated_parts_are_the_whole_batch(single):
  parts = runs.Run(stage1.make_task, runs.config(
      model=EMA, grad_accum_steps=2, **_PLAIN)).steps(2)
  for one, two in zip(single, parts):
    _assert_same(one, two, _close)


def test_equal_parts_against_the_discriminator_are_the_whole(monkeypatch):
  """Every part has its own adaptive weight: here they are the same."""
  alone = runs.batch
  monkeypatch.setattr(runs, "batch", lambda step: jax.tree.map(
      lambda x: np.repeat(x[:4], 2, axis=0), alone(step)))
  changes = dict(gan=dict(runs.GAN, start_steps=0, optimizer=_PLAIN), **_PLAIN)
  one, two = (
      runs.Run(stage1.make_task, runs.config(
          grad_accum_steps=steps, **changes)).steps(1)[0] for steps in (1, 2))
  assert one[1]["training_adaptive_weight"] > 0
  _assert_same(one, two, _close)


def test_bfloat16_is_near_and_keeps_its_state_in_float32():
  changes = dict(lr=1e-3)
  gan = dict(runs.GAN, start_steps=0)
  half = dict(dtype_mm="bfloat16")
  wanted = runs.Run(
      stage1.make_task, runs.config(gan=gan, **changes)).steps(2)
  found = runs.Run(stage1.make_task, runs.config(
      model=dict(runs.STAGE1["model"], **half),
      gan=dict(gan, model=dict(gan["model"], **half)), **changes)).steps(2)
  for (state, measured), (_, in_full) in zip(found, wanted):
    for name in ("training_l1", "training_loss"):
      assert measured[name] != in_full[name]
      np.testing.assert_allclose(measured[name], in_full[name], rtol=0.05)
    assert {x.dtype for x in jax.tree.leaves(
        [state["params"], state["disc"]["params"]])} == {np.dtype(np.float32)}


@pytest.mark.parametrize("changes, message", [
    (dict(gan=dict(runs.GAN, loss="hinges")), "gan.loss is 'hinges'"),
    (dict(model=dict(widht=3)), "config.model.widht does not exist.*'width'"),
    (dict(perceptual=dict(name="vgg")), r"perceptual.name is 'vgg'.*lpips"),
    (dict(perceptual=dict(name="classifier", workdir="none", layers=[])),
     "workdir='none' is not a run's workdir: it has no config.json")])
def test_wrong_configs_are_errors_that_help(changes, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    runs.Run(stage1.make_task, runs.config(**changes))
