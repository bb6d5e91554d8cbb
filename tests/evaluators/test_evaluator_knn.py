import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import neighbors

from big_vision import config as config_lib
from big_vision.evaluators import knn

from tests.array_data import assert_is_key

CLASSES, DIM = 4, 6


def predict(state, batch, *, rng=None):
  assert_is_key(rng)
  return batch["image"][:, :2], {"z": batch["image"] * state["scale"]}


def make_split(n, seed):
  """Makes blobs of unequal length, so that cosine differs from distance."""
  rng = np.random.default_rng(seed)
  label = rng.integers(CLASSES, size=n)
  centres = np.random.default_rng(99).normal(size=(CLASSES, DIM))
  image = centres[label] + rng.normal(size=(n, DIM))
  image *= rng.uniform(0.1, 10, size=(n, 1))
  return {"image": image.astype(np.float32), "label": label.astype(np.int32)}


TRAIN, TEST = make_split(151, 0), make_split(301, 1)
STATE = {"scale": jnp.float32(3)}


def make(serve, loader, train=TRAIN, test=TEST, **kw):
  opened = serve({"train": train, "test": test})
  kw = dict(representation_layer="z") | kw
  return knn.Evaluator(
      predict, loader, data={"name": "test"}, data_train={"name": "train"},
      pp_fn="", **kw), opened


def with_sklearn(k, temperature):
  classifier = neighbors.KNeighborsClassifier(
      k, metric="cosine", algorithm="brute",
      weights=lambda distance: np.exp((1 - distance) / temperature))
  classifier.fit(TRAIN["image"].astype(np.float64), TRAIN["label"])
  predicted = classifier.predict(TEST["image"].astype(np.float64))
  return np.mean(predicted == TEST["label"])


def test_equals_sklearn(serve, loader):
  settings = {(k, t): with_sklearn(k, t)
              for k in (1, 20, 50) for t in (0.07, 10.)}
  for t in (0.07, 10.):
    evaluator, _ = make(serve, loader, k=(1, 20, 50), temperature=t)
    assert dict(evaluator.run(STATE)) == {
        f"knn@{k}": settings[k, t] for k in (1, 20, 50)}
  default, _ = make(serve, loader)
  assert dict(default.run(STATE)) == {"knn@20": settings[20, 0.07]}
  assert len(set(settings.values())) == 5  # One neighbour needs no weights.


def test_training_examples_can_be_neighbours_but_padding_cannot(
    serve, loader):
  # Opposite to all queries: any padding, of similarity 0, would be nearer.
  image = np.ones((3, DIM), np.float32)
  train = {"image": -image, "label": np.array([2, 1, 1], np.int32)}
  test = {"image": image, "label": np.array([1, 2, 1], np.int32)}
  evaluator, _ = make(serve, loader, train, test, k=3)
  assert dict(evaluator.run(STATE)) == {"knn@3": 2 / 3}


def test_equally_similar_neighbours_keep_the_order_of_the_data(
    serve, loader):
  n = 40  # More than two batches of equal examples: the first is the nearest.
  image = np.ones((n, DIM), np.float32)
  train = {"image": image, "label": np.arange(n, dtype=np.int32)}
  test = {"image": image, "label": np.zeros(n, np.int32)}
  evaluator, _ = make(serve, loader, train, test, k=5)
  assert dict(evaluator.run(STATE)) == {"knn@5": 1.}


@pytest.mark.parametrize("temperature, winner", [(0.01, 7), (1., 3)])
def test_vote_weighs_near_against_many(temperature, winner):
  similarity = np.array([[0.9, 0.8, 0.7]])
  labels = np.array([[7, 3, 3]])
  assert knn.vote(similarity, labels, temperature) == [winner]
  # In numbers: e^(.9/t) against e^(.8/t) + e^(.7/t).
  t = temperature
  near, many = np.exp(0.9 / t), np.exp(0.8 / t) + np.exp(0.7 / t)
  assert winner == (7 if near > many else 3)


def test_vote_does_not_overflow():
  assert knn.vote(np.array([[1., 1.]]), np.array([[4, 4]]), 1e-4) == [4]


def test_similarities_stay_on_their_device(
    serve, loader, batch_sharding):
  evaluator, opened = make(serve, loader, k=5)
  queries = jax.device_put(np.zeros((800, DIM), np.float32), batch_sharding)
  nearest = tuple(jax.device_put(np.zeros((800, 5), dtype), batch_sharding)
                  for dtype in (np.float32, np.int32))
  program = evaluator._update.lower(
      STATE, next(iter(opened["train"])), 0, queries, nearest
  ).compile().as_text()
  assert "[100,21]" in program  # 5 neighbours and a batch of 16, per device.
  assert "[800," not in program


def test_nothing_is_deleted_or_recompiled(
    serve, loader, num_compiled):
  evaluator, opened = make(serve, loader)
  first = dict(evaluator.run(STATE))
  compiled = num_compiled()
  assert compiled > 0 and dict(evaluator.run(STATE)) == first
  assert num_compiled() == compiled
  batches = [pipeline.batches for pipeline in opened.values()]
  for array in jax.tree.leaves((STATE, batches)):
    assert not array.is_deleted()


def test_nan_features_are_never_right(serve, loader):
  evaluator, _ = make(serve, loader)
  assert dict(evaluator.run({"scale": jnp.float32(np.nan)})) == {"knn@20": 0}


def test_data_without_labels_is_an_error(serve, loader):
  test = dict(TEST, label=np.full(301, -1, np.int32))
  evaluator, _ = make(serve, loader, test=test)
  with pytest.raises(ValueError, match="data: 301 of 301 labels are negative"):
    list(evaluator.run(STATE))


def test_more_neighbours_than_examples_are_an_error(serve, loader):
  with pytest.raises(config_lib.ConfigError, match="k=200 .* has 151 examples"):
    make(serve, loader, k=(20, 200))
