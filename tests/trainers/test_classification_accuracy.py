"""The logged accuracy on training batches is an accuracy for all labels."""

from big_vision import config as config_lib
from big_vision import losses
from big_vision import sharding
from big_vision.task import Info
from big_vision.trainers import classification
import jax
import jax.numpy as jnp
import numpy as np
import pytest

B, K = 64, 5
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(B, K)).astype(np.float32)
CLASSES = RNG.integers(0, K, B)
ONE_HOT = np.eye(K, dtype=np.float32)[CLASSES]


def _accuracy(labels, logits=LOGITS):
  _, is_right = classification.score(
      losses.get_loss("softmax_xent"), jnp.asarray(logits),
      {"labels": jnp.asarray(labels)})
  return np.asarray(is_right)


@pytest.mark.parametrize("labels", [
    ONE_HOT, 0.9 * ONE_HOT + 0.02, 0.1 * ONE_HOT + 0.18, CLASSES],
    ids=["one-hot", "smoothed", "almost uniform", "integers"])
def test_an_example_is_right_if_its_class_is_predicted(labels):
  wanted = [np.argmax(logits) == c for logits, c in zip(LOGITS, CLASSES)]
  np.testing.assert_array_equal(_accuracy(labels), wanted)
  assert 0 < np.mean(wanted) < 1


def test_with_several_classes_any_of_them_is_right():
  labels = np.zeros((B, K), np.float32)
  labels[:, 1] = labels[:, 3] = 0.8
  wanted = np.isin(np.argmax(LOGITS, axis=1), [1, 3])
  np.testing.assert_array_equal(_accuracy(labels), wanted)


@pytest.mark.parametrize("off", [0.0, 0.1])
def test_an_example_without_a_class_is_never_right(off):
  np.testing.assert_array_equal(
      _accuracy(np.full((B, K), off, np.float32)), 0)
  np.testing.assert_array_equal(_accuracy(np.full(B, -1)), 0)


def _measurements(labels, **kw):
  """Returns what a step on random images logs."""
  config = config_lib.Config(dict(
      model_name="vit", num_classes=K, loss="softmax_xent", lr=0.1,
      optax_name="identity", model=dict(
          width=8, depth=1, mlp_dim=8, num_heads=2, patch_size=(2, 2)), **kw))
  batch = {"image": RNG.normal(size=(8, 4, 4, 3)).astype(np.float32),
           "labels": labels}
  spec = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
  task = classification.make_task(config, Info(
      total_steps=3, batch_size=8, data_size=8, batch_spec=spec,
      mesh=sharding.make_mesh([("data", 1)], jax.devices()[:1])))
  state = task.init(jax.random.key(0), batch, {})
  state = {**state, "step": jnp.zeros((), jnp.int32)}
  return jax.jit(task.update)(state, batch, jax.random.key(1))[1]


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_mixed_examples_have_no_accuracy(mixing):
  labels = ONE_HOT[:8]
  assert float(_measurements(labels)["training_prec@1"]) * 8 % 1 == 0
  mixed = _measurements(labels, **{mixing: {"p": 1.0}})
  assert "training_loss" in mixed and "training_prec@1" not in mixed


def test_smoothed_labels_do_not_change_the_accuracy():
  accuracies = [float(_measurements(labels)["training_prec@1"]) for labels in (
      np.tile(np.eye(K, dtype=np.float32)[0] * on + off, (8, 1))
      for on, off in ((1, 0), (0.5, 0.1)))]
  # A head of zeros predicts class 0.
  assert accuracies == [1.0, 1.0]
