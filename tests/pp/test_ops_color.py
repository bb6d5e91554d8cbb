"""Tests of pp/ops_color.py against NumPy and colorsys."""

import colorsys

import numpy as np
import pytest

from big_vision import config as config_lib
from big_vision.pp import builder
from tests import ops


def test_vgg_value_range():
  image = ops.noise(4, 5)
  out = ops.run("vgg_value_range", image)
  expected = (image / 255 - [.485, .456, .406]) / [.229, .224, .225]
  assert out.dtype == np.float32
  np.testing.assert_allclose(out, expected, atol=1e-5)
  out = ops.run("vgg_value_range([1, 2, 3.], [4., 5, 6])", image)
  np.testing.assert_allclose(out, (image - [1, 2, 3.]) / [4, 5, 6], atol=1e-5)


def test_clip_value_range():
  image = ops.noise(4, 5)
  mean = [.48145466, .4578275, .40821073]
  std = [.26862954, .26130258, .27577711]
  np.testing.assert_allclose(
      ops.run("clip_value_range", image), (image / 255 - mean) / std, atol=1e-5)


def _grey(image):
  return image @ [.299, .587, .114]


def test_color_jitter():
  """Two changes occur in both orders; clipping tells the orders apart."""
  ramp = np.arange(0, 256, 5)
  image = np.tile(ramp[None, :, None], (2, 1, 3)).astype(np.uint8)
  b, c = np.meshgrid(np.linspace(.5, 1.5, 101), np.linspace(.1, 1.9, 181))
  def brighten(x):
    return np.clip(x * b[..., None], 0, 255)
  def spread(x):
    mean = x.mean(-1, keepdims=True)
    return np.clip(mean + c[..., None] * (x - mean), 0, 255)
  candidates = np.stack(
      [spread(brighten(ramp)), brighten(spread(np.float64(ramp)[None, None]))])
  firsts = set()
  for out in ops.run_image("color_jitter(.5, .9)", image, 20):
    assert np.ptp(out, axis=(0, 2)).max() == 0
    errors = abs(candidates - out[0, :, 0]).max(-1).min((1, 2))
    assert errors.min() < 2
    if errors.max() > 4:
      firsts.add(int(errors.argmin()))
  assert firsts == {0, 1}


def test_color_jitter_brightness():
  image = ops.noise(6, 7)
  image[0, 0] = 160
  factors = []
  for out in ops.run_image("color_jitter(.5)", image, 100):
    factors.append(out[0, 0, 0] / 160)
    np.testing.assert_allclose(
        out, np.clip(image * factors[-1], 0, 255), atol=1.3)
  assert .5 <= min(factors) < .55 and 1.45 < max(factors) <= 1.5
  assert abs(np.mean(factors) - 1) < .1
  # With a strength above 1 the factor is clipped at 0.
  assert min(out.mean() for out in ops.run_image(
      "color_jitter(3)", image, 30)) == 0


def test_color_jitter_contrast():
  image = np.full((4, 6, 3), 100, np.uint8)
  image[:, 3:] = 140
  for out in ops.run_image("color_jitter(contrast=.5)", image, 30):
    low, high = out[0, 0], out[0, 5]
    assert len(set(low)) == 1 and len(set(high)) == 1
    assert abs(low.astype(float) + high - 240).max() <= 1
    assert 20 <= int(high[0]) - low[0] <= 60


def test_color_jitter_saturation():
  image = np.tile(np.uint8([[[90, 130, 110]]]), (3, 3, 1))
  amounts = []
  for out in ops.run_image("color_jitter(saturation=.8)", image, 50):
    np.testing.assert_allclose(_grey(out), _grey(image), atol=1)
    amounts.append(np.ptp(out[0, 0].astype(int)) / 40)
  assert .15 < min(amounts) < .3 and 1.6 < max(amounts) < 1.85
  grey = np.full((3, 3, 3), 77, np.uint8)
  assert np.array_equal(ops.run("color_jitter(saturation=.8)", grey), grey)


def test_color_jitter_hue():
  image = ops.noise(3, 4)
  shifts = []
  for out in ops.run_image("color_jitter(hue=.1)", image, 50):
    hsv, expected = (
        np.array([[colorsys.rgb_to_hsv(*pixel) for pixel in row]
                  for row in x / 255.]) for x in (out, image))
    np.testing.assert_allclose(hsv[..., 1:], expected[..., 1:], atol=.01)
    shift = (hsv[..., 0] - expected[..., 0] + .5) % 1 - .5
    vivid = expected[..., 1] * expected[..., 2] > .3
    assert vivid.sum() > 5 and np.ptp(shift[vivid]) < .01
    shifts.append(shift[vivid].mean())
  assert -.101 < min(shifts) < -.08 and .08 < max(shifts) < .101


def test_color_jitter_without_strength_and_with_bad_ones():
  image = ops.noise(3, 4)
  assert np.array_equal(ops.run("color_jitter", image), image)
  for arguments in ("-.1", "hue=.6", "0, 0, -1", "hue=-.1"):
    with pytest.raises(config_lib.ConfigError, match="must"):
      builder.make_preprocess(f"color_jitter({arguments})")


def test_random_erasing():
  image = np.full((60, 80, 3), 200, np.uint8)
  outs = ops.run_image("random_erasing(.6, fill=7)", image, 400)
  areas, ratios, corners = [], [], set()
  for out in outs:
    assert set(np.unique(out)) <= {7, 200}
    rows, columns, _ = np.nonzero(out == 7)
    if rows.size:
      h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
      assert rows.size == h * w * 3, "one rectangle in all channels"
      areas.append(h * w / 4800)
      ratios.append(h / w)
      corners.add((rows.min(), columns.min()))
  assert 200 < len(areas) < 280  # 4 standard deviations of 240.
  assert .017 < min(areas) < .03 and .35 < max(areas) < .42
  assert .27 < min(ratios) < .4 and 2.5 < max(ratios) < 3.6
  assert len(corners) > 150
  # High and wide are equally likely; a uniform ratio would prefer high ones.
  assert abs(np.mean(np.log(ratios))) < .15


def test_random_erasing_fills_with_noise():
  image = np.zeros((50, 50, 3), np.uint8)
  out = ops.run("random_erasing(1, 30, 40)", image)
  erased = out[(out > 0).any(-1)]
  assert 700 < len(erased) < 1050
  assert 120 < erased.mean() < 135 and 68 < erased.std() < 80
  assert erased.min() == 0 and erased.max() == 255


def test_random_erasing_edges():
  image = ops.noise(6, 7)
  for out in ops.run_image("random_erasing(0)", image, 10):
    assert np.array_equal(out, image)
  # No rectangle of such an area and ratio fits into one row.
  row = ops.noise(1, 50)
  for out in ops.run_image("random_erasing(1)", row, 10):
    assert np.array_equal(out, row)
  for arguments in ("2", "area_min=0", "area_max=101", "area_min=50",
                    "ratio_min=4", "fill=256"):
    with pytest.raises(config_lib.ConfigError, match="must"):
      builder.make_preprocess(f"random_erasing({arguments})")


@pytest.mark.parametrize("op", ["color_jitter(.1)", "random_erasing"])
def test_ops_on_uint8_refuse_other_dtypes_and_channels(op):
  with pytest.raises(ValueError, match=r"uint8\[h, w, 3\].*float32"):
    ops.run(f"value_range|{op}", ops.noise(3, 3))
  with pytest.raises(ValueError, match=r"uint8\[h, w, 3\].*\(3, 3, 1\)"):
    ops.run(op, ops.noise(3, 3, 1))
