"""Classification of texts and of their tokens, against loops."""

import math

from big_vision import config as config_lib
from big_vision import sharding
from big_vision.task import Info
from big_vision.trainers import classification
import jax
import jax.numpy as jnp
import numpy as np
import pytest

B, N, V = 4, 3, 5
LENGTHS = [3, 1, 2, 3]


def _batch(labels):
  rng = np.random.default_rng(0)
  return {"tokens": rng.integers(0, V, (B, N), np.int32), "labels": labels,
          "mask": (np.arange(N) < np.array(LENGTHS)[:, None]).astype(
              np.float32)}


def _task(batch, pool_type, **kw):
  config = config_lib.Config({**dict(
      model_name="text_transformer", num_classes=V, loss="softmax_xent",
      model=dict(vocab_size=V, width=4, depth=1, num_heads=1, mlp_dim=4,
                 pool_type=pool_type, head_zeroinit=False),
      model_inputs=("tokens", "mask"), optax_name="identity", lr=0.1), **kw})
  spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  info = Info(total_steps=10, batch_size=B, data_size=80, batch_spec=spec,
              mesh=mesh)
  return classification.make_task(config, info)


def _state(task, batch):
  state = jax.jit(lambda rng: task.init(rng, batch, {}))(jax.random.key(0))
  return {**state, "step": jnp.zeros((), jnp.int32)}


def _xent(logits, label):
  logits = np.asarray(logits, np.float64)
  return math.log(np.exp(logits).sum()) - logits[label]


def test_losses_of_tokens_are_averaged_over_each_example():
  """Examples of different lengths have the same weight."""
  labels = np.random.default_rng(1).integers(0, V, (B, N), np.int32)
  batch = _batch(labels)
  task = _task(batch, "none")
  state = _state(task, batch)
  logits, _ = jax.jit(task.predict_fns["predict"])(state, batch)
  assert logits.shape == (B, N, V)
  wanted = [np.mean([_xent(logits[b, n], labels[b, n]) for n in range(length)])
            for b, length in enumerate(LENGTHS)]
  right = [np.mean([np.argmax(logits[b, n]) == labels[b, n]
                    for n in range(length)])
           for b, length in enumerate(LENGTHS)]
  found = jax.jit(task.predict_fns["loss"])(state, batch)["loss"]
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  _, measured = jax.jit(task.update)(state, batch, jax.random.key(1))
  assert float(measured["training_loss"]) == pytest.approx(
      np.mean(wanted), rel=1e-5)
  assert float(measured["training_prec@1"]) == pytest.approx(np.mean(right))


@pytest.mark.parametrize("kw", [{}, dict(
    model_name="universal_transformer", aux_losses=dict(ponder_cost=0.3),
    model=dict(vocab_size=V, width=4, max_steps=3, num_heads=1, mlp_dim=4,
               pool_type="none", head_zeroinit=False))])
def test_accumulated_gradients_are_those_of_the_whole_batch(kw):
  """Also where the parts have different numbers of tokens."""
  batch = _batch(np.random.default_rng(1).integers(0, V, (B, N), np.int32))
  tasks = [_task(batch, "none", grad_accum_steps=steps, **kw)
           for steps in (1, 2)]
  state = _state(tasks[0], batch)
  if kw:  # Make tokens halt at different steps.
    state["params"]["Transformer"]["block"]["halting"]["kernel"] += (
        jnp.array([[3.], [-3.], [2.], [-1.]]))
  (whole, of_whole), (parts, of_parts) = (
      jax.jit(task.update)(state, batch, jax.random.key(1)) for task in tasks)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
               whole["params"], parts["params"])
  for name in set(of_whole) - {"training_executed_steps"}:
    np.testing.assert_allclose(of_whole[name], of_parts[name], rtol=1e-5)


def test_integer_labels_equal_one_hot_labels():
  labels = np.array([0, 4, 2, 2], np.int32)
  losses = []
  for form in (labels, np.eye(V, dtype=np.float32)[labels]):
    batch = _batch(form)
    task = _task(batch, "gap")
    losses.append(jax.jit(task.predict_fns["loss"])(
        _state(task, batch), batch)["loss"])
  np.testing.assert_array_equal(*losses)


def test_a_class_that_does_not_exist_makes_the_loss_nan():
  """NaN stops the run. Negative classes are rows of zeros, without a loss."""
  dense = np.array(classification.dense_labels(jnp.arange(-1, V + 1), (7, V)))
  np.testing.assert_array_equal(dense[:-1], np.eye(V + 1, V, k=-1))
  assert np.isnan(dense[-1]).all()


@pytest.mark.parametrize("labels, kw, message", [
    (np.zeros((B, N), np.float32), {}, r"must be \[4, 5\], or integers \[4\]"),
    (np.zeros(B, np.int32), dict(model_inputs=("text",)),
     r"model_inputs has \['text'\], which the batch lacks"),
])
def test_labels_and_inputs_that_do_not_fit_are_errors(labels, kw, message):
  batch = _batch(labels)
  with pytest.raises(config_lib.ConfigError, match=message):
    task = _task(batch, "gap", **kw)
    jax.eval_shape(task.predict_fns["loss"], jax.eval_shape(
        lambda: _state(task, batch)), batch)


def test_classifying_tokens_needs_a_mask():
  batch = _batch(np.zeros((B, N), np.int32))
  del batch["mask"]
  task = _task(batch, "none", model_inputs=("tokens",))
  with pytest.raises(config_lib.ConfigError, match='"mask" .*, .4, 3.. It has'):
    jax.eval_shape(task.predict_fns["loss"], jax.eval_shape(
        lambda: _state(task, batch)), batch)
