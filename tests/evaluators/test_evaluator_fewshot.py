import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import linear_model

from big_vision import config as config_lib
from big_vision.evaluators import fewshot_lsr

from tests.array_data import assert_is_key

CLASSES, DIM = 3, 8


def predict(state, batch, *, rng=None):
  assert_is_key(rng)
  z = jnp.tanh(batch["image"] @ state["params"]["w"])
  return z[:, :2], {"encoder/block00": z[:, None], "pre_logits": z}


def make_state(seed=0):
  w = np.random.default_rng(seed).normal(size=(5, DIM)).astype(np.float32)
  return {"params": {"w": jnp.asarray(w)}}


def make_split(n, seed):
  """Makes overlapping blobs, so that accuracies are far from 0 and 1."""
  rng = np.random.default_rng(seed)
  label = np.resize(np.arange(CLASSES), n)
  centres = np.random.default_rng(99).normal(size=(CLASSES, 5))
  image = centres[label] + rng.normal(size=(n, 5))
  order = rng.permutation(n)
  return {"image": image[order].astype(np.float32),
          "label": label[order].astype(np.int32)}


SPLITS = {"blobs/train": make_split(61, 0), "blobs/test": make_split(203, 1),
          "blobs/other": make_split(45, 2)}


def make(serve, loader, **kw):
  opened = serve(SPLITS)
  kw = dict(datasets={"b": ("blobs", "train", "test")}, pp_train="", pp_eval="",
            representation_layer="pre_logits") | kw
  return fewshot_lsr.Evaluator(predict, loader, **kw), opened


def with_sklearn(state, train, test, k, seed, l2_reg):
  """Computes the accuracy for one choice of examples with scikit-learn."""
  w = np.asarray(state["params"]["w"], np.float64)
  represent = lambda split: np.tanh(split["image"].astype(np.float64) @ w)
  rng = np.random.default_rng(seed)
  chosen = []
  for c in range(CLASSES):
    indices = [i for i, label in enumerate(train["label"]) if label == c]
    chosen.extend(rng.permutation(indices)[:k])
  x = represent(train)[chosen]
  y = np.array([[1. if train["label"][i] == c else -1. for c in range(CLASSES)]
                for i in chosen])
  mean, std = x.mean(0), np.sqrt(((x - x.mean(0)) ** 2).mean(0)) + 1e-5
  whiten = lambda x: np.hstack([(x - mean) / std, 100. * np.ones((len(x), 1))])
  ridge = linear_model.Ridge(alpha=l2_reg, fit_intercept=False, solver="svd")
  ridge.fit(whiten(x), y)
  predicted = ridge.predict(whiten(represent(test))).argmax(1)
  return np.mean(predicted == test["label"])


# One shot is 3 examples in 9 dimensions, ten are 30: both forms of solution.
@pytest.mark.parametrize("l2_reg", [2. ** 10, 0.1])
def test_equals_sklearn_ridge(serve, loader, l2_reg):
  state = make_state()
  evaluator, _ = make(
      serve, loader, shots=(1, 10), l2_reg=l2_reg, num_seeds=2,
      display_first=[["b", 10]])
  metrics = dict(evaluator.run(state))
  expected = {}
  for k, group in ((1, "z"), (10, "a")):
    values = [
        with_sklearn(state, SPLITS["blobs/train"], SPLITS["blobs/test"], k,
                     seed, l2_reg) for seed in range(2)]
    expected[f"{group}/b_{k}shot-seed-0"] = values[0]
    expected[f"{group}/b_{k}shot-seed-1"] = values[1]
    expected[f"{group}/b_{k}shot"] = np.mean(values)
  assert metrics.keys() == expected.keys()
  for name, value in expected.items():
    assert abs(metrics[name] - value) < 1e-12, name
  assert len(set(expected.values())) >= 4  # Seeds and shots do differ.
  assert all(1 / CLASSES < value < 1 for value in expected.values())


@pytest.mark.parametrize("n", [4, 40])
def test_fit_equals_the_eigendecomposition(n):
  """Published numbers were computed with it; tests both of its forms."""
  rng = np.random.default_rng(0)
  x, x_test = rng.normal(size=(n, DIM)), rng.normal(size=(11, DIM))
  labels = np.arange(n) % CLASSES
  scores = fewshot_lsr.fit(x.astype(np.float32), labels, 2. ** 10)(
      x_test.astype(np.float32))
  x, x_test = x.astype(np.float32), x_test.astype(np.float32)
  mean, std = x.mean(0, np.float64), x.std(0, np.float64) + 1e-5
  x, x_test = ([np.append(row, 100.) for row in (x - mean) / std]
               for x in (x, x_test))
  x, x_test = np.array(x), np.array(x_test)
  y = np.where(labels[:, None] == np.arange(CLASSES), 1., -1.)
  gram = x.T @ x if n >= DIM + 1 else x @ x.T
  eigs, q = np.linalg.eigh(gram)
  inverse = (q / (eigs + 2. ** 10)) @ q.T
  w = inverse @ x.T @ y if n >= DIM + 1 else x.T @ inverse @ y
  np.testing.assert_allclose(scores, x_test @ w, rtol=1e-8)


