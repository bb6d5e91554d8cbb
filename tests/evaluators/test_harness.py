"""Loaders, and the collection of results per example."""

import inspect
import subprocess
import sys
import types

import big_vision
from big_vision import config as config_lib
from big_vision import sharding
from big_vision.evaluators import harness
import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

NUM = 37  # Two batches of 16, and 5.
X = np.arange(1, NUM + 1, dtype=np.float32)


def identity(state, batch, rng):
  del state, rng
  return {"x": batch["x"]}


def draw(state, batch, rng):
  """Returns two draws for each example."""
  del state
  return jax.random.normal(rng, (len(batch["x"]), 2))


class MaxLogit:
  """The minimal evaluator in the docstring of `harness`."""

  def __init__(self, predict_fn, loader, *, data, pp_fn):
    def measure(state, batch, rng):
      logits, _ = predict_fn(state, batch, rng=rng)
      return {"max_logit": logits.max(axis=-1)}  # One number per example.
    self._measure = loader.compile(measure)
    self._examples = loader.open(data, pp_fn)

  def run(self, state):
    yield from self._examples.mean(self._measure, state).items()


@pytest.fixture
def examples(serve, loader):
  serve({"x": {"x": X}})
  return loader.open({"name": "x"}, "")


def test_the_minimal_evaluator_leaves_out_padding(serve, loader):
  serve({"x": {"x": X}})
  def predict(state, batch, *, rng=None):  # Padding, all zero, gives infinity.
    return state["w"] / batch["x"][:, None], {}
  evaluator = MaxLogit(predict, loader, data={"name": "x"}, pp_fn="")
  metrics = dict(evaluator.run({"w": np.array([1., 3., 2.], np.float32)}))
  assert list(metrics) == ["max_logit"]
  np.testing.assert_allclose(
      metrics["max_logit"], sum(3 / x for x in range(1, NUM + 1)) / NUM,
      rtol=1e-6)


def test_the_minimal_evaluator_is_that_of_the_docstring():
  code = inspect.getsource(MaxLogit).splitlines()
  code = [line for line in code[2:] if line.strip()]
  stated = [line[2:] for line in harness.__doc__.splitlines() if line.strip()]
  start = stated.index(code[0])
  assert stated[start:start + len(code)] == code


@pytest.mark.parametrize("measure, listing", [
    (lambda state, batch, rng: {"a": batch["x"], "mean": batch["x"].mean()},
     r"\(16, \.\.\.\).*\n  a: \(16,\)\n  mean: \(\)"),
    (lambda state, batch, rng: batch["x"].reshape(2, 8), r"\(2, 8\)"),
    (lambda state, batch, rng: {}, "no arrays"),
])
def test_averages_of_a_padded_batch_are_an_error(
    examples, loader, measure, listing):
  with pytest.raises(config_lib.ConfigError, match=listing):
    examples.mean(loader.compile(measure), {})


def test_functions_that_are_not_compiled_are_an_error(examples):
  with pytest.raises(TypeError, match="pass what loader.compile"):
    examples.collect(identity, {})


def test_collect_keeps_the_order_and_measures_exactly_the_examples_asked_for(
    examples, loader):
  measure = loader.compile(identity)
  np.testing.assert_array_equal(examples.collect(measure, {})["x"], X)
  for wanted in (1, 16, 17, 33, NUM, 99):
    found = examples.collect(measure, {}, wanted)["x"]
    np.testing.assert_array_equal(found, X[:wanted])


def test_collect_reads_no_more_batches_than_it_needs(examples, loader):
  batches = list(examples)
  examples._pipeline = iter(batches)
  examples.collect(loader.compile(identity), {}, 17)
  np.testing.assert_array_equal(
      next(examples._pipeline)["x"], batches[2]["x"])


@pytest.mark.parametrize("number", [0, -1, NUM + 1])
def test_asking_for_more_examples_than_there_are_is_an_error(examples, number):
  examples.check_has(None, "num_samples")
  examples.check_has(NUM, "num_samples")
  with pytest.raises(config_lib.ConfigError, match=(
      f"num_samples is {number}; it must be from 1 to {NUM}")):
    examples.check_has(number, "num_samples")


def test_values_that_are_not_finite_are_counted():
  values = np.zeros((4, 2, 3))
  harness.check_finite(values, "images")
  values[1, 0], values[3, 1, 2] = np.nan, np.inf
  with pytest.raises(ValueError, match="2 of 4 images are not finite"):
    harness.check_finite(values, "images")


def test_mean_is_exact_and_names_nested_values(examples, loader):
  measure = loader.compile(
      lambda state, batch, rng: {"a": {"big": 1e8 + batch["x"]},
                                 "odd": batch["x"] % 2 > 0})
  means = examples.mean(measure, {})
  assert set(means) == {"a/big", "odd"}
  assert means["odd"] == 19 / NUM
  assert means["a/big"] == np.mean((np.float32(1e8) + X).astype(np.float64))


