import collections

from big_vision import config as config_lib
from big_vision.evaluators import by_difficulty
from big_vision.evaluators import harness
from big_vision.evaluators import schedule
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from tests.array_data import assert_is_key

NUM = 53  # 3 * 16 + 5


def make(serve, arrays, batch_sharding, predict_fn, batch_size=16, **kw):
  serve({"x": arrays})
  return by_difficulty.Evaluator(
      predict_fn, harness.Loader(batch_sharding, batch_size),
      data={"name": "x"}, pp_fn="", **kw)


def predict(state, batch, *, rng=None):
  """Predicts the batch's "answer"; for padded examples, all zero, NaN."""
  assert_is_key(rng)
  logits = jax.nn.one_hot(batch["answer"], 5) * state["scale"]
  padding = 1 - batch["_mask"].reshape(-1, *[1] * (logits.ndim - 1))
  steps = batch["steps"] + 0. / (1 - padding.reshape(-1))
  return logits / (1 - padding), {"act": {"steps": steps},
                                  "tokens": batch.get("token_steps", steps)}


STATE = {"scale": jnp.float32(3)}


def make_classes(seed=0):
  """Makes difficulties that leave gaps, with some wrong answers."""
  rng = np.random.default_rng(seed)
  label = rng.integers(0, 5, NUM)
  difficulty = rng.choice([2, 3, 7, 11], NUM, p=[.5, .3, .18, .02])
  difficulty[-1] = 11
  wrong = rng.random(NUM) < difficulty / 12
  return {"label": label.astype(np.int32), "difficulty": difficulty,
          "answer": np.where(wrong, (label + 1) % 5, label),
          "steps": rng.normal(size=NUM).astype(np.float32)}


def count_classes(arrays):
  """Computes the metrics by counting in Python."""
  right, steps = collections.defaultdict(list), collections.defaultdict(list)
  keys = ("label", "difficulty", "answer", "steps")
  for label, d, answer, number in zip(*(arrays[k].tolist() for k in keys)):
    for suffix in ("", f"/{d}"):
      right[f"prec@1{suffix}"].append(int(label == answer))
      steps[f"steps{suffix}"].append(number)
  return ({k: sum(v) / len(v) for k, v in right.items()},
          {k: sum(v) / len(v) for k, v in steps.items()})


def test_classes_equal_counting(serve, batch_sharding):
  arrays = make_classes()
  expected, expected_steps = count_classes(arrays)
  assert len(expected) == 5 and 0 < expected["prec@1/7"] < expected["prec@1/2"]
  evaluator = make(serve, arrays, batch_sharding, predict, label_key="label")
  metrics = list(evaluator.run(STATE))
  assert dict(metrics) == expected
  assert [name for name, _ in metrics] == [
      "prec@1", "prec@1/2", "prec@1/3", "prec@1/7", "prec@1/11"]

  arrays["labels"] = np.eye(5, dtype=np.float32)[arrays["label"]]
  hot = make(serve, arrays, batch_sharding, predict, measure="act/steps")
  metrics = dict(hot.run(STATE))
  assert {k: metrics.pop(k) for k in expected} == expected
  assert set(metrics) == set(expected_steps)
  for name, value in expected_steps.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-6)


def make_tokens():
  """Makes sequences of 1 to 4 tokens; some have wrong answers."""
  rng = np.random.default_rng(1)
  n = 4
  length = rng.integers(1, n + 1, NUM)
  mask = (np.arange(n) < length[:, None]).astype(np.float32)
  labels = rng.integers(0, 5, (NUM, n))
  answer = np.where(rng.random((NUM, n)) < .2, (labels + 2) % 5, labels)
  # Answers to padding are always wrong, and do not count.
  answer = np.where(mask > 0, answer, (labels + 1) % 5)
  return {"labels": labels.astype(np.int32), "answer": answer, "mask": mask,
          "difficulty": length.astype(np.int32),
          "steps": np.zeros(NUM, np.float32),
          "token_steps": rng.integers(1, 9, (NUM, n)).astype(np.float32)}


def test_tokens_equal_counting(serve, batch_sharding):
  arrays = make_tokens()
  lists = collections.defaultdict(list)
  for i in range(NUM):
    length = int(arrays["difficulty"][i])
    hits = [bool(arrays["labels"][i, t] == arrays["answer"][i, t])
            for t in range(length)]
    for suffix in ("", f"/{length}"):
      lists[f"prec@1{suffix}"].append(all(hits))
      lists[f"token_prec@1{suffix}"].extend(hits)
      lists[f"tokens{suffix}"].append(
          sum(arrays["token_steps"][i, :length].tolist()) / length)
  evaluator = make(serve, arrays, batch_sharding, predict, measure="tokens")
  metrics = dict(evaluator.run(STATE))
  assert set(metrics) == set(lists) and len(lists) == 15
  for name, values in lists.items():
    expected = sum(values) / len(values)
    if name.startswith("tokens"):
      np.testing.assert_allclose(metrics[name], expected, rtol=1e-6)
    else:
      assert metrics[name] == expected, name
  assert metrics["prec@1"] < metrics["token_prec@1"] < 1


