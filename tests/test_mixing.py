"""Tests that mixup and CutMix mix pixels and labels alike on any devices."""

from big_vision import config as config_lib
from big_vision import mixing
from big_vision import sharding
import jax
import jax.numpy as jnp
import numpy as np
import pytest

PARTNER = [1, 0, 3, 2]


def _batch(b=4, size=6):
  # Every pixel has its image's number as value, which shows how images are
  # mixed.
  image = jnp.broadcast_to(jnp.arange(b)[:, None, None, None] * 1.,
                           (b, size, size, 3))
  return {"image": image, "labels": jnp.eye(b), "other": jnp.arange(b)}


@pytest.mark.parametrize("seed", range(5))
def test_mixup_mixes_pixels_and_labels_by_the_same_weight(seed):
  batch = _batch()
  mixed = mixing.make({"p": 0.3})(batch, jax.random.key(seed))
  weight = float(mixed["labels"][0, 0])
  assert 0.5 <= weight <= 1
  eye = np.eye(4)
  np.testing.assert_allclose(
      mixed["labels"], weight * eye + (1 - weight) * eye[PARTNER], rtol=1e-6)
  expected = [weight * i + (1 - weight) * PARTNER[i] for i in range(4)]
  np.testing.assert_allclose(mixed["image"][:, 2, 3, 1], expected, rtol=1e-6)
  np.testing.assert_array_equal(mixed["other"], batch["other"])


def test_cutmix_labels_are_the_area_of_the_box():
  weights = []
  for seed in range(20):
    mixed = mixing.make(cutmix={"p": 1.})(_batch(), jax.random.key(seed))
    image = np.asarray(mixed["image"])
    for i in range(4):
      assert set(np.unique(image[i])) <= {float(i), float(PARTNER[i])}
      kept = (image[i, :, :, 0] == i).mean()
      np.testing.assert_allclose(mixed["labels"][i, i], kept, atol=1e-6)
      np.testing.assert_allclose(
          mixed["labels"][i, PARTNER[i]], 1 - kept, atol=1e-6)
    rows = np.unique(np.where(image[0, :, :, 0] == 1)[0])
    assert len(rows) == 0 or (np.diff(rows) == 1).all()
    weights.append(float(mixed["labels"][0, 0]))
  assert min(weights) < 0.5 < max(weights)


def _boxes(seeds, size):
  """Returns bool[n, h], bool[n, w]: rows and columns of boxes of CutMix."""
  image = jnp.broadcast_to(
      jnp.array([0.0, 1.0])[:, None, None, None], (2, *size, 1))
  batch = {"image": image, "labels": jnp.eye(2)}
  mix = mixing.make(cutmix={"p": 1.})
  mixed = jax.jit(jax.vmap(lambda seed: mix(batch, jax.random.key(seed))))(
      seeds)["image"][:, 0, :, :, 0]
  return np.asarray(mixed.any(axis=2)), np.asarray(mixed.any(axis=1))


def test_cutmix_boxes_have_the_places_and_areas_of_the_paper():
  """Against boxes drawn here: uniform centres, sides sqrt(1 - lambda)."""
  n, size = 4000, (24, 36)
  found = _boxes(jnp.arange(n), size)
  rng = np.random.default_rng(0)
  side = np.sqrt(rng.uniform(size=n))
  expected = []
  for length in size:
    centre, half = rng.uniform(size=n) * length, side * length / 2
    low, high = np.round(centre - half), np.round(centre + half)
    place = np.arange(length)
    expected.append(
        (low[:, None] <= place) & (place < high[:, None]))
  def area(rows, columns):
    return rows.mean(axis=1) * columns.mean(axis=1)
  # Differences of two means of n draws, within 5 standard deviations.
  spread = 5 * np.sqrt(2 / n)
  for statistic in (lambda a: a, lambda a: a ** 2, lambda a: a > 0.5):
    ours, theirs = statistic(area(*found)), statistic(area(*expected))
    assert abs(ours.mean() - theirs.mean()) < spread * theirs.std()
  # How often each row and column is inside.
  for ours, theirs in zip(found, expected):
    assert abs(ours.mean(0) - theirs.mean(0)).max() < spread / 2
  # Rows and columns are drawn apart: only the size of boxes is common to them.
  def middle(inside):
    weights = inside / np.maximum(inside.sum(axis=1, keepdims=True), 1)
    return weights @ np.arange(inside.shape[1])
  is_box = found[0].any(axis=1) & found[1].any(axis=1)
  middles = [middle(inside[is_box]) for inside in found]
  assert abs(np.corrcoef(*middles)[0, 1]) < 5 / np.sqrt(n)
  assert min(np.std(middles, axis=1) / size) > 0.1


def test_every_step_picks_mixup_or_cutmix_at_random():
  mix = mixing.make({"p": 1.}, {"p": 1.})
  is_mixup = []
  for seed in range(12):
    image = np.asarray(mix(_batch(), jax.random.key(seed))["image"])
    is_mixup.append(len(np.unique(image[0])) == 1 and image[0, 0, 0, 0] % 1 > 0)
  assert any(is_mixup) and not all(is_mixup)


def test_mixing_on_8_devices_needs_no_communication_and_changes_nothing():
  """Partners in a sharded batch are on the same device."""
  mesh = sharding.make_mesh()
  where = sharding.batch_sharding(mesh, sharding.default_rules(mesh))
  batch = _batch(b=16)
  mix = jax.jit(mixing.make({"p": 0.3}, {"p": 1.}),
                out_shardings={key: where for key in batch})
  spread = jax.device_put(batch, where)
  text = mix.lower(spread, jax.random.key(3)).compile().as_text()
  for collective in ("all-gather", "collective-permute", "all-to-all"):
    assert collective not in text
  alone = jax.jit(mixing.make({"p": 0.3}, {"p": 1.}))(batch, jax.random.key(3))
  # Not bit-identical: the programs may fuse multiplication and addition.
  np.testing.assert_allclose(
      mix(spread, jax.random.key(3))["image"], alone["image"], rtol=1e-6)


def test_wrong_options_and_batches_are_named():
  assert mixing.make() is None
  with pytest.raises(config_lib.ConfigError, match="even batch size; it is 3"):
    mixing.make({"p": 1.})(_batch(b=3), jax.random.key(0))
  mix = mixing.make({"p": 1.})
  for labels in (jnp.arange(4), jnp.eye(4, dtype=jnp.int32)):
    with pytest.raises(config_lib.ConfigError, match='int32.*"onehot" conv'):
      mix({**_batch(), "labels": labels}, jax.random.key(0))
  with pytest.raises(config_lib.ConfigError, match=r"images.*\['tokens'\]"):
    mix({"tokens": jnp.zeros((4, 3))}, jax.random.key(0))
  with pytest.raises(config_lib.ConfigError, match="a number above 0"):
    mixing.make({"p": 0.})
  with pytest.raises(config_lib.ConfigError, match="fold_in does not exist"):
    mixing.make({"p": 1., "fold_in": None})
