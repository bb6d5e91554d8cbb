import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision import config as config_lib
from big_vision.evaluators import mean

from tests.array_data import assert_is_key


def make(serve, loader, predict_fn, n=37):
  rng = np.random.default_rng(0)
  x = rng.normal(size=n).astype(np.float32)
  opened = serve({"x": {"x": x}})
  evaluator = mean.Evaluator(
      predict_fn, loader, data={"name": "x"}, pp_fn="")
  return evaluator, x, opened["x"]


def test_means_of_examples_without_padding(serve, loader):
  def predict(state, batch, *, rng=None):
    assert_is_key(rng)
    x = batch["x"]
    return {"shifted": x + state["shift"], "part": {"positive": x > 0},
            "inverse": 1. / x}  # Infinite for padding.
  evaluator, x, _ = make(serve, loader, predict)
  metrics = dict(evaluator.run({"shift": jnp.float32(3)}))
  assert set(metrics) == {"shifted", "part/positive", "inverse"}
  total = 0.
  for value in x:
    total += float(np.float32(value + np.float32(3)))
  np.testing.assert_allclose(metrics["shifted"], total / 37, rtol=1e-12)
  assert metrics["part/positive"] == sum(value > 0 for value in x) / 37
  np.testing.assert_allclose(metrics["inverse"], np.mean(1. / x), rtol=1e-5)


def test_sums_are_in_float64(serve, loader):
  def predict(state, batch, *, rng=None):
    del state
    return {"x": 1e8 + 0 * batch["x"]}
  evaluator, _, _ = make(serve, loader, predict, n=101)
  # A float32 sum of these is not exact.
  assert dict(evaluator.run({}))["x"] == 1e8


def test_nothing_is_deleted_or_recompiled(
    serve, loader, num_compiled):
  def predict(state, batch, *, rng=None):
    return {"x": batch["x"] * state["scale"]}
  evaluator, _, pipeline = make(serve, loader, predict)
  state = {"scale": jnp.float32(2)}
  first = dict(evaluator.run(state))
  compiled = num_compiled()
  assert compiled > 0 and dict(evaluator.run(state)) == first
  assert num_compiled() == compiled
  for array in jax.tree.leaves((state, pipeline.batches)):
    assert not array.is_deleted()


@pytest.mark.parametrize("result, listing", [
    (lambda x: {"ok": x, "scalar": x.sum()}, r"ok: \(16,\)\n  scalar: \(\)"),
    (lambda x: {"deep": {"map": x[:, None]}}, r"deep/map: \(16, 1\)"),
    (lambda x: (x, {}), "returns a tuple; a dict"),
    (lambda x: {}, "no arrays"),
])
def test_values_that_are_not_per_example_are_listed(
    serve, loader, result, listing):
  evaluator, _, _ = make(
      serve, loader, lambda state, batch, rng: result(batch["x"]))
  with pytest.raises(config_lib.ConfigError, match=listing):
    list(evaluator.run({}))