def test_draws_differ_by_batch_and_repeat_at_every_evaluation(
    examples, loader):
  measure = loader.compile(draw)
  first, again = (examples.collect(measure, {}) for _ in range(2))
  np.testing.assert_array_equal(first, again)
  assert len(np.unique(first)) == first.size == 2 * NUM


def test_draws_depend_on_the_seed_alone(serve, batch_sharding):
  serve({"x": {"x": X}})
  def evaluate(seed, num_devices=8):
    mesh = jax.sharding.Mesh(
        np.array(jax.devices()[:num_devices]), ("data",),
        axis_types=(AxisType.Auto,))
    loader = harness.Loader(NamedSharding(mesh, P("data")), 16, seed=seed)
    return loader.open({"name": "x"}, "").collect(loader.compile(draw), {})
  reference = evaluate(3)
  np.testing.assert_array_equal(evaluate(3, num_devices=1), reference)
  np.testing.assert_array_equal(evaluate(3, num_devices=2), reference)
  assert not np.isin(evaluate(4), reference).any()


def test_draws_are_not_those_of_training():
  key = jax.random.key(7)
  rng_init, rng_train = jax.random.split(key)
  used = [key, rng_init, rng_train] + [
      jax.random.fold_in(rng_train, step) for step in range(5)]
  drawn = [harness.make_rng(7, number) for number in range(5)]
  used, drawn = ({tuple(np.asarray(jax.random.key_data(key))) for key in keys}
                 for keys in (used, drawn))
  assert len(drawn) == 5 and not drawn & used


def test_equal_functions_and_options_are_compiled_once(serve, loader):
  traces = []
  def measure(state, batch, rng, *, scale):
    traces.append(scale)
    return scale * batch["x"]
  serve({"a": {"x": X}, "b": {"x": -X}})
  a, b = (loader.open({"name": name}, "") for name in "ab")
  for examples, scale, sign in ((a, 2, 2), (b, 2, -2), (a, 3, 3)):
    np.testing.assert_array_equal(
        examples.collect(loader.compile(measure, scale=scale), {}), sign * X)
  assert traces == [2, 3]
  other = loader.with_batch_size(8)
  assert other.compile(measure, scale=2) is loader.compile(measure, scale=2)


def test_equal_data_is_opened_once(monkeypatch, batch_sharding):
  made = []
  def make_evaluation(data, pp, batch_size, *, sharding, check, **kw):
    del check
    made.append((data, pp, batch_size, sharding, kw))
    return types.SimpleNamespace(num_examples=1, class_names=None)
  # In the place of the module, which imports TensorFlow.
  monkeypatch.setattr(
      big_vision, "input_pipeline",
      types.SimpleNamespace(make_evaluation=make_evaluation), raising=False)
  data = config_lib.Config({"name": "x", "split": "test"})
  loader = harness.Loader(batch_sharding, 8)
  first = loader.open(data, "pp")
  assert made == [
      ({"name": "x", "split": "test"}, "pp", 8, batch_sharding, {})]
  assert type(made[0][0]) is dict and not data.unread()
  assert loader.open({"split": "test", "name": "x"}, "pp") is first
  assert loader.with_batch_size(8).open(data, "pp") is first
  assert len(made) == 1
  others = [
      loader.open(dict(data, split="train"), "pp"),
      loader.open(data, "other"),
      loader.with_batch_size(16).open(data, "pp"),
      harness.Loader(batch_sharding, 8).open(data, "pp"),
      harness.Loader(sharding.replicated(batch_sharding.mesh), 8).open(
          data, "pp"),
      harness.Loader(batch_sharding, 8, pp_modules=["ops_mine"]).open(
          data, "pp")]
  assert len({id(examples) for examples in [first, *others]}) == 7
  assert made[-1][-1] == {"pp_modules": ("ops_mine",)}
  assert made[-2][3] == sharding.replicated(batch_sharding.mesh)


def test_collect_bounds_the_batches_in_flight():
  """Batches are asked for only as results come in."""
  live = []
  class Result:
    """Counts as fetched once the host has looked at it."""
    def __init__(self, i):
      self.i = i
      live.append(i)
    def __array__(self, dtype=None, copy=None):
      live.remove(self.i)
      return np.full(2, self.i)
  most = 0
  class Pipeline:
    num_examples = 40
    class_names = None
    def __iter__(self):
      nonlocal most
      for i in range(20):
        most = max(most, len(live))
        yield i
  def measure(state, i, number):
    del state
    assert i == number
    return harness.Measured(values={"x": Result(i)}, mask=np.ones(2))
  values = harness.Examples(Pipeline(), 2).collect(measure, {})
  np.testing.assert_array_equal(values["x"], np.repeat(np.arange(20), 2))
  assert most == harness.NUM_IN_FLIGHT and not live


def test_modules_import_no_tensorflow():
  code = (
      "import sys\n"
      "from big_vision.evaluators import classification, schedule, knn, mean\n"
      "from big_vision.evaluators import fewshot_lsr, by_difficulty\n"
      "assert not {'tensorflow', 'sklearn'} & set(sys.modules)\n")
  subprocess.run([sys.executable, "-c", code], check=True)
