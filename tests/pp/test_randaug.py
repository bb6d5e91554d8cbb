"""Tests of pp/randaug.py: the distortions, their strengths and the draws."""

import numpy as np
from PIL import Image
from PIL import ImageEnhance
from PIL import ImageOps
import pytest
import scipy.ndimage
import tensorflow as tf

from big_vision import config as config_lib
from big_vision.pp import builder
from big_vision.pp import distortions
from big_vision.pp import randaug
from tests import distorted
from tests import ops


def _changes(magnitude, sign=1.0, legacy=False):
  make = randaug.legacy_changes if legacy else randaug.changes
  return make(
      magnitude, tf.constant(sign, tf.float32), tf.constant([5, 6]))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 5, 3), (5, 1, 3)])
def test_tiny_images(shape, legacy):
  image = tf.constant(distorted.images()[0][:shape[0], :shape[1]])
  for name, fn in _changes(7, legacy=legacy).items():
    assert fn(image).shape == shape, name
  assert np.array_equal(distortions.sharpness(image, 1.9), image), "all border"


def test_the_changes_are_those_of_the_paper():
  assert list(_changes(10)) == [
      "identity", "autocontrast", "equalize", "rotate", "solarize", "color",
      "posterize", "contrast", "brightness", "sharpness", "shear_x", "shear_y",
      "translate_x", "translate_y"]


def test_magnitude_zero_changes_nothing():
  image = distorted.images()[0]
  for name, fn in _changes(0).items():
    if name not in ("autocontrast", "equalize"):
      assert np.array_equal(fn(tf.constant(image)), image), name


def test_magnitude_ten_reaches_the_ends_of_the_ranges():
  image = distorted.images()[0]
  pil = Image.fromarray(image)
  height, width, _ = image.shape
  def affine(*coefficients):
    return distorted.gather(image, coefficients)
  for sign in (-1, 1):
    factor = 1 + .9 * sign
    expected = {
        "solarize": ImageOps.invert(pil),
        "posterize": ImageOps.posterize(pil, 4),
        "color": ImageEnhance.Color(pil).enhance(factor),
        "contrast": ImageEnhance.Contrast(pil).enhance(factor),
        "brightness": ImageEnhance.Brightness(pil).enhance(factor),
        "sharpness": ImageEnhance.Sharpness(pil).enhance(factor),
        "shear_x": affine(1, .3 * sign, 0, 0, 1, 0),
        "shear_y": affine(1, 0, 0, .3 * sign, 1, 0),
        "translate_x": affine(1, 0, sign * 150 / 331 * width, 0, 1, 0),
        "translate_y": affine(1, 0, 0, 0, 1, sign * 150 / 331 * height),
    }
    changes = _changes(10, sign)
    for name, wanted in expected.items():
      np.testing.assert_allclose(
          changes[name](tf.constant(image)).numpy().astype(int),
          np.asarray(wanted).astype(int), atol=1, err_msg=name)
    square = image[:21]
    rotated = Image.fromarray(square).rotate(
        30 * sign, Image.Resampling.NEAREST, fillcolor=(128,) * 3)
    same = changes["rotate"](tf.constant(square)) == np.asarray(rotated)
    assert same.numpy().mean() > .98


