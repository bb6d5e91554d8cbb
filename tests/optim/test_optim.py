"""The optimizer chain and schedules against closed forms and NumPy loops."""

from big_vision import config as config_lib
from big_vision import optim
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

SIZES = dict(total_steps=100, batch_size=10, data_size=50)


def _params():
  generator = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)
  return {"body": {"kernel": draw(3, 4), "bias": draw(4)},
          "head": {"kernel": draw(4, 2), "bias": draw(2)}, "cls": draw(1, 4)}


def _config(**changes):
  return {"optax_name": "scale_by_adam", "lr": 0.1, "wd": 0.01, **changes}


def _make(config, params):
  return optim.make(config_lib.Config(config), params, **SIZES)


# -- schedules ---------------------------------------------------------------

STEPS = [0, 5, 10, 30, 60, 90, 99, 100]


@pytest.mark.parametrize("kw, expected", [
    (dict(decay_type="cosine"), [0, .5, 1, .883, .4132, .0302, .0003, 0]),
    (dict(decay_type="linear", linear_end=1e-5),
     [0, .5, 1, .7778, .4444, .1111, .0111, 1e-5]),
    (dict(decay_type="polynomial", power=2),
     [0, .5, 1, .6049, .1975, .0123, .0001, 0]),
    (dict(decay_type="rsqrt", timescale=10, cooldown_steps=20),
     [0, .5, 1, .5774, .4082, .1667, .0159, 0]),
    (dict(decay_type="cosine", end=.5), [0, .5, 1, .9415, .7066, .5151, .5002,
                                         .5]),
    (dict(decay_type="stair", steps=[30, 90], mults=[.5, .1]),
     [0, .5, 1, .5, .5, .1, .1, .1]),
    # .1 ** ((t - 10) / 45), and the default: a tenth at the end.
    (dict(decay_type="exponential", timescale_examples=450),
     [0, .5, 1, .3594, .0774, .0167, .0105, .01]),
    (dict(decay_type="exponential", rate=.25, timescale_steps=90),
     [0, .5, 1, .7349, .4629, .2916, .2539, .25]),
    (dict(), [0, .5, 1, 1, 1, 1, 1, 1])])
@pytest.mark.parametrize("warmup", [
    dict(warmup_steps=10), dict(warmup_percent=.1), dict(warmup_epochs=2),
    dict(warmup_examples=100)])
def test_schedules_at_eight_points(kw, expected, warmup):
  fn = optim.create_schedule(**SIZES, **kw, **warmup)
  np.testing.assert_allclose(
      [float(fn(t)) for t in STEPS], expected, atol=5.1e-5)


def test_schedule_scaling_and_units():
  fn = optim.create_schedule(**SIZES, mult=2., scale_with_batchsize=True)
  np.testing.assert_allclose(fn(3), 2 * 10 / 256)
  fn = optim.create_schedule(
      **SIZES, decay_type="rsqrt", timescale_epochs=2, shift_examples=20)
  np.testing.assert_allclose(fn(8), 1 / np.sqrt(1 + (8 + 2) / 10), rtol=1e-6)


@pytest.mark.parametrize("kw, message", [
    (dict(decay_type="cosin"), "'cosin'.*'cosine'"),
    (dict(decay_type="cosine", power=2), "power does not exist"),
    (dict(decay_type="stair", steps=[3], mults=[]), "as many mults"),
    (dict(warmup_steps=5, warmup_epochs=1), "keep one of"),
    (dict(warmup_steps=100), "nothing is left"),
    (dict(wramup_steps=5), "wramup_steps")])
