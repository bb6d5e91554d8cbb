import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision import config as config_lib
from big_vision.evaluators import classification
from big_vision.evaluators import harness

from tests.array_data import assert_is_key

DIM = 4


def predict(state, batch, *, rng=None):
  assert_is_key(rng)
  return batch["image"] @ state["params"]["w"], {}


def make_data(n, k, seed=0):
  """Makes inputs, and labels of none, one or several classes each."""
  rng = np.random.default_rng(seed)
  labels = np.zeros((n, k), np.float32)
  for i in range(n):
    labels[i, rng.choice(k, rng.choice([0, 1, 1, 1, 2]), replace=False)] = 1
  image = rng.normal(size=(n, DIM)).astype(np.float32)
  w = rng.normal(size=(DIM, k)).astype(np.float32)
  return {"image": image, "labels": labels}, {"params": {"w": jnp.asarray(w)}}


def make(serve, arrays, batch_sharding, predict_fn=predict, **kw):
  opened = serve({"x": arrays})
  evaluator = classification.Evaluator(
      predict_fn, harness.Loader(batch_sharding, 16), data={"name": "x"},
      pp_fn="", **kw)
  return evaluator, opened["x"]


def loop_over_examples(logits, labels, loss):
  """Computes the metrics example by example, in float64."""
  hits1, hits5, values = [], [], []
  for z, row in zip(logits.astype(np.float64), labels):
    positives = set(np.flatnonzero(row))
    if not positives:
      continue
    order = np.argsort(-z, kind="stable")
    hits1.append(order[0] in positives)
    hits5.append(bool(positives & set(order[:5])))
    if loss == "sigmoid_xent":
      values.append(sum(
          np.logaddexp(0, -v if i in positives else v)
          for i, v in enumerate(z)))
    else:
      values.append(sum(np.logaddexp.reduce(z) - z[i] for i in positives))
  return {"prec@1": np.mean(hits1), "prec@5": np.mean(hits5),
          "loss": np.mean(values)}


@pytest.mark.parametrize("loss", ["sigmoid_xent", "softmax_xent"])
def test_real_protocol_equals_a_loop(serve, batch_sharding, loss):
  arrays, state = make_data(n=107, k=7)  # 107 = 6 * 16 + 11
  evaluator, _ = make(serve, arrays, batch_sharding, loss_name=loss)
  metrics = dict(evaluator.run(state))
  logits = arrays["image"] @ np.asarray(state["params"]["w"])
  expected = loop_over_examples(logits, arrays["labels"], loss)
  assert set(metrics) == {"prec@1", "prec@5", "loss"}
  assert metrics["prec@1"] == expected["prec@1"]
  assert metrics["prec@5"] == expected["prec@5"]
  np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
  # The test shows nothing unless the data has all three kinds.
  counts = arrays["labels"].sum(1)
  assert {0, 1, 2} == set(counts)


def test_default_loss_is_sigmoid_xent(serve, batch_sharding):
  arrays, state = make_data(n=9, k=3)
  default, _ = make(serve, arrays, batch_sharding)
  named, _ = make(serve, arrays, batch_sharding, loss_name="sigmoid_xent")
  assert dict(default.run(state)) == dict(named.run(state))


def test_no_top5_for_five_classes(serve, batch_sharding):
  arrays, state = make_data(n=9, k=5)
  evaluator, _ = make(serve, arrays, batch_sharding)
  assert set(dict(evaluator.run(state))) == {"prec@1", "loss"}


def test_nan_in_padding_does_not_matter(serve, batch_sharding):
  def normalizing(state, batch, *, rng=None):
    x = batch["image"]
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)  # 0 / 0 for padding.
    return x @ state["params"]["w"], {}
  arrays, state = make_data(n=19, k=3)
  evaluator, _ = make(serve, arrays, batch_sharding, normalizing)
  metrics = dict(evaluator.run(state))
  unit = arrays["image"] / np.linalg.norm(arrays["image"], axis=1)[:, None]
  expected = loop_over_examples(
      unit @ np.asarray(state["params"]["w"]), arrays["labels"], "sigmoid_xent")
  assert metrics["prec@1"] == expected["prec@1"]
  np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)


def test_among_equal_logits_the_first_is_the_prediction(serve, batch_sharding):
  # As with the zero-initialized head of every first evaluation.
  arrays, state = make_data(n=107, k=7)
  arrays["image"] = np.round(arrays["image"])
  for scale in (0., 1.):
    w = jnp.round(scale * state["params"]["w"])
    evaluator, _ = make(serve, arrays, batch_sharding)
    metrics = dict(evaluator.run({"params": {"w": w}}))
    logits = arrays["image"] @ np.asarray(w)
    assert any(len(set(row)) < len(row) for row in logits)
    expected = loop_over_examples(logits, arrays["labels"], "sigmoid_xent")
    assert metrics["prec@1"] == expected["prec@1"]
    assert metrics["prec@5"] == expected["prec@5"]


