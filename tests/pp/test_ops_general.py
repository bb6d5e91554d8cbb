"""Tests of pp/ops_general.py against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from big_vision import config as config_lib
from big_vision.pp import builder

SEED = np.array([3, 4], np.int32)


def _run(string, **data):
  result = builder.make_preprocess(string)(data)
  return tf.nest.map_structure(lambda x: x.numpy(), result)


def _run_all(string, num, **data):
  """Results for `num` seeds."""
  fn = builder.make_preprocess(string)
  seeds = np.stack([np.arange(num), np.arange(num) ** 2], 1).astype(np.int32)
  dataset = tf.data.Dataset.from_tensor_slices(seeds)
  return list(dataset.map(
      lambda seed: fn({**data, "_seed": seed})).as_numpy_iterator())


def test_value_range():
  image = np.arange(256, dtype=np.uint8)
  out = _run("value_range", image=image)["image"]
  assert out.dtype == np.float32
  np.testing.assert_allclose(out, np.linspace(-1, 1, 256), atol=1e-6)
  out = _run("value_range(0, 1, 55, 155, True)", image=image)["image"]
  np.testing.assert_allclose(
      out, np.clip((np.arange(256.) - 55) / 100, 0, 1), atol=1e-6)
  out = _run("value_range(0, 1, 55, 155)", image=image)["image"]
  np.testing.assert_allclose((out.min(), out.max()), (-.55, 2), atol=1e-6)
  with pytest.raises(config_lib.ConfigError, match="in_min=3.*in_max=3"):
    builder.make_preprocess("value_range(in_min=3, in_max=3)")


def test_value_range_per_channel():
  image = np.random.default_rng(0).uniform(0, 9, (2, 3, 2))
  out = _run("value_range(-2, 2, (0, 1), [4, 9])", image=image)["image"]
  expected = np.stack([
      np.interp(image[..., 0], [-8, 12], [-10, 10]),
      np.interp(image[..., 1], [-7, 17], [-6, 6])], -1)
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_lookup(tmp_path):
  words = np.array([[b"b", b"z"], [b"c c", b"a"]])

  (tmp_path / "lines.txt").write_text("a\nb\nc c\n")
  out = _run(f"lookup('{tmp_path}/lines.txt', key='x')", x=words)["x"]
  assert out.dtype == np.int32
  assert out.tolist() == [[1, -1], [2, 0]]

  (tmp_path / "pairs.txt").write_text("a: 7\nc c: 5\nb: 0")
  out = _run(
      f"lookup('{tmp_path}/pairs.txt', sep=': ', inkey='x', outkey='y')",
      x=words)
  assert out["y"].tolist() == [[0, -1], [5, 7]]
  assert out["x"].tolist() == words.tolist()

  np.savez(tmp_path / "table.npz", fnames=["c c", "b"], other=[b"a"])
  path = tmp_path / "table.npz"
  assert _run(f"lookup('{path}', key='x')", x=words)["x"].tolist() == [
      [1, -1], [0, -1]]
  assert _run(f"lookup('{path}', 'other', key='x')", x=words)["x"].tolist() == [
      [-1, -1], [-1, 0]]


@pytest.mark.parametrize("text, sep, wanted", [
    ("a\na", "None", "twice"), ("a 1\na 2", "' '", "twice"),
    ("a", "' '", "Cannot read"), ("a b", "' '", "'b'")])
def test_lookup_refuses_bad_tables(tmp_path, text, sep, wanted):
  path = tmp_path / "table.txt"
  path.write_text(text)
  with pytest.raises(config_lib.ConfigError, match=wanted) as error:
    builder.make_preprocess(f"lookup('{path}', sep={sep}, key='x')")
  assert str(path) in str(error.value)


@pytest.mark.parametrize("labels, multi, expected", [
    (2, True, [0, 0, 1, 0]),
    (2, False, [0, 0, 1, 0]),
    (-1, True, [0, 0, 0, 0]),
    ([3, 0, 3], True, [1, 0, 0, 1]),
    ([3, -1], True, [0, 0, 0, 1]),
    ([3, 0], False, [[0, 0, 0, 1], [1, 0, 0, 0]]),
    (np.zeros(0, int), True, [0, 0, 0, 0]),
])
def test_onehot(labels, multi, expected):
  expected = np.array(expected)
  for dtype in (np.int64, np.int8):
    out = _run(f"onehot(4, multi={multi})", labels=np.array(labels, dtype))
    assert out["labels"].dtype == np.float32
    assert out["labels"].tolist() == expected.tolist()
  out = _run(
      f"onehot(4, 'x', 'y', multi={multi}, on=.7, off=.1)", x=np.array(labels))
  np.testing.assert_allclose(out["y"], np.where(expected, .7, .1), atol=1e-7)
  assert np.array_equal(out["x"], labels)


@pytest.mark.parametrize("labels", [4, -2, [0, 4]])
def test_onehot_refuses_unknown_classes(labels):
  fn = builder.make_preprocess("onehot(4)")
  with pytest.raises(tf.errors.InvalidArgumentError, match=r"not in \[-1, 4\)"):
    fn({"labels": labels})
  dataset = tf.data.Dataset.from_tensors({"labels": labels}).map(fn)
  with pytest.raises(tf.errors.InvalidArgumentError, match=r"not in \[-1, 4\)"):
    next(iter(dataset))


@pytest.mark.parametrize("labels", [np.float32(1), tf.ragged.constant([[1]])])
def test_onehot_refuses_other_types(labels):
  with pytest.raises(ValueError, match="'labels' must hold integers"):
    builder.make_preprocess("onehot(4)")({"labels": labels})


def test_keep():
  assert _run("keep('b', 'c')", a=1, b=2, c=3) == {"b": 2, "c": 3}
  with pytest.raises(ValueError, match="no 'lable'.*mean 'label'"):
    _run("keep('lable')", label=1)


def test_drop():
  assert _run("drop('b', 'c')", a=1, b=2, c=3) == {"a": 1}
  with pytest.raises(ValueError, match="no 'lable'.*mean 'label'"):
    _run("drop('lable')", label=1)


def test_copy():
  assert _run("copy('a', 'b')", a=1) == {"a": 1, "b": 1}
  out = builder.make_preprocess("copy('a', 'b')")({"a": {"c": {"d": 1}}})
  assert out["b"]["c"]["d"].numpy() == 1
  assert out["a"] is not out["b"]
  assert out["a"]["c"] is not out["b"]["c"]


def test_reshape():
  x = np.arange(6)
  assert np.array_equal(
      _run("reshape((2, -1), key='x')", x=x)["x"], x.reshape(2, 3))


@pytest.mark.parametrize("where, before", [
    ("after", 0), ("before", 1), ("both", .5)])
def test_pad_to_shape(where, before):
  x = np.arange(1, 7, dtype=np.int16).reshape(2, 3)
  string = f"pad_to_shape((None, 6), -1, '{where}', key='x')"
  start = int(3 * before)
  expected = np.full((2, 6), -1)
  expected[:, start:start + 3] = x
  out = _run(string, x=x)["x"]
  assert out.dtype == np.int16
  assert np.array_equal(out, expected)
  assert np.array_equal(_run("pad_to_shape((2, 3), key='x')", x=x)["x"], x)


def test_pad_to_shape_of_rows():
  ragged = tf.ragged.constant([[1, 2, 3], [], [4]])
  out = _run("pad_to_shape((4, 3), 9, key='x')", x=ragged)["x"]
  assert out.tolist() == [[1, 2, 3], [9] * 3, [4, 9, 9], [9] * 3]
  with pytest.raises(ValueError, match="'before'"):
    _run("pad_to_shape((4, 3), where='before', key='x')", x=ragged)


def test_pad_to_shape_refuses_what_does_not_fit():
  with pytest.raises(tf.errors.InvalidArgumentError, match=r"(?s)3.*larger.*2"):
    _run("pad_to_shape([2], key='x')", x=[1, 2, 3])
  with pytest.raises(ValueError, match=r"\(3,\).*\[2, 2\]"):
    _run("pad_to_shape([2, 2], key='x')", x=[1, 2, 3])
  with pytest.raises(config_lib.ConfigError, match="'middle'"):
    builder.make_preprocess("pad_to_shape([2], where='middle')")


def test_flatten():
  data = {"a": {"b": 1, "c": {"d": 2}}, "e": {"f": 3}, "g": 4}
  assert _run("flatten", **data) == {"a/b": 1, "a/c/d": 2, "e/f": 3, "g": 4}
  assert _run("flatten(['a'])", **data) == {
      "a/b": 1, "a/c/d": 2, "e": {"f": 3}, "g": 4}
  with pytest.raises(ValueError, match="no 'h'"):
    _run("flatten(['h'])", **data)


def test_setdefault():
  assert _run("setdefault('x', [1, 2])", y=0)["x"].tolist() == [1, 2]
  assert _run("setdefault('x', 3)", x=np.float32(0))["x"] == 0
  empty = _run("setdefault('x', 3)", x=np.zeros((2, 0), np.float32))["x"]
  assert empty == 3 and empty.dtype == np.float32
  assert _run("setdefault('x', 'y')", x=np.array(b""))["x"] == b""
  with pytest.raises(ValueError, match="'x' is a RaggedTensor"):
    _run("setdefault('x', 3)", x=tf.ragged.constant([[1]]))


def test_setdefault_of_unknown_length():
  fn = builder.make_preprocess("setdefault('x', [7, 7])")
  dataset = tf.data.Dataset.from_generator(
      lambda: [[], [5]], output_signature=tf.TensorSpec([None], tf.int64))
  out = dataset.map(lambda x: fn({"x": x})["x"]).as_numpy_iterator()
  assert [x.tolist() for x in out] == [[7, 7], [5]]


def test_choice():
  x, y = np.arange(10), np.arange(20).reshape(10, 2) + 50
  for out in _run_all("choice(4, key=['x', 'y'])", 20, x=x, y=y):
    chosen = out["x"]
    assert chosen.shape == (4,)
    assert (np.diff(chosen) > 0).all(), "keeps the order, none twice"
    assert np.array_equal(out["y"], y[chosen]), "same places for all keys"


def test_choice_is_uniform():
  outs = _run_all("choice(2, key='x')", 1000, x=np.arange(5))
  counts = np.bincount(np.concatenate([out["x"] for out in outs]))
  # 400 expected of each; 6 standard deviations are 93.
  assert (abs(counts - 400) < 93).all()
  assert len({tuple(out["x"]) for out in outs}) == 10, "all pairs appear"


def test_choice_single_and_ranges_and_outkey():
  x = np.arange(12).reshape(6, 2)
  outs = _run_all("choice('single', key='x')", 50, x=x)
  assert {tuple(out["x"]) for out in outs} == set(map(tuple, x.tolist()))
  outs = _run_all("choice([1, 3], inkey='x', outkey='y')", 50, x=x)
  assert {len(out["y"]) for out in outs} == {1, 2, 3}
  assert all(len(out["x"]) == 6 for out in outs)


def test_choice_of_fewer():
  x = np.arange(3)
  assert _run("choice(5, key='x', fewer_ok=True)", x=x, _seed=SEED)[
      "x"].tolist() == [0, 1, 2]
  for string, data in [
      ("choice(4, key='x')", {"x": x}),
      ("choice('single', key='x', fewer_ok=True)", {"x": x[:0]}),
      ("choice(2, key=('x', 'y'))", {"x": x, "y": x[:2]})]:
    with pytest.raises(tf.errors.InvalidArgumentError, match="Cannot choose"):
      _run(string, **data, _seed=SEED)


def test_choice_of_rows():
  ragged = tf.ragged.constant([[1], [2, 3], [], [4]])
  out = builder.make_preprocess("choice(3, key='x')")(
      {"x": ragged, "_seed": SEED})["x"].to_list()
  rows = [row for row in ragged.to_list() if row in out]
  assert out == rows and len(out) == 3


@pytest.mark.parametrize("args", [
    "2", "2, inkey=['a', 'b'], outkey='c'", "[3, 2], key='x'", "-1, key='x'"])
def test_choice_refuses_bad_arguments(args):
  with pytest.raises(config_lib.ConfigError, match="choice"):
    builder.make_preprocess(f"choice({args})")
