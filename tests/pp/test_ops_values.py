"""Tests of pp/ops_values.py against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from big_vision import config as config_lib
from big_vision.pp import builder
from tests import ops


def test_value_range():
  image = np.arange(256, dtype=np.uint8)
  out = ops.apply("value_range", image=image)["image"]
  assert out.dtype == np.float32
  np.testing.assert_allclose(out, np.linspace(-1, 1, 256), atol=1e-6)
  out = ops.apply("value_range(0, 1, 55, 155, True)", image=image)["image"]
  np.testing.assert_allclose(
      out, np.clip((np.arange(256.) - 55) / 100, 0, 1), atol=1e-6)
  out = ops.apply("value_range(0, 1, 55, 155)", image=image)["image"]
  np.testing.assert_allclose((out.min(), out.max()), (-.55, 2), atol=1e-6)
  with pytest.raises(config_lib.ConfigError, match="in_min=3.*in_max=3"):
    builder.make_preprocess("value_range(in_min=3, in_max=3)")


def test_value_range_per_channel():
  image = np.random.default_rng(0).uniform(0, 9, (2, 3, 2))
  out = ops.apply("value_range(-2, 2, (0, 1), [4, 9])", image=image)["image"]
  expected = np.stack([
      np.interp(image[..., 0], [-8, 12], [-10, 10]),
      np.interp(image[..., 1], [-7, 17], [-6, 6])], -1)
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_reshape():
  x = np.arange(6)
  assert np.array_equal(
      ops.apply("reshape((2, -1), key='x')", x=x)["x"], x.reshape(2, 3))


@pytest.mark.parametrize("where, before", [
    ("after", 0), ("before", 1), ("both", .5)])
def test_pad_to_shape(where, before):
  x = np.arange(1, 7, dtype=np.int16).reshape(2, 3)
  string = f"pad_to_shape((None, 6), -1, '{where}', key='x')"
  start = int(3 * before)
  expected = np.full((2, 6), -1)
  expected[:, start:start + 3] = x
  out = ops.apply(string, x=x)["x"]
  assert out.dtype == np.int16
  assert np.array_equal(out, expected)
  assert np.array_equal(ops.apply("pad_to_shape((2, 3), key='x')", x=x)["x"], x)


def test_pad_to_shape_pads_the_rows_of_a_ragged_tensor():
  ragged = tf.ragged.constant([[1, 2, 3], [], [4]])
  out = ops.apply("pad_to_shape((4, 3), 9, key='x')", x=ragged)["x"]
  assert out.tolist() == [[1, 2, 3], [9] * 3, [4, 9, 9], [9] * 3]
  with pytest.raises(ValueError, match="'before'"):
    ops.apply("pad_to_shape((4, 3), where='before', key='x')", x=ragged)


def test_pad_to_shape_refuses_values_that_do_not_fit():
  with pytest.raises(tf.errors.InvalidArgumentError, match=r"(?s)3.*larger.*2"):
    ops.apply("pad_to_shape([2], key='x')", x=[1, 2, 3])
  with pytest.raises(ValueError, match=r"\(3,\).*\[2, 2\]"):
    ops.apply("pad_to_shape([2, 2], key='x')", x=[1, 2, 3])
  with pytest.raises(config_lib.ConfigError, match="'middle'"):
    builder.make_preprocess("pad_to_shape([2], where='middle')")