def test_nan_logits_are_never_right(serve, batch_sharding):
  arrays, state = make_data(n=19, k=7)
  evaluator, _ = make(serve, arrays, batch_sharding)
  metrics = dict(evaluator.run(jax.tree.map(lambda x: x * np.nan, state)))
  assert metrics["prec@1"] == metrics["prec@5"] == 0
  assert np.isnan(metrics["loss"])


def test_the_program_gathers_no_logits(serve, batch_sharding):
  k = 7
  arrays, state = make_data(n=16, k=k)
  evaluator, pipeline = make(serve, arrays, batch_sharding)
  program = evaluator._measure.lower(
      state, next(iter(pipeline)), 0).compile().as_text()
  assert "all-gather" in program  # Of the results, [16].
  assert f"[16,{k}]" not in program.split("ENTRY")[1]


def test_nan_in_one_example_is_not_averaged_away(serve, batch_sharding):
  arrays, state = make_data(n=19, k=3)
  arrays["labels"][3] = [1, 0, 0]
  arrays["image"][3] = np.nan
  evaluator, _ = make(serve, arrays, batch_sharding)
  assert np.isnan(dict(evaluator.run(state))["loss"])


def test_state_and_batches_stay_alive_and_nothing_recompiles(
    serve, batch_sharding, num_compiled):
  arrays, state = make_data(n=40, k=6)
  evaluator, pipeline = make(serve, arrays, batch_sharding)
  first = dict(evaluator.run(state))
  compiled = num_compiled()
  assert compiled > 0
  assert dict(evaluator.run(state)) == first
  flipped = jax.tree.map(lambda x: -x, state)
  compiled = num_compiled()
  assert dict(evaluator.run(flipped)) != first  # No state was baked in.
  assert num_compiled() == compiled
  for array in jax.tree.leaves((state, flipped, pipeline.batches)):
    assert not array.is_deleted()


def test_evaluators_on_different_data_share_the_program(serve, loader):
  traces = []
  def counted(state, batch, *, rng=None):
    traces.append(batch)
    return predict(state, batch, rng=rng)
  arrays, state = make_data(n=20, k=6)
  other, _ = make_data(n=33, k=6, seed=1)
  opened = serve({"a": arrays, "b": other})
  for name in ("a", "b"):
    evaluator = classification.Evaluator(
        counted, loader, data={"name": name}, pp_fn="")
    list(evaluator.run(state))
  assert len(opened) == 2 and len(traces) == 1


def test_smoothed_labels_are_an_error(serve, batch_sharding):
  arrays, state = make_data(n=9, k=3)
  arrays["labels"][2] = [0.9, 0.05, 0.05]
  evaluator, _ = make(serve, arrays, batch_sharding)
  with pytest.raises(ValueError, match="1 of 9 examples.*onehot"):
    list(evaluator.run(state))


def test_data_without_any_label_is_an_error(serve, batch_sharding):
  arrays, state = make_data(n=9, k=3)
  arrays["labels"][:] = 0
  evaluator, _ = make(serve, arrays, batch_sharding)
  with pytest.raises(ValueError, match="None of 9 examples has a label"):
    list(evaluator.run(state))


def test_empty_data_is_an_error(serve, batch_sharding):
  arrays, state = make_data(n=0, k=3)
  evaluator, _ = make(serve, arrays, batch_sharding)
  with pytest.raises(ValueError, match="empty"):
    list(evaluator.run(state))


def test_integer_labels_are_an_error_that_says_onehot(serve, batch_sharding):
  arrays, state = make_data(n=9, k=3)
  arrays["labels"] = arrays["labels"].argmax(1).astype(np.int32)
  evaluator, _ = make(serve, arrays, batch_sharding)
  with pytest.raises(config_lib.ConfigError, match=r"\(16,\).*onehot\(3\)"):
    list(evaluator.run(state))


def test_errors_list_label_keys_and_losses_that_exist(serve, batch_sharding):
  arrays, state = make_data(n=9, k=3)
  evaluator, _ = make(serve, arrays, batch_sharding, label_key="label")
  with pytest.raises(config_lib.ConfigError, match="did you mean 'labels'"):
    list(evaluator.run(state))
  with pytest.raises(config_lib.ConfigError, match="softmax_xent"):
    make(serve, arrays, batch_sharding, loss_name="softmax")
