"""Tests of pp/ops_labels.py against tables written by hand."""

import os

import deadline
import numpy as np
import pytest
import tensorflow as tf

from big_vision import config as config_lib
from big_vision.pp import builder
from tests import ops


def test_lookup(tmp_path):
  words = np.array([[b"b", b"z"], [b"c c", b"a"]])

  (tmp_path / "lines.txt").write_text("a\nb\nc c\n")
  out = ops.apply(f"lookup('{tmp_path}/lines.txt', key='x')", x=words)["x"]
  assert out.dtype == np.int32
  assert out.tolist() == [[1, -1], [2, 0]]

  (tmp_path / "pairs.txt").write_text("a: 7\nc c: 5\nb: 0")
  out = ops.apply(
      f"lookup('{tmp_path}/pairs.txt', sep=': ', inkey='x', outkey='y')",
      x=words)
  assert out["y"].tolist() == [[0, -1], [5, 7]]
  assert out["x"].tolist() == words.tolist()

  np.savez(tmp_path / "table.npz", fnames=["c c", "b"], other=[b"a"])
  path = tmp_path / "table.npz"
  assert ops.apply(f"lookup('{path}', key='x')", x=words)["x"].tolist() == [
      [1, -1], [0, -1]]
  out = ops.apply(f"lookup('{path}', 'other', key='x')", x=words)["x"]
  assert out.tolist() == [[-1, -1], [-1, 0]]


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
    out = ops.apply(f"onehot(4, multi={multi})", labels=np.array(labels, dtype))
    assert out["labels"].dtype == np.float32
    assert out["labels"].tolist() == expected.tolist()
  out = ops.apply(
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


def test_a_table_in_a_pipe_is_refused(tmp_path):
  """Reading it would wait for ever."""
  for name in "lines.txt", "names.npz":
    os.mkfifo(tmp_path / name)
    with deadline.within(20), pytest.raises(ValueError, match="but a pipe"):
      ops.apply(f"lookup('{tmp_path}/{name}', key='x')", x=np.array(b"a"))
