"""Stage 1: gradients, phases, shards and devices, resuming, wrong configs."""

import functools

from big_vision import config as config_lib
from big_vision import task as task_lib
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
  """These steps run a few times only, so fast compilation saves time."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def _assert_same(a, b, assertion=np.testing.assert_array_equal):
  for (name, x), (_, y) in zip(tree.flatten_with_names(a),
                               tree.flatten_with_names(b), strict=True):
    assertion(x, y, err_msg=name)


# With this optimizer and learning rate, old - new is the gradient.
_PLAIN = dict(optax_name="big_vision.sgd", optax={}, lr=1.0)


@pytest.fixture(scope="module")
def plain():
  """States and measurements around 3 updates.

  The discriminator takes part in the last one only.
  """
  gan = dict(runs.GAN, optimizer=_PLAIN, weight=0.5)
  run = runs.Run(stage1.make_task, runs.config(gan=gan, **_PLAIN, lr_mults=[
      # A factor that the oracle must reproduce.
      ("encoder/.*|quant_conv/.*", 0.5), (".*", 1.0)]))
  start = jax.device_get(run.state), None
  return [start, *run.steps(3)]


def test_the_discriminator_takes_no_part_before_its_start(plain):
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


def test_gradients_are_those_of_the_whole_losses(plain):
  """The oracle differentiates each loss separately, for all parameters."""
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


def test_the_discriminator_has_no_statistics(plain):
  assert set(plain[0][0]) == {"params", "opt", "disc", "step"}
  assert set(plain[0][0]["disc"]) == {"params", "opt"}


@pytest.fixture(scope="module")
def whole():
  """A run with every feature on, its state split over 8 devices."""
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


def test_every_predict_function_has_a_twin_for_the_average(whole):
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
  """2 updates of a codebook of running means, on one device."""
  return runs.Run(stage1.make_task, runs.config(model=EMA, **_PLAIN)).steps(2)


_close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def test_codebooks_are_the_same_on_1_and_8_devices(single):
  many = runs.Run(
      stage1.make_task, runs.config(model=EMA, **_PLAIN), 8).steps(2)
  for one, eight in zip(single, many):
    _assert_same(one, eight, _close)
  first, last = (state["codebook"]["quantize"]["usage"] for state, _ in single)
  assert np.abs(first - last).max() > 1e-3


def test_accumulation_over_parts_equals_the_whole_batch(single):
  parts = runs.Run(stage1.make_task, runs.config(
      model=EMA, grad_accum_steps=2, **_PLAIN)).steps(2)
  for one, two in zip(single, parts):
    _assert_same(one, two, _close)


def test_accumulation_with_a_discriminator_over_equal_parts(monkeypatch):
  """Each part has its own adaptive weight; with equal parts they are equal."""
  alone = runs.batch
  monkeypatch.setattr(runs, "batch", lambda step: jax.tree.map(
      lambda x: np.repeat(x[:4], 2, axis=0), alone(step)))
  changes = dict(gan=dict(runs.GAN, start_steps=0, optimizer=_PLAIN), **_PLAIN)
  one, two = (
      runs.Run(stage1.make_task, runs.config(
          grad_accum_steps=steps, **changes)).steps(1)[0] for steps in (1, 2))
  assert one[1]["training_adaptive_weight"] > 0
  _assert_same(one, two, _close)


def test_bfloat16_agrees_and_keeps_its_state_in_float32():
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


@pytest.mark.parametrize("start, first_steps", [
    (0, [0]), (4, [0, 4]), (9, [0, 9]), (10, [0]), (1000, [0])])
def test_phases_agree_with_static_at_every_step(start, first_steps):
  task = runs.make_task(stage1.make_task, runs.config(
      gan=dict(runs.GAN, start_steps=start), ema_decay=0.9))
  phases = task.phases(10)
  assert [phase.first_step for phase in phases] == first_steps
  for step in range(10):
    phase = [phase for phase in phases if phase.first_step <= step][-1]
    assert phase.static == task.static(step) == {
        "adversarial_now": step >= start}


def test_a_run_without_a_discriminator_has_one_phase():
  task = runs.make_task(stage1.make_task, runs.config())
  assert task.phases(10) == (task_lib.Phase(first_step=0, static={}),)
  assert task.static(0) == task.static(9) == {}


def test_gradient_norms_are_of_both_networks(plain):
  (old, _), (new, measured) = plain[2:]
  gradients = [x / (0.5 if name.startswith(("encoder", "quant_conv")) else 1)
               for name, x in tree.flatten_with_names(jax.tree.map(
                   np.subtract, old["params"], new["params"]))]
  gradients += jax.tree.leaves(jax.tree.map(
      np.subtract, old["disc"]["params"], new["disc"]["params"]))
  np.testing.assert_allclose(
      measured["l2_grads"], np.sqrt(sum(np.sum(x ** 2) for x in gradients)),
      rtol=1e-3)
  np.testing.assert_allclose(measured["l2_params"], np.sqrt(sum(
      np.sum(x ** 2) for x in jax.tree.leaves(new["params"]))), rtol=1e-5)


def test_a_discriminator_without_a_finite_gradient_stops_both(monkeypatch):
  """Its loss is finite, and so are all values of the autoencoder."""
  monkeypatch.setitem(
      stage1.adversarial.DISCRIMINATOR_LOSSES, "hinge",
      lambda real, fake: jnp.sqrt(jnp.sum(0 * real) + jnp.sum(0 * fake)))
  gan = dict(runs.GAN, start_steps=0, optimizer=_PLAIN)
  run = runs.Run(stage1.make_task, runs.config(gan=gan, **_PLAIN))
  before = jax.device_get(run.state)
  with pytest.raises(AssertionError):
    run.steps(1)
  _assert_same(jax.device_get(run.state), before)


@pytest.mark.parametrize("changes, message", [
    (dict(gan=dict(runs.GAN, loss="hinges")), "gan.loss is 'hinges'"),
    (dict(model=dict(widht=3)), "config.model.widht does not exist.*'width'"),
    (dict(perceptual=dict(name="vgg")), r"perceptual.name is 'vgg'.*lpips"),
    (dict(perceptual=dict(name="classifier", workdir="none", layers=[])),
     "workdir='none' is not a run's workdir: it has no config.json")])
def test_wrong_configs_are_named(changes, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    runs.Run(stage1.make_task, runs.config(**changes))
