"""The optimizer chain against closed forms and NumPy loops."""

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


def _adam_by_hand(params, grads_of_steps, config, groups):
  """Takes the steps of the chain with Adam in NumPy, in float64.

  Args:
    params: {name: array}.
    grads_of_steps: The gradients of each step, in the same form.
    config: Options of the chain.
    groups: {name: (lr_mult, wd_mult, schedule or None)}.
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
  np.testing.assert_array_equal(current["cls"], params["cls"])  # Bitwise.


def _flat(tree):
  return [("/".join(k.key for k in path), leaf)
          for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


@pytest.mark.parametrize("lr", [1e-3, 10.])
def test_decay_does_not_depend_on_lr(lr):
  """With zero gradients, kernels shrink by wd times the schedule."""
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


def test_frozen_parameters_have_no_state_and_do_not_count_in_the_norm():
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


def test_optimizer_state_has_the_dtype_of_the_config():
  params = _params()
  for name, kw in (("scale_by_adam", {"mu_dtype": "bfloat16"}),
                   ("big_vision.momentum_hp", {}),
                   ("big_vision.scale_by_adafactor", {})):
    state = _make(_config(optax_name=name, optax=kw), params)[0].init(params)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert jnp.dtype("bfloat16") in kinds, name


@pytest.mark.parametrize("clip, factor", [
    (None, 1), (0, 1), (0., 1), (10., 1), (2.5, .5)])
def test_gradients_are_clipped_by_their_norm_and_0_is_off(clip, factor):
  """The norm is 5. Clipping it to 0 would train nothing."""
  params = {"w": np.zeros(2, np.float32)}
  tx, _ = _make(_config(optax_name="big_vision.sgd", lr=1., wd=0,
                        grad_clip_norm=clip), params)
  updates, _ = tx.update({"w": np.float32([3, 4])}, tx.init(params), params)
  np.testing.assert_allclose(
      updates["w"], [-3 * factor, -4 * factor], rtol=1e-6)


@pytest.mark.parametrize("changes, message", [
    (dict(optax_name="adamw"), "they would increase the loss"),
    (dict(optax_name="sgd"), "they would increase the loss"),
    (dict(optax_name="scale_by_adm"), "'scale_by_adam'"),
    (dict(optax={"beta1": .5}), "config.optax.beta1 does not exist"),
    (dict(lr_mults=[("haed/.*", 2.)]), "'haed/.*' is not the first match of"),
    (dict(lr_mults=[(".*", 0.)]), "schedule None"),
    (dict(wd_mults=[("x", 1.)]), "config.wd_mults"),
    (dict(schedule=[("head/.*", {})]), "does not match .*body/kernel")])
def test_wrong_configs_are_named(changes, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    _make(_config(**changes), _params())


def test_parameters_other_than_kernels_do_not_decay():
  params = {"scale": jnp.ones(3)}
  tx, _ = _make(_config(), params)
  updates, _ = tx.update({"scale": jnp.zeros(3)}, tx.init(params), params)
  np.testing.assert_array_equal(updates["scale"], np.zeros(3))