def test_without_a_mask_all_tokens_count(serve, batch_sharding):
  arrays = make_tokens()
  del arrays["mask"]
  evaluator = make(serve, arrays, batch_sharding, predict, mask_key=None,
                   measure="tokens")
  metrics = dict(evaluator.run(STATE))
  hits = [a == b for a, b in zip(arrays["labels"].ravel().tolist(),
                                 arrays["answer"].ravel().tolist())]
  assert metrics["token_prec@1"] == sum(hits) / (4 * NUM)
  np.testing.assert_allclose(
      metrics["tokens"], arrays["token_steps"].mean(), rtol=1e-6)


@pytest.mark.parametrize("num_devices, batch_size", [(1, 5), (2, 54), (8, 8)])
def test_devices_and_batch_size_change_nothing(
    serve, batch_sharding, num_devices, batch_size):
  arrays = make_tokens()
  reference = list(make(
      serve, arrays, batch_sharding, predict).run(STATE))
  mesh = jax.sharding.Mesh(
      np.array(jax.devices()[:num_devices]), ("data",),
      axis_types=(AxisType.Auto,))
  evaluator = make(serve, arrays, NamedSharding(mesh, P("data")), predict,
                   batch_size)
  assert list(evaluator.run(STATE)) == reference


def test_nan_is_never_right(serve, batch_sharding):
  arrays = {**make_classes(), "label": np.zeros(NUM, np.int32)}
  evaluator = make(serve, arrays, batch_sharding, predict, label_key="label")
  assert set(dict(evaluator.run({"scale": jnp.nan})).values()) == {0.}


def test_generated_data_from_the_config(batch_sharding):
  """Through the real pipeline: 45 sums on 8 devices in batches of 16."""
  def adds_without_carry(state, batch, *, rng=None):
    del state, rng
    tokens = batch["tokens"]
    def answer(row, k):
      place = jnp.arange(7)
      digit = lambda at: jnp.where(at >= 0, row[at] - 1, 0)
      a = jnp.where(place > k, digit(place - k - 1), 0)
      b = jnp.where(place > k, digit(place), 0)
      return 1 + (a + b) % 10
    said = jax.vmap(answer)(tokens, batch["difficulty"])
    return jax.nn.one_hot(said, 12), {}

  data = dict(name="bv:addition", split="test", num_examples=45, max_digits=3)
  evaluators = schedule.make_evaluators(
      config_lib.Config({"add": dict(
          type="by_difficulty", data=data,
          pp_fn="keep('tokens', 'labels', 'mask', 'difficulty')")}),
      {"predict": adds_without_carry}, batch_sharding=batch_sharding,
      batch_size=16)
  metrics = schedule.run_all(evaluators, {})

  from big_vision.datasets import registry
  source = registry.open_source(**data)
  right = collections.defaultdict(list)
  for i in range(45):
    tokens, k = source.example(i)["tokens"].tolist(), 1 + i % 3
    a, b = tokens[:k], tokens[k + 1:2 * k + 1]
    has_carry = any(x + y - 2 > 9 for x, y in zip(a, b))
    right[k].append(not has_carry)
    right[""].append(not has_carry)
  assert 0 < metrics["add/prec@1"] < 1 and len(right) == 4
  assert metrics["add/prec@1"] == sum(right[""]) / 45
  for k in (1, 2, 3):
    assert metrics[f"add/prec@1/{k}"] == sum(right[k]) / 15


@pytest.mark.parametrize("change, kw, message", [
    ({"hops": None}, {"key": "hop"}, r"key='hop'.*did you mean 'hops'"),
    ({"difficulty": np.ones(NUM, np.float32)}, {},
     r"float32\[16\].*one integer"),
    ({}, {"label_key": "steps"}, r"float32\[16\].*logits are float32\[16, 5\]"),
    ({}, {"measure": "act/step"}, r"did you mean 'act/steps'.*\['act/steps'"),
    ({"token_steps": np.ones((NUM, 2, 2))}, {"measure": "tokens"},
     r"tokens.*\[16, 2, 2\].*per token"),
    ({"token_steps": np.ones((NUM, 3))}, {"measure": "tokens"},
     r"mask_key='mask' is not in the batch"),
])
def test_errors_name_the_key_that_does_not_fit(
    serve, batch_sharding, change, kw, message):
  arrays = make_classes()
  arrays.update({k: arrays["difficulty"] if v is None else v
                 for k, v in change.items()})
  evaluator = make(serve, arrays, batch_sharding, predict,
                   **{"label_key": "label", **kw})
  with pytest.raises(config_lib.ConfigError, match=message):
    list(evaluator.run(STATE))


def test_unlabelled_examples_are_an_error(serve, batch_sharding):
  for label in (-1, 5):  # Of 5 classes.
    arrays = make_classes()
    arrays["label"][3] = label
    evaluator = make(serve, arrays, batch_sharding, predict, label_key="label")
    with pytest.raises(ValueError, match="1 of 53 examples.*label in 'label'"):
      list(evaluator.run(STATE))
  arrays = make_tokens()
  arrays["mask"][[4, 7]] = 0
  evaluator = make(serve, arrays, batch_sharding, predict)
  with pytest.raises(ValueError, match="2 of 53 examples.*'mask' is 0"):
    list(evaluator.run(STATE))