def test_choose_gives_each_class_its_shots_and_nests():
  labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 6))
  chosen = fewshot_lsr.choose(labels, (2, 5), seed=1)
  for k in (2, 5):
    assert sorted(labels[chosen[k]]) == sorted(list(range(4)) * k)
    assert len(set(chosen[k])) == 4 * k
  assert set(chosen[2]) < set(chosen[5])
  again = fewshot_lsr.choose(labels, (2, 5), seed=1)
  np.testing.assert_array_equal(again[5], chosen[5])
  other = fewshot_lsr.choose(labels, (5,), seed=2)
  assert set(other[5]) != set(chosen[5])


def test_splits_of_one_data_set_are_kept_apart(serve, loader):
  # google-research/big_vision reuses those of "b" for "c", whose source has
  # the same name.
  state = make_state()
  evaluator, opened = make(
      serve, loader, shots=(5,), num_seeds=1, l2_reg=1.,
      datasets={"b": ("blobs", "train", "test"),
                "c": ({"name": "blobs"}, "other", "test")})
  metrics = dict(evaluator.run(state))
  for name, split in (("b", "train"), ("c", "other")):
    assert metrics[f"z/{name}_5shot"] == with_sklearn(
        state, SPLITS[f"blobs/{split}"], SPLITS["blobs/test"], 5, 0, 1.)
  assert metrics["z/b_5shot"] != metrics["z/c_5shot"]
  # Shared splits are represented once.
  assert {key: p.num_passes for key, p in opened.items()} == {
      "blobs/train": 1, "blobs/test": 1, "blobs/other": 1}


def test_a_new_state_needs_no_compilation(
    serve, loader, num_compiled):
  evaluator, opened = make(serve, loader, shots=(5,), num_seeds=1)
  states = make_state(0), make_state(1)
  runs = [dict(evaluator.run(states[0]))]
  compiled = num_compiled()
  runs += [dict(evaluator.run(state)) for state in states]
  assert compiled > 0 and num_compiled() == compiled
  assert runs[0] == runs[1] != runs[2]
  batches = [pipeline.batches for pipeline in opened.values()]
  for array in jax.tree.leaves((states, batches)):
    assert not array.is_deleted()


def test_classes_with_too_few_examples_are_named(serve, loader):
  # 61 examples: 21 of class 0, 20 of the others.
  with_21, _ = make(serve, loader, shots=(1, 21))
  with pytest.raises(
      ValueError, match=r"datasets.b: 21 shots.*class 1 has 20, class 2 has 20 "
      r"\(2 of 3 classes\).*at most 20 shots"):
    list(with_21.run(make_state()))
  allowed, _ = make(serve, loader, shots=(21,), allow_fewer=True)
  every, _ = make(serve, loader, shots=(1000,), allow_fewer=True)
  assert dict(allowed.run(make_state()))["z/b_21shot"] == pytest.approx(
      dict(every.run(make_state()))["z/b_1000shot"])


def test_nan_features_are_never_right(serve, loader):
  evaluator, _ = make(serve, loader, shots=(5,))
  broken = jax.tree.map(lambda x: x * np.nan, make_state())
  assert set(dict(evaluator.run(broken)).values()) == {0.}


def test_labels_may_be_of_any_integer_type():
  labels = np.array([255, 0, 255, 0], np.uint8)  # 255 + 1 is 0 in uint8.
  chosen = fewshot_lsr.choose(labels, (1,), seed=0)[1]
  assert sorted(labels[chosen]) == [0, 255]
  x = labels[:, None].astype(np.float32)
  scores = fewshot_lsr.fit(x, labels, l2_reg=1.)(x)
  np.testing.assert_array_equal(scores.argmax(1), labels)


def test_a_split_without_labels_is_an_error(
    serve, loader, monkeypatch):
  hidden = dict(SPLITS["blobs/test"], label=np.full(203, -1, np.int32))
  monkeypatch.setitem(SPLITS, "blobs/test", hidden)
  evaluator, _ = make(serve, loader)
  with pytest.raises(ValueError, match="b, test split: 203 of 203 labels"):
    list(evaluator.run(make_state()))


def test_default_representation_is_the_first_output(serve, loader):
  state = make_state()
  logits, _ = make(serve, loader, representation_layer=None,
                   shots=(5,), num_seeds=1)
  features, _ = make(serve, loader, shots=(5,), num_seeds=1)
  narrow = {"params": {"w": state["params"]["w"][:, :2]}}
  assert dict(logits.run(state)) == dict(features.run(narrow))


def test_unknown_names_are_errors(serve, loader):
  evaluator, _ = make(serve, loader, representation_layer="pre_logit")
  with pytest.raises(
      config_lib.ConfigError, match="mean 'pre_logits'.*block00"):
    list(evaluator.run(make_state()))
  evaluator, _ = make(
      serve, loader, representation_layer="encoder/block00")
  with pytest.raises(config_lib.ConfigError, match=r"\(16, 1, 8\)"):
    list(evaluator.run(make_state()))
  evaluator, _ = make(serve, loader, label_key="image")
  with pytest.raises(config_lib.ConfigError, match="class index"):
    list(evaluator.run(make_state()))
  with pytest.raises(config_lib.ConfigError, match=r"\('b', 7\)"):
    make(serve, loader, display_first=[("b", 7)])
  with pytest.raises(config_lib.ConfigError, match="train split, test split"):
    make(serve, loader, datasets={"b": ("blobs", "train")})
