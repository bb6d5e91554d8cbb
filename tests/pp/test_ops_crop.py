"""Tests of pp/ops_crop.py against slices of images."""

import numpy as np
import pytest
import tensorflow as tf

from tests import ops


def _coordinates(height, width):
  """Makes an image whose pixels hold their own coordinates."""
  y, x = np.mgrid[:height, :width]
  return np.stack([y, x, 0 * x], -1).astype(np.uint8)


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("kind, options", [
    ("JPEG", {"subsampling": 0}), ("JPEG", {"subsampling": 2}),
    ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {})])
def test_decode_jpeg_and_inception_crop(kind, options, precise):
  contents = ops.encode(ops.noise(64, 47), kind, **options)
  # `reshape` puts both crops at the same position, so their draws agree.
  for size, num in ((None, 100), ((7, 9), 10)):
    common = f"size={size}, area_max=40, antialias=True"
    apart = ops.run_image(
        f"decode(precise={precise})|inception_crop({common})", contents, num)
    at_once = ops.run_image(
        "reshape([])|decode_jpeg_and_inception_crop("
        f"{common}, precise={precise})", contents, num)
    for expected, got in zip(apart, at_once, strict=True):
      assert np.array_equal(got, expected)


def _windows(string, height, width, num):
  """Returns y, x, h, w of the crops that `string` makes, int[num, 4]."""
  image = _coordinates(height, width)
  windows = []
  for crop in ops.run_image(string, image, num):
    (y, x, _), (h, w) = crop[0, 0], crop.shape[:2]
    assert np.array_equal(crop, image[y:y + h, x:x + w]), "a contiguous window"
    windows.append((y, x, h, w))
  return np.array(windows, int)


def test_inception_crop():
  y, x, h, w = _windows("inception_crop(area_min=20)", 120, 120, 500).T
  area, ratio = h * w / 120**2, w / h
  # Sides are rounded, so the bounds hold up to one pixel.
  assert .19 < area.min() < .22 and .9 < area.max() <= 1
  assert .73 < ratio.min() < .77 and 1.3 < ratio.max() < 1.36
  assert .4 < area.mean() < .6 and .97 < ratio.mean() < 1.05
  for begin, side in ((y, h), (x, w)):
    assert begin.min() == 0 and (begin + side).max() == 120
    # Positions are uniform among those that fit.
    free = side < 115
    assert abs((begin[free] / (120 - side[free])).mean() - .5) < .07
  y, x, h, w = _windows("inception_crop(area_max=30)", 100, 150, 300).T
  assert .04 < (h * w).min() / 15000 < .06
  assert .27 < (h * w).max() / 15000 < .31


def test_inception_crop_resizes_its_crop():
  image = ops.noise(31, 43)
  for options in ("", ", method='area'", ", antialias=True"):
    cropped = ops.run(f"inception_crop(area_max=60{options})", image)
    expected = ops.run(f"resize((5, 6){options})", cropped)
    out = ops.run(f"inception_crop((5, 6), area_max=60{options})", image)
    assert np.array_equal(out, expected)


def test_random_crop():
  y, x, h, w = _windows("random_crop((6, 8))", 9, 10, 400).T
  assert set(h) == {6} and set(w) == {8}
  counts = np.unique(np.stack([y, x]), axis=1, return_counts=True)[1]
  # 33 of 400 are expected at each of 12 places; 5 standard deviations are 28.
  assert len(counts) == 12 and abs(counts - 33).max() < 28
  out, shape = ops.run_graph("random_crop(9)", ops.noise(9, 10))
  assert out.shape == tuple(shape) == (9, 9, 3)


@pytest.mark.parametrize("size, rows, columns", [
    ("(5, 4)", slice(2, 7), slice(3, 7)), ("4", slice(2, 6), slice(3, 7)),
    ("", slice(0, 9), slice(0, 9)), ("9", slice(0, 9), slice(0, 9))])
def test_central_crop(size, rows, columns):
  image = ops.noise(9, 10)
  expected = image[rows, columns]
  assert np.array_equal(ops.run(f"central_crop({size})", image), expected)
  out, shape = ops.run_graph(f"central_crop({size})", image)
  assert np.array_equal(out, expected)
  assert tuple(shape) == (expected.shape if size else (None, None, 3))


@pytest.mark.parametrize("op", ["random_crop", "central_crop"])
@pytest.mark.parametrize("size", [(10, 5), (5, 11)])
def test_crops_refuse_small_images(op, size):
  with pytest.raises(tf.errors.InvalidArgumentError, match="9 10 3"):
    ops.run_graph(f"{op}({size})", ops.noise(9, 10))


def test_flip_lr():
  image = ops.noise(4, 5)
  outs = np.stack(ops.run_image("flip_lr", image, 5000))
  flipped = (outs == image[:, ::-1]).all(axis=(1, 2, 3))
  kept = (outs == image).all(axis=(1, 2, 3))
  assert (flipped ^ kept).all()
  assert abs(kept.mean() - .5) < 5 * .5 / 5000**.5  # 5 standard deviations.
