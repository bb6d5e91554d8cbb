"""Tests of pp/distortions.py against PIL and NumPy."""

import math

import numpy as np
from PIL import Image
from PIL import ImageEnhance
from PIL import ImageOps
import pytest
import tensorflow as tf

from big_vision.pp import distortions
from tests import distorted

FACTORS = [0.0, 0.1, 0.5, 1.0, 1.45, 1.9, 3.0]


def _assert_equals_pil(fn, pil_fn, atol=0):
  for image in distorted.images():
    got = fn(tf.constant(image)).numpy()
    expected = np.asarray(pil_fn(Image.fromarray(image)))
    assert got.dtype == np.uint8
    np.testing.assert_allclose(got.astype(int), expected.astype(int), atol=atol)


def test_autocontrast():
  # PIL truncates what it computed in float64.
  _assert_equals_pil(distortions.autocontrast, ImageOps.autocontrast, atol=1)


def test_equalize():
  _assert_equals_pil(distortions.equalize, ImageOps.equalize)
  # 766 pixels below the highest value: 3 to a level, barely.
  image = np.random.default_rng(0).integers(0, 255, (780, 3), np.uint8)
  image[:14] = 255
  image = image.reshape(26, 30, 3)
  expected = ImageOps.equalize(Image.fromarray(image))
  assert np.array_equal(distortions.equalize(tf.constant(image)), expected)


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize(bits):
  _assert_equals_pil(
      lambda image: distortions.posterize(image, bits),
      lambda image: ImageOps.posterize(image, bits))


@pytest.mark.parametrize("threshold", [0, 1, 128, 255, 256])
def test_solarize(threshold):
  _assert_equals_pil(
      lambda image: distortions.solarize(image, threshold),
      lambda image: ImageOps.solarize(image, threshold))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name, enhancer", [
    ("color", ImageEnhance.Color), ("contrast", ImageEnhance.Contrast),
    ("brightness", ImageEnhance.Brightness),
    ("sharpness", ImageEnhance.Sharpness)])
def test_enhancements(name, enhancer, factor):
  _assert_equals_pil(
      lambda image: getattr(distortions, name)(image, factor),
      lambda image: enhancer(image).enhance(factor), atol=1)


def test_contrast_is_about_the_mean():
  image = np.full((4, 4, 3), 100, np.uint8)
  image[2:] = 200
  assert (distortions.contrast(image, 0.0).numpy() == 150).all()


TRANSFORMS = {
    "shear_x": ("shear_x", {"amount": .31}, (1, .31, 0, 0, 1, 0)),
    "shear_x_back": ("shear_x", {"amount": -.17}, (1, -.17, 0, 0, 1, 0)),
    "shear_y": ("shear_y", {"amount": .31}, (1, 0, 0, .31, 1, 0)),
    "translate_x": ("translate", {"x": 4.2}, (1, 0, 4.2, 0, 1, 0)),
    "translate_y": ("translate", {"y": -3.8}, (1, 0, 0, 0, 1, -3.8)),
    "translate_away": ("translate", {"x": 99}, (1, 0, 99, 0, 1, 0)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name):
  function, options, coefficients = TRANSFORMS[name]
  image = distorted.images()[0]
  got = getattr(distortions, function)(tf.constant(image), **options).numpy()
  assert np.array_equal(got, distorted.gather(image, coefficients))
  pil = Image.fromarray(image).transform(
      image.shape[1::-1], Image.Transform.AFFINE, coefficients,
      Image.Resampling.NEAREST, fillcolor=(128, 128, 128))
  assert np.array_equal(got, pil)


@pytest.mark.parametrize("degrees", [-30, 0, 12.3, 90, 180])
def test_rotate(degrees):
  image = distorted.images()[0][:21]  # Odd and square: no pixel is halfway.
  got = distortions.rotate(tf.constant(image), math.radians(degrees)).numpy()
  pil = np.asarray(Image.fromarray(image).rotate(
      degrees, Image.Resampling.NEAREST, fillcolor=(128, 128, 128)))
  # PIL computes in fixed point, so the nearest pixel may be the next one.
  assert (got == pil).all(-1).mean() > .99
  if degrees % 90 == 0:
    assert np.array_equal(got, np.rot90(image, degrees // 90))


def test_rotate_keeps_the_middle():
  image = distorted.images()[0]  # 24 x 21.
  got = distortions.rotate(tf.constant(image), math.pi).numpy()
  assert np.array_equal(got, image[::-1, ::-1])
