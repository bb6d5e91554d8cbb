"""Tests of pp/ops_entries.py."""

import numpy as np
import pytest
import tensorflow as tf

from big_vision import config as config_lib
from big_vision.pp import builder
from tests import ops


def test_keep():
  assert ops.apply("keep('b', 'c')", a=1, b=2, c=3) == {"b": 2, "c": 3}
  with pytest.raises(ValueError, match="no 'lable'.*mean 'label'"):
    ops.apply("keep('lable')", label=1)


def test_drop():
  assert ops.apply("drop('b', 'c')", a=1, b=2, c=3) == {"a": 1}
  with pytest.raises(ValueError, match="no 'lable'.*mean 'label'"):
    ops.apply("drop('lable')", label=1)


def test_copy():
  assert ops.apply("copy('a', 'b')", a=1) == {"a": 1, "b": 1}
  out = builder.make_preprocess("copy('a', 'b')")({"a": {"c": {"d": 1}}})
  assert out["b"]["c"]["d"].numpy() == 1
  assert out["a"] is not out["b"]
  assert out["a"]["c"] is not out["b"]["c"]


def test_flatten():
  data = {"a": {"b": 1, "c": {"d": 2}}, "e": {"f": 3}, "g": 4}
  assert ops.apply("flatten", **data) == {
      "a/b": 1, "a/c/d": 2, "e/f": 3, "g": 4}
  assert ops.apply("flatten(['a'])", **data) == {
      "a/b": 1, "a/c/d": 2, "e": {"f": 3}, "g": 4}
  with pytest.raises(ValueError, match="no 'h'"):
    ops.apply("flatten(['h'])", **data)


def test_setdefault():
  assert ops.apply("setdefault('x', [1, 2])", y=0)["x"].tolist() == [1, 2]
  assert ops.apply("setdefault('x', 3)", x=np.float32(0))["x"] == 0
  empty = ops.apply("setdefault('x', 3)", x=np.zeros((2, 0), np.float32))["x"]
  assert empty == 3 and empty.dtype == np.float32
  assert ops.apply("setdefault('x', 'y')", x=np.array(b""))["x"] == b""
  with pytest.raises(ValueError, match="'x' is a RaggedTensor"):
    ops.apply("setdefault('x', 3)", x=tf.ragged.constant([[1]]))


def test_setdefault_of_unknown_length():
  fn = builder.make_preprocess("setdefault('x', [7, 7])")
  dataset = tf.data.Dataset.from_generator(
      lambda: [[], [5]], output_signature=tf.TensorSpec([None], tf.int64))
  out = dataset.map(lambda x: fn({"x": x})["x"]).as_numpy_iterator()
  assert [x.tolist() for x in out] == [[7, 7], [5]]


def test_choice():
  x, y = np.arange(10), np.arange(20).reshape(10, 2) + 50
  for out in ops.run_all("choice(4, key=['x', 'y'])", 20, x=x, y=y):
    chosen = out["x"]
    assert chosen.shape == (4,)
    assert (np.diff(chosen) > 0).all(), "in order, without repetition"
    assert np.array_equal(out["y"], y[chosen]), "the same for all keys"


def test_choice_is_uniform():
  outs = ops.run_all("choice(2, key='x')", 1000, x=np.arange(5))
  counts = np.bincount(np.concatenate([out["x"] for out in outs]))
  # 400 expected of each; 6 standard deviations are 93.
  assert (abs(counts - 400) < 93).all()
  assert len({tuple(out["x"]) for out in outs}) == 10, "all pairs appear"


def test_choice_single_and_ranges_and_outkey():
  x = np.arange(12).reshape(6, 2)
  outs = ops.run_all("choice('single', key='x')", 50, x=x)
  assert {tuple(out["x"]) for out in outs} == set(map(tuple, x.tolist()))
  outs = ops.run_all("choice([1, 3], inkey='x', outkey='y')", 50, x=x)
  assert {len(out["y"]) for out in outs} == {1, 2, 3}
  assert all(len(out["x"]) == 6 for out in outs)


def test_choice_where_there_are_fewer():
  x = np.arange(3)
  assert ops.apply("choice(5, key='x', fewer_ok=True)", x=x, _seed=ops.SEED)[
      "x"].tolist() == [0, 1, 2]
  for string, data in [
      ("choice(4, key='x')", {"x": x}),
      ("choice('single', key='x', fewer_ok=True)", {"x": x[:0]}),
      ("choice(2, key=('x', 'y'))", {"x": x, "y": x[:2]})]:
    with pytest.raises(tf.errors.InvalidArgumentError, match="Cannot choose"):
      ops.apply(string, **data, _seed=ops.SEED)


def test_choice_of_rows_of_a_ragged_tensor():
  ragged = tf.ragged.constant([[1], [2, 3], [], [4]])
  out = builder.make_preprocess("choice(3, key='x')")(
      {"x": ragged, "_seed": ops.SEED})["x"].to_list()
  rows = [row for row in ragged.to_list() if row in out]
  assert out == rows and len(out) == 3


@pytest.mark.parametrize("args", [
    "2", "2, inkey=['a', 'b'], outkey='c'", "[3, 2], key='x'", "-1, key='x'"])
def test_choice_refuses_bad_arguments(args):
  with pytest.raises(config_lib.ConfigError, match="choice"):
    builder.make_preprocess(f"choice({args})")