def test_schedule_errors(kw, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    optim.create_schedule(**SIZES, **kw)


# -- the chain ---------------------------------------------------------------


def _adam_by_hand(params, grads_of_steps, config, groups):
  """Three steps in NumPy, float64.

  Args:
    groups: {name: (lr_mult, wd_mult, sched)}.
  """
  values = {k: np.asarray(v, np.float64) for k, v in params.items()}
  mu = {k: 0. * v for k, v in values.items()}
  nu = {k: 0. * v for k, v in values.items()}
  trained = [k for k in values if groups[k][2] is not None]
  for t, grads in enumerate(grads_of_steps):
    norm = np.sqrt(sum((grads[k] ** 2).sum() for k in trained))
    clip = min(1., config["grad_clip_norm"] / norm)
    for k in trained:
      g = grads[k] * clip
      mu[k] = .9 * mu[k] + .1 * g
      nu[k] = .999 * nu[k] + .001 * g ** 2
      direction = (mu[k] / (1 - .9 ** (t + 1))) / (
          np.sqrt(nu[k] / (1 - .999 ** (t + 1))) + 1e-8)
      lr_mult, wd_mult, schedule = groups[k]
      values[k] = values[k] - schedule(t) * (
          config["lr"] * lr_mult * direction
          + config["wd"] * wd_mult * values[k])
  return values


def test_three_steps_of_the_whole_chain_by_hand():
  config = _config(
      grad_clip_norm=0.5, lr_mults=[("head/.*", 3.), (".*", 1.)],
      wd_mults=[("head/kernel", 10.), (".*/kernel", 1.)],
      schedule=[("cls", None), ("head/.*", dict(decay_type="linear")),
                (".*", dict(decay_type="cosine", warmup_steps=2))])
  linear = lambda t: 1 - t / 100
  cosine = lambda t: min(1, t / 2) * .5 * (
      1 + np.cos(np.pi * max(0, t - 2) / 98))
  groups = {"body/kernel": (1, 1, cosine), "body/bias": (1, 0, cosine),
            "head/kernel": (3, 10, linear), "head/bias": (3, 0, linear),
            "cls": (1, 0, None)}
  params = _params()
  tx, sched_fns = _make(config, params)
  assert set(sched_fns) == {"global_schedule1", "global_schedule2"}
  state = tx.init(params)
  update = jax.jit(tx.update)
  generator = np.random.default_rng(1)
  history, current = [], params
  for _ in range(3):
    grads = jax.tree.map(
        lambda p: jnp.asarray(generator.normal(size=p.shape), jnp.float32),
        params)
    history.append({k: np.asarray(v, np.float64) for k, v in _flat(grads)})
    updates, state = update(grads, state, current)
    current = optax.apply_updates(current, updates)
  expected = _adam_by_hand(dict(_flat(params)), history, config, groups)
  for name, value in _flat(current):
    np.testing.assert_allclose(value, expected[name], rtol=2e-5, atol=1e-5,
                               err_msg=name)
  np.testing.assert_array_equal(current["cls"], params["cls"])  # T2, bitwise.


def _flat(tree):
  return [("/".join(k.key for k in path), leaf)
          for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


@pytest.mark.parametrize("lr", [1e-3, 10.])
def test_decay_does_not_depend_on_lr(lr):
  """T1: with zero gradients, kernels shrink by wd times the schedule."""
  params = _params()
  tx, _ = _make(_config(lr=lr, schedule=dict(mult=0.5)), params)
  grads = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(
      updates["body"]["kernel"], -.01 * .5 * params["body"]["kernel"],
      rtol=1e-6)
  for leaf in (updates["body"]["bias"], updates["cls"]):
    np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_equals_adamw_with_decay_over_lr():
  params = _params()
  tx, _ = _make(_config(wd_mults=[(".*", 1.)]), params)
  reference = optax.adamw(0.1, weight_decay=0.01 / 0.1)
  ours, theirs = params, params
  state, other = tx.init(params), reference.init(params)
  for seed in range(3):
    grads = jax.tree.map(
        lambda p, s=seed: jax.random.normal(jax.random.key(s), p.shape), params)
    updates, state = tx.update(grads, state, ours)
    ours = optax.apply_updates(ours, updates)
    updates, other = reference.update(grads, other, theirs)
    theirs = optax.apply_updates(theirs, updates)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
               ours, theirs)


def test_frozen_parameters_have_no_state_and_no_part_in_the_norm():
  params = _params()
  config = _config(optax_name="big_vision.sgd", wd=1., grad_clip_norm=1., lr=1.,
                   schedule=[("head/.*", None), (".*", {})])
  tx, _ = _make(config, params)
  grads = jax.tree.map(jnp.zeros_like, params)
  grads["head"]["kernel"] += 1e6
  grads["body"]["bias"] += 0.1
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(updates["body"]["bias"], -0.1, rtol=1e-6)
  np.testing.assert_array_equal(updates["head"]["kernel"], 0.)
  state = _make(
      {**config, "optax_name": "scale_by_adam"}, params)[0].init(params)
  shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
  assert (4, 2) not in shapes and shapes.count((3, 4)) == 2
  mask = optim.trainable_mask(config_lib.Config(config), params)
  assert mask["body"]["bias"] and not mask["head"]["bias"]


def test_half_precision_state():
  """T10's other half: the dtype is what the config says."""
  params = _params()
  for name, kw in (("scale_by_adam", {"mu_dtype": "bfloat16"}),
                   ("big_vision.momentum_hp", {}),
                   ("big_vision.scale_by_adafactor", {})):
    state = _make(_config(optax_name=name, optax=kw), params)[0].init(params)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert jnp.dtype("bfloat16") in kinds, name


def test_adafactor_by_hand():
  params = {"kernel": jnp.asarray(
      np.random.default_rng(0).normal(size=(40, 33)), jnp.float32)}
  tx = optim.scale_by_adafactor(dtype_momentum="float32")
  state = tx.init(params)
  row, column, momentum = 0., 0., 0.
  for t in range(3):
    g = np.random.default_rng(t + 5).normal(size=(40, 33))
    updates, state = tx.update(
        {"kernel": jnp.asarray(g, jnp.float32)}, state, params)
    beta = min(0.999, 1 - (t + 1) ** -0.8)
    square = g ** 2 + 1e-30
    row = beta * row + (1 - beta) * square.mean(1)
    column = beta * column + (1 - beta) * square.mean(0)
    second = np.outer(row, column) / row.mean()
    momentum = 0.9 * momentum + 0.1 * g / np.sqrt(second)
    np.testing.assert_allclose(updates["kernel"], momentum, rtol=1e-4)


def test_momentum_by_hand():
  params = {"w": jnp.zeros(3)}
  tx = optim.momentum_hp(momentum=0.5, dtype="float32")
  state, trace = tx.init(params), 0.
  for t in range(3):
    updates, state = tx.update({"w": jnp.full(3, 1. + t)}, state, params)
    trace = 0.5 * trace + 1. + t
    np.testing.assert_allclose(updates["w"], trace)


@pytest.mark.parametrize("changes, message", [
    (dict(optax_name="adamw"), "it would climb"),
    (dict(optax_name="sgd"), "it would climb"),
    (dict(optax_name="scale_by_adm"), "'scale_by_adam'"),
    (dict(optax={"beta1": .5}), "config.optax.beta1 does not exist"),
    (dict(lr_mults=[("haed/.*", 2.)]), "'haed/.*' is the first match of no"),
    (dict(lr_mults=[(".*", 0.)]), "schedule None"),
    (dict(wd_mults=[("x", 1.)]), "config.wd_mults"),
    (dict(schedule=[("head/.*", {})]), "covers no .*body/kernel")])
def test_errors(changes, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    _make(_config(**changes), _params())


def test_no_decay_where_there_is_no_kernel():
  params = {"scale": jnp.ones(3)}
  tx, _ = _make(_config(), params)
  updates, _ = tx.update({"scale": jnp.zeros(3)}, tx.init(params), params)
  np.testing.assert_array_equal(updates["scale"], np.zeros(3))