@pytest.mark.parametrize("magnitude", [15, 20, 30, 100])
def test_magnitudes_above_ten_stay_defined(magnitude):
  image = distorted.images()[0]
  for sign in (-1, 1):
    changes = _changes(magnitude, sign)
    assert np.array_equal(changes["solarize"](tf.constant(image)), 255 - image)
    bits = max(1, round(8 - .4 * magnitude))
    assert np.array_equal(
        changes["posterize"](tf.constant(image)),
        image // 2**(8 - bits) * 2**(8 - bits))
  black = _changes(magnitude, -1)["brightness"](tf.constant(image)).numpy()
  assert black.max() == 0


def test_legacy_changes():
  image = distorted.images()[0]
  changes = _changes(10, legacy=True)
  assert sorted(changes) == [
      "autocontrast", "brightness", "color", "contrast", "cutout", "equalize",
      "invert", "posterize", "rotate", "sharpness", "shear_x", "shear_y",
      "solarize", "solarize_add", "translate_x", "translate_y"]
  got = {name: fn(tf.constant(image)).numpy() for name, fn in changes.items()}
  assert np.array_equal(got["invert"], 255 - image)
  assert np.array_equal(got["posterize"], image & 0xf0)
  assert np.array_equal(got["solarize"], 255 - image), "256 wraps to 0"
  assert np.array_equal(got["solarize_add"], np.where(
      image < 128, np.minimum(image.astype(int) + 110, 255), image))
  assert np.array_equal(
      got["brightness"], np.minimum(image * np.float32(1.9), 255).astype(int))
  luma = image @ np.array([.2989, .587, .114])
  expected = luma[..., None] + 1.9 * (image - luma[..., None])
  np.testing.assert_allclose(
      got["color"], np.clip(expected, 0, 255), atol=1.5)
  # 100 pixels move an image of this size out of sight.
  assert (got["translate_x"] == 128).all() and (got["translate_y"] == 128).all()
  assert np.array_equal(got["equalize"], ImageOps.equalize(
      Image.fromarray(image)))


@pytest.mark.parametrize("size, mean", [((24, 21), 1), ((256, 260), 255)])
def test_legacy_contrast_is_about_the_number_of_pixels(size, mean):
  image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
  got = _changes(4, legacy=True)["contrast"](tf.constant(image)).numpy()
  expected = np.clip(mean + .82 * (image - float(mean)), 0, 255)
  np.testing.assert_allclose(got, expected, atol=1)


@pytest.mark.parametrize("magnitude, threshold, bits", [
    (1, 25, 1), (2, 51, 1), (3, 76, 1), (5, 128, 2), (9, 230, 3),
    (15, 128, 6), (20, 0, 8), (25, 128, 1)])
def test_legacy_thresholds_and_bits(magnitude, threshold, bits):
  image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
  changes = _changes(magnitude, legacy=True)
  assert np.array_equal(
      changes["solarize"](tf.constant(image)),
      np.where(image < threshold, image, 255 - image))
  assert np.array_equal(
      changes["posterize"](tf.constant(image)),
      image >> (8 - bits) << (8 - bits))
  # As TensorFlow shifts by the uint8 that 8 - int(.4 m) becomes.
  shift = tf.cast(8 - int(magnitude / 10 * 4), tf.uint8)
  shifted = tf.bitwise.left_shift(tf.bitwise.right_shift(image, shift), shift)
  assert np.array_equal(changes["posterize"](tf.constant(image)), shifted)


def test_legacy_sharpness_truncates():
  image = distorted.images()[0]
  kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
  blurred = np.stack([
      scipy.ndimage.convolve(image[..., c].astype(float), kernel)
      for c in range(3)], -1)
  blurred = np.floor(blurred + 1e-6)
  expected = np.clip(blurred + 1.9 * (image - blurred), 0, 255)
  expected[[0, -1]], expected[:, [0, -1]] = image[[0, -1]], image[:, [0, -1]]
  got = _changes(10, legacy=True)["sharpness"](tf.constant(image)).numpy()
  np.testing.assert_allclose(got, expected, atol=1)
  assert -.55 < (got - expected).mean() < 0, "truncated, not rounded"


@pytest.mark.parametrize("sign", [-1, 1])
def test_legacy_shear_starts_in_the_first_pixel(sign):
  image = distorted.images()[0]
  out = _changes(7, sign, legacy=True)["shear_x"](tf.constant(image)).numpy()
  assert np.array_equal(out[0], image[0])
  y, x = np.mgrid[:24, :21]
  from_x = np.round(x + sign * .21 * y).astype(int)
  inside = (from_x >= 0) & (from_x < 21)
  expected = np.where(
      inside[..., None], image[y, np.clip(from_x, 0, 20)], 128)
  assert np.array_equal(out, expected)
  out = _changes(7, sign, legacy=True)["shear_y"](
      tf.constant(image.transpose(1, 0, 2))).numpy()
  assert np.array_equal(out, expected.transpose(1, 0, 2))


def test_legacy_cutout():
  image = np.zeros((40, 60, 3), np.uint8)
  heights, widths = set(), set()
  for i in range(40):
    fn = randaug.legacy_changes(2.5, 1., tf.constant([i, 1]))["cutout"]
    out = fn(tf.constant(image)).numpy()
    assert set(np.unique(out)) == {0, 128}
    rows, columns, _ = np.nonzero(out)
    heights.add(np.ptp(rows) + 1)
    widths.add(np.ptp(columns) + 1)
    assert rows.size == (np.ptp(rows) + 1) * (np.ptp(columns) + 1) * 3
  # 2 * int(4 * 2.5), less at the border.
  assert max(heights) == max(widths) == 20
  assert 10 <= min(heights) < 20


def test_randaug():
  """Every distortion is drawn in both directions, about equally often."""
  image = distorted.images()[0]
  candidates = {
      (name, sign): fn(tf.constant(image)).numpy()
      for sign in (-1, 1) for name, fn in _changes(6, sign).items()}
  counts = dict.fromkeys(candidates, 0)
  for out in ops.run_image("randaug(1, 6)", image, 700):
    found = [
        key for key, candidate in candidates.items()
        if abs(out.astype(int) - candidate).max() <= 1]
    assert found
    for key in found:
      counts[key] += 1 / len(found)
  # 25 draws of each are expected, or 50 of those without a direction, which
  # count half for either sign; the bounds are 5 standard deviations away.
  assert 2 < min(counts.values()) and max(counts.values()) < 52


def test_randaug_layers():
  image = distorted.images()[0]
  for out in ops.run_image("randaug(0)", image, 3):
    assert np.array_equal(out, image)
  # Five layers are all the identity once in 500,000 draws.
  assert all((out != image).any() for out in ops.run_image(
      "randaug(5, 9)", image, 20))
  assert len({out.tobytes() for out in ops.run_image(
      "randaug(2, 9)", image, 50)}) > 30


def test_randaug_legacy():
  image = distorted.images()[0]
  fixed = {
      name: fn(tf.constant(image)).numpy()
      for name, fn in _changes(8, legacy=True).items()
      if name in ("invert", "contrast", "solarize_add", "posterize")}
  outs = ops.run_image("randaug(1, 8, legacy=True)", image, 150)
  for name, wanted in fixed.items():
    assert any(np.array_equal(out, wanted) for out in outs), name


def test_randaug_refuses_bad_magnitudes_and_dtypes():
  with pytest.raises(config_lib.ConfigError, match="magnitude=-1"):
    builder.make_preprocess("randaug(2, -1)")
  fn = builder.make_preprocess("value_range|randaug")
  with pytest.raises(ValueError, match=r"uint8\[h, w, 3\].*float32"):
    fn({"image": distorted.images()[0], "_seed": ops.SEED})
