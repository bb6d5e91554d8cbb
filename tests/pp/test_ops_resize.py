"""Tests of pp/ops_resize.py against definitions in NumPy, and PIL."""

import numpy as np
from PIL import Image
import pytest

from big_vision import config as config_lib
from big_vision.pp import builder
from tests import ops


def _triangle(image, size, antialias):
  """Resizes bilinearly by the definition, in float64."""
  out = image.astype(np.float64)
  for axis in (0, 1):
    old, new = image.shape[axis], size[axis]
    scale = old / new
    radius = max(1, scale) if antialias else 1
    weights = np.zeros((new, old))
    for i in range(new):
      middle = (i + .5) * scale - .5
      if antialias:
        weights[i] = np.maximum(0, 1 - abs(np.arange(old) - middle) / radius)
        weights[i] /= weights[i].sum()
      else:
        low = int(np.floor(middle))
        for place, weight in ((low, 1 - middle + low), (low + 1, middle - low)):
          weights[i, np.clip(place, 0, old - 1)] += weight
    out = np.moveaxis(np.tensordot(weights, out, (1, axis)), 0, axis)
  return out


def _assert_truncated(got, exact):
  """Asserts that `got` is `exact` rounded down."""
  assert got.dtype == np.uint8
  sure = abs(exact - np.round(exact)) > 1e-3
  assert np.array_equal(got[sure], np.floor(exact[sure]))
  assert sure.mean() > .5
  assert abs(got - exact).max() < 1.01


@pytest.mark.parametrize("size", [(3, 5), (20, 30), (13, 4), (11, 17)])
@pytest.mark.parametrize("antialias", [False, True])
def test_resize(size, antialias):
  image = ops.noise(11, 17)
  exact = _triangle(image, size, antialias)
  string = f"resize({size}, antialias={antialias})"
  out, shape = ops.run_graph(string, image)
  assert tuple(shape) == (*size, 3)
  if size == (11, 17):
    assert np.array_equal(out, image)
  else:
    _assert_truncated(out, exact)
  out = ops.run(string, image.astype(np.float32))
  assert out.dtype == np.float32
  np.testing.assert_allclose(out, exact, atol=1e-3)


def test_resize_truncates_by_half_a_grey_level():
  image = ops.noise(64, 64)
  out = ops.run("resize(47)", image)
  bias = (out - _triangle(image, (47, 47), False)).mean()
  assert -.51 < bias < -.48


def test_resize_other_methods():
  image = ops.noise(12, 18)
  out = ops.run("resize((4, 6), 'area')", image)
  exact = image.reshape(4, 3, 6, 3, 3).mean((1, 3))
  assert abs(out - np.floor(exact + 1e-3)).max() == 0
  out = ops.run("resize((5, 7), 'nearest')", image)
  y, x = np.arange(5) * 12 // 5, np.arange(7) * 18 // 7
  y, x = ((np.arange(n) + .5) * m / n for n, m in ((5, 12), (7, 18)))
  assert np.array_equal(out, image[y.astype(int)[:, None], x.astype(int)])
  for method in ("gaussian", "mitchellcubic", "lanczos3", "lanczos5"):
    assert ops.run(f"resize(6, '{method}')", image).shape == (6, 6, 3)


@pytest.mark.parametrize("width", [24, 25, 27, 31])
def test_resize_bicubic_does_not_wrap(width):
  image = np.zeros((1, 8, 1), np.uint8)
  image[:, 2::4] = image[:, 3::4] = 255  # 0 0 255 255 0 0 255 255.
  out = ops.run(f"resize((1, {width}), 'bicubic')", image)[..., 0]
  exact = Image.fromarray(image[..., 0].astype(np.float32)).resize(
      (width, 1), Image.Resampling.BICUBIC)
  exact = np.asarray(exact)
  assert exact.min() < -5 and exact.max() > 260, "the exact result overshoots"
  np.testing.assert_allclose(out, np.clip(exact, 0, 255), atol=1)


@pytest.mark.parametrize("op, size, expected", [
    ("resize_small", 5, (5, 8)), ("resize_small", 22, (22, 34)),
    ("resize_long", 9, (6, 9)), ("resize_long", 34, (22, 34)),
    ("resize_long", 1, (1, 1))])
def test_resize_sides(op, size, expected):
  # 17 * 5 / 11 is 7.7, 11 * 9 / 17 is 5.8.
  for image in (ops.noise(11, 17), ops.noise(17, 11)):
    if image.shape[0] == 17:
      expected = expected[::-1]
    out = ops.run(f"{op}({size})", image)
    assert out.shape == (*expected, 3)
    graph, shape = ops.run_graph(f"{op}({size})", image)
    assert np.array_equal(out, graph)
    assert tuple(shape) == (None, None, 3)


def test_resize_small():
  image = ops.noise(12, 18)
  out = ops.run("resize_small(4)", image)  # Area, by default.
  exact = image.reshape(4, 3, 6, 3, 3).mean((1, 3))
  assert np.array_equal(out, np.floor(exact + 1e-3))
  _assert_truncated(
      ops.run("resize_small(5, 'bilinear')", image),
      _triangle(image, (5, 8), False))  # 7.5 is rounded to even, 8.


def test_resize_long():
  image = ops.noise(12, 18)
  _assert_truncated(
      ops.run("resize_long(7, 'bilinear')", image),
      _triangle(image, (5, 7), True))  # Antialiased, by default.
  # The shorter side is at least 1.
  assert ops.run("resize_long(4)", ops.noise(1, 18)).shape == (1, 4, 3)


@pytest.mark.parametrize("string", [
    "resize_small((4, 5))", "resize_long(0)", "resize_long(3, 'liner')",
    "resize(1.5)", "resize(None)", "random_crop(-1)", "central_crop((1, 2, 3))",
    "inception_crop('a')", "inception_crop(4, method='b')"])
def test_sizes_and_methods_are_checked_when_built(string):
  with pytest.raises(config_lib.ConfigError):
    builder.make_preprocess(string)
