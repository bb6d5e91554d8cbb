"""The shared gradient step against steps written out in NumPy."""

from big_vision import config as config_lib
from big_vision import sharding
from big_vision.task import Info, Task
from big_vision.trainers import learner as learner_lib
import jax
import jax.numpy as jnp
import numpy as np
import pytest

PARAMS = {"body": {"kernel": np.float32([[1., 2.], [3., 4.]])},
          "head": {"bias": np.float32([5., 6.])}}
PLAIN = dict(optax_name="big_vision.sgd", lr=0.5)


def _make(**config):
  info = Info(total_steps=10, batch_size=4, data_size=40, batch_spec={},
              mesh=sharding.make_mesh(devices=jax.devices()[:1]))
  config = config_lib.Config({**PLAIN, **config})
  learner = learner_lib.make(config, PARAMS, info)
  config.check_all_read()
  return learner


def _loss(params, batch, rng):
  """A loss whose gradient is the mean of x for the body, 2 for the head."""
  del rng
  mean = batch["x"].mean()
  total = (params["body"]["kernel"] * mean).sum() + (
      2 * params["head"]["bias"]).sum()
  return total, ({"training_mean": mean}, {"batch_stats": {"mean": mean}})


_VALUE_AND_GRAD = jax.value_and_grad(_loss, has_aux=True)
_BATCH = {"x": jnp.asarray([0., 1., 2., 5.])}


def _step(learner):
  return learner.step(_VALUE_AND_GRAD, PARAMS, learner.init(PARAMS), _BATCH,
                      jax.random.key(0))


@pytest.mark.parametrize("grad_accum_steps", [1, 2])
def test_a_step_by_hand(grad_accum_steps):
  changed, measured = _step(_make(grad_accum_steps=grad_accum_steps))
  assert set(changed) == {"params", "opt", "batch_stats"}
  np.testing.assert_allclose(
      changed["params"]["body"]["kernel"], PARAMS["body"]["kernel"] - 0.5 * 2.)
  np.testing.assert_allclose(changed["params"]["head"]["bias"], [4., 5.])
  np.testing.assert_allclose(changed["batch_stats"]["mean"], 2.)
  # All 6 gradients are 2; parameters after the step are 0, 1, 2, 3, 4, 5.
  wanted = dict(training_loss=20 + 22, training_mean=2, l2_grads=np.sqrt(24),
                l2_params=np.sqrt(55), l2_updates=np.sqrt(6))
  assert set(measured) == set(wanted)
  for name, value in wanted.items():
    np.testing.assert_allclose(measured[name], value, rtol=1e-6, err_msg=name)


def test_frozen_parameters_stay_and_do_not_count_in_the_norm():
  learner = _make(schedule=[("head/.*", None), (".*", {})])
  changed, measured = _step(learner)
  np.testing.assert_array_equal(
      changed["params"]["head"]["bias"], PARAMS["head"]["bias"])
  np.testing.assert_allclose(measured["l2_grads"], np.sqrt(4 * 4))
  # Gradients that nobody uses do not stop a run, even if they are not finite.
  grads = jax.tree.map(jnp.ones_like, PARAMS)
  grads["head"]["bias"] *= jnp.nan
  changed, measured = learner.optimizer.apply(
      grads, PARAMS, learner.init(PARAMS))
  for leaf in jax.tree.leaves((changed, measured)):
    assert np.isfinite(leaf).all()
  np.testing.assert_allclose(measured["l2_grads"], 2.)


def test_the_optimizer_keeps_its_state_between_steps():
  optimizer = _make(optax_name="big_vision.momentum_hp",
                    optax=dict(momentum=0.5, dtype="float32")).optimizer
  params, opt = PARAMS, optimizer.init(PARAMS)
  for trace in (1., 1.5, 1.75):
    changed, _ = optimizer.apply(jax.tree.map(jnp.ones_like, params), params,
                                 opt)
    np.testing.assert_allclose(
        changed["params"]["head"]["bias"],
        np.subtract(params["head"]["bias"], 0.5 * trace))
    params, opt = changed["params"], changed["opt"]


def _task(**kw):
  return Task(init=lambda rng, batch, given: {"params": PARAMS},
              update=lambda state, batch, rng: _step(_make()),
              predict_fns={"predict": lambda state, batch, rng=None: state},
              **kw)


def test_finish_adds_schedules_and_the_average_if_there_is_a_decay():
  task = _task(sched_fns={"disc/global_schedule": lambda step: 7})
  finished = _make(schedule=dict(decay_type="linear")).finish(task)
  assert float(finished.sched_fns["global_schedule"](5)) == 0.5
  assert finished.sched_fns["disc/global_schedule"](5) == 7
  assert set(finished.predict_fns) == {"predict"}
  averaged = _make(ema_decay=0.75).finish(task)
  assert set(averaged.predict_fns) == {"predict", "predict_ema"}
  state = averaged.init(None, None, {})
  changed, _ = averaged.update(state, _BATCH, None)
  np.testing.assert_allclose(
      changed["ema"]["head"]["bias"], 0.75 * np.array([5., 6.])
      + 0.25 * np.array([4., 5.]))


def test_accumulation_is_refused_for_losses_that_compare_examples():
  info = Info(total_steps=10, batch_size=4, data_size=40, batch_spec={},
              mesh=None)
  with pytest.raises(config_lib.ConfigError, match="grad_accum_steps is 2"):
    learner_lib.make(config_lib.Config(dict(PLAIN, grad_accum_steps=2)),
                     PARAMS, info, mean_over="batch")


def test_an_optimizer_alone_reads_no_keys_of_the_learner():
  config = config_lib.Config(dict(PLAIN, ema_decay=0.9, grad_accum_steps=2))
  info = Info(total_steps=10, batch_size=4, data_size=40, batch_spec={},
              mesh=None)
  learner_lib.make_optimizer(config, PARAMS, info)
  with pytest.raises(config_lib.ConfigError, match="ema_decay"):
    config.check_all_read()
