"""Tests of the image ops in pp/ against NumPy, PIL and colorsys."""

import colorsys
import io
import struct

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from big_vision import config as config_lib
from big_vision.pp import builder
from big_vision.pp import ops_decode

SEED = np.array([3, 4], np.int32)


def _noise(height, width, channels=3):
  shape = (height, width, channels)
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _smooth(height, width):
  """Something like a photo: what JPEG is made for."""
  y, x = np.mgrid[:height, :width] / 7
  image = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1)
  return (image * 100 + 128).astype(np.uint8)


def _coordinates(height, width):
  """uint8[h, w, 3] that says of each pixel where it is."""
  y, x = np.mgrid[:height, :width]
  return np.stack([y, x, 0 * x], -1).astype(np.uint8)


def _encode(image, kind, **kwargs):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, kind, **kwargs)
  return buffer.getvalue()


def _pil_decode(contents, mode="RGB"):
  return np.asarray(Image.open(io.BytesIO(contents)).convert(mode))


def _run(string, image):
  result = builder.make_preprocess(string)({"image": image, "_seed": SEED})
  return result["image"].numpy()


def _run_graph(string, image):
  """As `_run`, in a graph that knows no sizes."""
  fn = builder.make_preprocess(string)
  spec = tf.TensorSpec([None, None, image.shape[-1]], image.dtype)
  dataset = tf.data.Dataset.from_generator(
      lambda: [image], output_signature=spec)
  dataset = dataset.map(lambda x: fn({"image": x, "_seed": SEED})["image"])
  return next(dataset.as_numpy_iterator()), dataset.element_spec.shape


def _run_all(string, image, num):
  """Results for `num` seeds."""
  fn = builder.make_preprocess(string)
  seeds = np.stack([np.arange(num), np.arange(num) ** 2], 1).astype(np.int32)
  dataset = tf.data.Dataset.from_tensor_slices(seeds)
  return list(dataset.map(lambda seed: fn(
      {"image": image, "_seed": seed})["image"]).as_numpy_iterator())


# Decoding.

ENCODINGS = {
    "jpeg": ("JPEG", {"quality": 85}),
    "jpeg444": ("JPEG", {"quality": 95, "subsampling": 0}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "webp": ("WEBP", {"quality": 80}),
    "lossless_webp": ("WEBP", {"lossless": True}),
    "extended_webp": ("WEBP", {"exif": b"Exif\0\0"}),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_decode_precise_is_what_pil_decodes(encoding):
  kind, kwargs = ENCODINGS[encoding]
  contents = _encode(_smooth(37, 53), kind, **kwargs)
  expected = _pil_decode(contents)
  out = _run("decode(precise=True)", contents)
  assert out.dtype == np.uint8
  # Lossy WebP is converted from YUV by another routine in PIL.
  atol = 2 if encoding in ("webp", "extended_webp") else 0
  np.testing.assert_allclose(out.astype(int), expected.astype(int), atol=atol)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_decode(encoding):
  kind, kwargs = ENCODINGS[encoding]
  contents = _encode(_smooth(37, 53), kind, **kwargs)
  error = _run("decode", contents) - _pil_decode(contents).astype(int)
  assert abs(error).max() <= (8 if kind == "JPEG" else 2)
  assert abs(error).mean() < 2


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_decode_channels(channels, mode):
  image = _noise(5, 6, 4)
  contents = _encode(image[..., :channels].squeeze(), "PNG")
  for argument in {channels, 0}:
    out = _run(f"decode({argument})", contents)
    assert out.shape == (5, 6, channels)
    assert np.array_equal(out.squeeze(), _pil_decode(contents, mode))
  assert _run("decode", contents).shape == (5, 6, 3)


def _with_size(kind, height, width):
  """A file whose header says that it is so large."""
  image = _smooth(8, 8)
  if kind == "JPEG":
    contents = _encode(image, kind)
    place = contents.index(b"\xff\xc0") + 5
    size = struct.pack(">HH", height, width)
  elif kind == "PNG":
    contents, place = _encode(image, kind), 16
    size = struct.pack(">II", width, height)
  elif kind == "GIF":
    contents, place = _encode(image, kind), 6
    size = struct.pack("<HH", width, height)
  elif kind == "BMP":
    contents, place = _encode(image, kind), 18
    size = struct.pack("<Ii", width, -height)
  else:
    contents, place = _encode(image, kind), 26
    size = struct.pack("<HH", width, height)
  return contents[:place] + size + contents[place + len(size):]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize(
    "string", ["decode", "decode(precise=True)",
               "decode_jpeg_and_inception_crop(4)"])
def test_decode_refuses_bombs_by_their_header(kind, string):
  contents = _with_size(kind, 16001, 12002)
  fn = builder.make_preprocess(string)
  data = {"image": contents, "_seed": SEED}
  with pytest.raises(
      tf.errors.InvalidArgumentError, match="(?s)64000000 pix.*16001.*12002"):
    fn(data)
  dataset = tf.data.Dataset.from_tensors(data).map(fn)
  with pytest.raises(
      tf.errors.InvalidArgumentError, match=r"64000000 pix.*\[16001 12002\]"):
    next(iter(dataset))


def test_decode_refuses_a_png_whose_area_overflows():
  contents = _with_size("PNG", 2**31 - 1, 2**31 - 1)
  with pytest.raises(tf.errors.InvalidArgumentError, match="2147483647"):
    _run("decode", contents)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_decode_reads_sizes_right(encoding, monkeypatch):
  kind, kwargs = ENCODINGS[encoding]
  contents = _encode(_smooth(37, 53), kind, **kwargs)
  monkeypatch.setattr(ops_decode, "MAX_PIXELS", 37 * 53)
  for string in ("decode", "decode_jpeg_and_inception_crop"):
    assert _run(string, contents).shape[-1] == 3
    monkeypatch.setattr(ops_decode, "MAX_PIXELS", 37 * 53 - 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="(?s)37.*53"):
      _run(string, contents)
    monkeypatch.setattr(ops_decode, "MAX_PIXELS", 37 * 53)


@pytest.mark.parametrize("contents", [b"", b"GIF8", b"hello", b"\x89PNG\r\n"])
def test_decode_refuses_what_is_no_image(contents):
  for string in ("decode", "decode_jpeg_and_inception_crop"):
    with pytest.raises(tf.errors.InvalidArgumentError):
      _run(string, contents)


def test_decode_refuses_a_truncated_jpeg():
  contents = _encode(_noise(64, 64), "JPEG")[:2000]
  with pytest.raises(tf.errors.InvalidArgumentError):
    _run("decode", contents)


@pytest.mark.parametrize("op", ["decode", "decode_jpeg_and_inception_crop"])
def test_decode_says_that_an_image_is_decoded_already(op):
  with pytest.raises(ValueError, match=r"uint8\(4, 4, 3\).*decoded already"):
    _run(op, _noise(4, 4))


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("kind, options", [
    ("JPEG", {"subsampling": 0}), ("JPEG", {"subsampling": 2}),
    ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {})])
def test_decode_jpeg_and_inception_crop(kind, options, precise):
  contents = _encode(_noise(64, 47), kind, **options)
  # `reshape` so that both crops stand at the same place and draw the same.
  for size, num in ((None, 100), ((7, 9), 10)):
    common = f"size={size}, area_max=40, antialias=True"
    apart = _run_all(
        f"decode(precise={precise})|inception_crop({common})", contents, num)
    at_once = _run_all(
        "reshape([])|decode_jpeg_and_inception_crop("
        f"{common}, precise={precise})", contents, num)
    for expected, got in zip(apart, at_once, strict=True):
      assert np.array_equal(got, expected)


# Crops.


def _windows(string, height, width, num):
  """int[num, 4]: y, x, h, w of the crops that `string` makes."""
  image = _coordinates(height, width)
  windows = []
  for crop in _run_all(string, image, num):
    (y, x, _), (h, w) = crop[0, 0], crop.shape[:2]
    assert np.array_equal(crop, image[y:y + h, x:x + w]), "one part, in order"
    windows.append((y, x, h, w))
  return np.array(windows, int)


def test_inception_crop():
  y, x, h, w = _windows("inception_crop(area_min=20)", 120, 120, 500).T
  area, ratio = h * w / 120**2, w / h
  # Sides are rounded, so the bounds hold within a pixel's part.
  assert .19 < area.min() < .22 and .9 < area.max() <= 1
  assert .73 < ratio.min() < .77 and 1.3 < ratio.max() < 1.36
  assert .4 < area.mean() < .6 and .97 < ratio.mean() < 1.05
  for begin, side in ((y, h), (x, w)):
    assert begin.min() == 0 and (begin + side).max() == 120
    # The places are uniform among those that fit.
    free = side < 115
    assert abs((begin[free] / (120 - side[free])).mean() - .5) < .07
  y, x, h, w = _windows("inception_crop(area_max=30)", 100, 150, 300).T
  assert .04 < (h * w).min() / 15000 < .06
  assert .27 < (h * w).max() / 15000 < .31


def test_inception_crop_resizes_what_it_crops():
  image = _noise(31, 43)
  for options in ("", ", method='area'", ", antialias=True"):
    cropped = _run(f"inception_crop(area_max=60{options})", image)
    expected = _run(f"resize((5, 6){options})", cropped)
    out = _run(f"inception_crop((5, 6), area_max=60{options})", image)
    assert np.array_equal(out, expected)


def test_random_crop():
  y, x, h, w = _windows("random_crop((6, 8))", 9, 10, 400).T
  assert set(h) == {6} and set(w) == {8}
  counts = np.unique(np.stack([y, x]), axis=1, return_counts=True)[1]
  # 12 places, 33 expected for each; 5 standard deviations are 28.
  assert len(counts) == 12 and abs(counts - 33).max() < 28
  out, shape = _run_graph("random_crop(9)", _noise(9, 10))
  assert out.shape == tuple(shape) == (9, 9, 3)


@pytest.mark.parametrize("size, rows, columns", [
    ("(5, 4)", slice(2, 7), slice(3, 7)), ("4", slice(2, 6), slice(3, 7)),
    ("", slice(0, 9), slice(0, 9)), ("9", slice(0, 9), slice(0, 9))])
def test_central_crop(size, rows, columns):
  image = _noise(9, 10)
  expected = image[rows, columns]
  assert np.array_equal(_run(f"central_crop({size})", image), expected)
  out, shape = _run_graph(f"central_crop({size})", image)
  assert np.array_equal(out, expected)
  assert tuple(shape) == (expected.shape if size else (None, None, 3))


@pytest.mark.parametrize("op", ["random_crop", "central_crop"])
@pytest.mark.parametrize("size", [(10, 5), (5, 11)])
def test_crops_refuse_small_images(op, size):
  with pytest.raises(tf.errors.InvalidArgumentError, match="9 10 3"):
    _run_graph(f"{op}({size})", _noise(9, 10))


def test_flip_lr():
  image = _noise(4, 5)
  outs = _run_all("flip_lr", image, 400)
  flipped = [np.array_equal(out, image[:, ::-1]) for out in outs]
  kept = [np.array_equal(out, image) for out in outs]
  assert sum(flipped) + sum(kept) == 400
  assert 150 < sum(kept) < 250  # 5 standard deviations.


# Sizes.


def _triangle(image, size, antialias):
  """Bilinear resizing by its definition, float64."""
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
  """`got` is `exact` without its digits after the point."""
  assert got.dtype == np.uint8
  sure = abs(exact - np.round(exact)) > 1e-3
  assert np.array_equal(got[sure], np.floor(exact[sure]))
  assert sure.mean() > .5
  assert abs(got - exact).max() < 1.01


@pytest.mark.parametrize("size", [(3, 5), (20, 30), (13, 4), (11, 17)])
@pytest.mark.parametrize("antialias", [False, True])
def test_resize(size, antialias):
  image = _noise(11, 17)
  exact = _triangle(image, size, antialias)
  string = f"resize({size}, antialias={antialias})"
  out, shape = _run_graph(string, image)
  assert tuple(shape) == (*size, 3)
  if size == (11, 17):
    assert np.array_equal(out, image)
  else:
    _assert_truncated(out, exact)
  out = _run(string, image.astype(np.float32))
  assert out.dtype == np.float32
  np.testing.assert_allclose(out, exact, atol=1e-3)


def test_resize_truncates_by_half_a_grey_level():
  image = _noise(64, 64)
  out = _run("resize(47)", image)
  bias = (out - _triangle(image, (47, 47), False)).mean()
  assert -.51 < bias < -.48


def test_resize_other_methods():
  image = _noise(12, 18)
  out = _run("resize((4, 6), 'area')", image)
  exact = image.reshape(4, 3, 6, 3, 3).mean((1, 3))
  assert abs(out - np.floor(exact + 1e-3)).max() == 0
  out = _run("resize((5, 7), 'nearest')", image)
  y, x = np.arange(5) * 12 // 5, np.arange(7) * 18 // 7
  y, x = ((np.arange(n) + .5) * m / n for n, m in ((5, 12), (7, 18)))
  assert np.array_equal(out, image[y.astype(int)[:, None], x.astype(int)])
  for method in ("gaussian", "mitchellcubic", "lanczos3", "lanczos5"):
    assert _run(f"resize(6, '{method}')", image).shape == (6, 6, 3)


@pytest.mark.parametrize("width", [24, 25, 27, 31])
def test_resize_bicubic_does_not_wrap(width):
  image = np.zeros((1, 8, 1), np.uint8)
  image[:, 2::4] = image[:, 3::4] = 255  # 0 0 255 255 0 0 255 255.
  out = _run(f"resize((1, {width}), 'bicubic')", image)[..., 0]
  exact = Image.fromarray(image[..., 0].astype(np.float32)).resize(
      (width, 1), Image.Resampling.BICUBIC)
  exact = np.asarray(exact)
  assert exact.min() < -5 and exact.max() > 260, "it overshoots"
  np.testing.assert_allclose(out, np.clip(exact, 0, 255), atol=1)


@pytest.mark.parametrize("op, size, expected", [
    ("resize_small", 5, (5, 8)), ("resize_small", 22, (22, 34)),
    ("resize_long", 9, (6, 9)), ("resize_long", 34, (22, 34)),
    ("resize_long", 1, (1, 1))])
def test_resize_sides(op, size, expected):
  # 17 * 5 / 11 is 7.7, 11 * 9 / 17 is 5.8.
  for image in (_noise(11, 17), _noise(17, 11)):
    if image.shape[0] == 17:
      expected = expected[::-1]
    out = _run(f"{op}({size})", image)
    assert out.shape == (*expected, 3)
    graph, shape = _run_graph(f"{op}({size})", image)
    assert np.array_equal(out, graph)
    assert tuple(shape) == (None, None, 3)


def test_resize_small():
  image = _noise(12, 18)
  out = _run("resize_small(4)", image)  # Area, by default.
  exact = image.reshape(4, 3, 6, 3, 3).mean((1, 3))
  assert np.array_equal(out, np.floor(exact + 1e-3))
  _assert_truncated(
      _run("resize_small(5, 'bilinear')", image),
      _triangle(image, (5, 8), False))  # 7.5 is rounded to even, 8.


def test_resize_long():
  image = _noise(12, 18)
  _assert_truncated(
      _run("resize_long(7, 'bilinear')", image),
      _triangle(image, (5, 7), True))  # Antialiased, by default.
  # An extremely long image keeps a row.
  assert _run("resize_long(4)", _noise(1, 18)).shape == (1, 4, 3)


@pytest.mark.parametrize("string", [
    "resize_small((4, 5))", "resize_long(0)", "resize_long(3, 'liner')",
    "resize(1.5)", "resize(None)", "random_crop(-1)", "central_crop((1, 2, 3))",
    "inception_crop('a')", "inception_crop(4, method='b')"])
def test_sizes_and_methods_are_checked_when_built(string):
  with pytest.raises(config_lib.ConfigError):
    builder.make_preprocess(string)


# Values.


def test_vgg_value_range():
  image = _noise(4, 5)
  out = _run("vgg_value_range", image)
  expected = (image / 255 - [.485, .456, .406]) / [.229, .224, .225]
  assert out.dtype == np.float32
  np.testing.assert_allclose(out, expected, atol=1e-5)
  out = _run("vgg_value_range([1, 2, 3.], [4., 5, 6])", image)
  np.testing.assert_allclose(out, (image - [1, 2, 3.]) / [4, 5, 6], atol=1e-5)


def test_clip_value_range():
  image = _noise(4, 5)
  mean = [.48145466, .4578275, .40821073]
  std = [.26862954, .26130258, .27577711]
  np.testing.assert_allclose(
      _run("clip_value_range", image), (image / 255 - mean) / std, atol=1e-5)


def _grey(image):
  return image @ [.299, .587, .114]


def test_color_jitter():
  """Two changes, and both orders of them; clipping tells which."""
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
  for out in _run_all("color_jitter(.5, .9)", image, 20):
    assert np.ptp(out, axis=(0, 2)).max() == 0
    errors = abs(candidates - out[0, :, 0]).max(-1).min((1, 2))
    assert errors.min() < 2
    if errors.max() > 4:
      firsts.add(int(errors.argmin()))
  assert firsts == {0, 1}


def test_color_jitter_brightness():
  image = _noise(6, 7)
  image[0, 0] = 160
  factors = []
  for out in _run_all("color_jitter(.5)", image, 100):
    factors.append(out[0, 0, 0] / 160)
    np.testing.assert_allclose(
        out, np.clip(image * factors[-1], 0, 255), atol=1.3)
  assert .5 <= min(factors) < .55 and 1.45 < max(factors) <= 1.5
  assert abs(np.mean(factors) - 1) < .1
  # A strength above 1 could ask for negative factors.
  assert min(out.mean() for out in _run_all(
      "color_jitter(3)", image, 30)) == 0


def test_color_jitter_contrast():
  image = np.full((4, 6, 3), 100, np.uint8)
  image[:, 3:] = 140
  for out in _run_all("color_jitter(contrast=.5)", image, 30):
    low, high = out[0, 0], out[0, 5]
    assert len(set(low)) == 1 and len(set(high)) == 1
    assert abs(low.astype(float) + high - 240).max() <= 1
    assert 20 <= int(high[0]) - low[0] <= 60


def test_color_jitter_saturation():
  image = np.tile(np.uint8([[[90, 130, 110]]]), (3, 3, 1))
  amounts = []
  for out in _run_all("color_jitter(saturation=.8)", image, 50):
    np.testing.assert_allclose(_grey(out), _grey(image), atol=1)
    amounts.append(np.ptp(out[0, 0].astype(int)) / 40)
  assert .15 < min(amounts) < .3 and 1.6 < max(amounts) < 1.85
  grey = np.full((3, 3, 3), 77, np.uint8)
  assert np.array_equal(_run("color_jitter(saturation=.8)", grey), grey)


def test_color_jitter_hue():
  image = _noise(3, 4)
  shifts = []
  for out in _run_all("color_jitter(hue=.1)", image, 50):
    hsv, expected = (
        np.array([[colorsys.rgb_to_hsv(*pixel) for pixel in row]
                  for row in x / 255.]) for x in (out, image))
    np.testing.assert_allclose(hsv[..., 1:], expected[..., 1:], atol=.01)
    shift = (hsv[..., 0] - expected[..., 0] + .5) % 1 - .5
    vivid = expected[..., 1] * expected[..., 2] > .3
    assert vivid.sum() > 5 and np.ptp(shift[vivid]) < .01
    shifts.append(shift[vivid].mean())
  assert -.101 < min(shifts) < -.08 and .08 < max(shifts) < .101


def test_color_jitter_without_strength_and_wrong_ones():
  image = _noise(3, 4)
  assert np.array_equal(_run("color_jitter", image), image)
  for arguments in ("-.1", "hue=.6", "0, 0, -1", "hue=-.1"):
    with pytest.raises(config_lib.ConfigError, match="must"):
      builder.make_preprocess(f"color_jitter({arguments})")


def test_random_erasing():
  image = np.full((60, 80, 3), 200, np.uint8)
  outs = _run_all("random_erasing(.6, fill=7)", image, 400)
  areas, ratios, corners = [], [], set()
  for out in outs:
    assert set(np.unique(out)) <= {7, 200}
    rows, columns, _ = np.nonzero(out == 7)
    if rows.size:
      h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
      assert rows.size == h * w * 3, "a rectangle, in all channels"
      areas.append(h * w / 4800)
      ratios.append(h / w)
      corners.add((rows.min(), columns.min()))
  assert 200 < len(areas) < 280  # 4 standard deviations of 240.
  assert .017 < min(areas) < .03 and .35 < max(areas) < .42
  assert .27 < min(ratios) < .4 and 2.5 < max(ratios) < 3.6
  assert len(corners) > 150
  # Either form is as likely, which a uniform ratio would not give.
  assert abs(np.mean(np.log(ratios))) < .15


def test_random_erasing_fills_with_noise():
  image = np.zeros((50, 50, 3), np.uint8)
  out = _run("random_erasing(1, 30, 40)", image)
  erased = out[(out > 0).any(-1)]
  assert 700 < len(erased) < 1050
  assert 120 < erased.mean() < 135 and 68 < erased.std() < 80
  assert erased.min() == 0 and erased.max() == 255


def test_random_erasing_edges():
  image = _noise(6, 7)
  for out in _run_all("random_erasing(0)", image, 10):
    assert np.array_equal(out, image)
  # Nothing of such an area and ratio fits into one row.
  row = _noise(1, 50)
  for out in _run_all("random_erasing(1)", row, 10):
    assert np.array_equal(out, row)
  for arguments in ("2", "area_min=0", "area_max=101", "area_min=50",
                    "ratio_min=4", "fill=256"):
    with pytest.raises(config_lib.ConfigError, match="must"):
      builder.make_preprocess(f"random_erasing({arguments})")


@pytest.mark.parametrize("op", ["color_jitter(.1)", "random_erasing"])
def test_ops_on_grey_levels_refuse_other_ranges(op):
  with pytest.raises(ValueError, match=r"uint8\[h, w, 3\].*float32"):
    _run(f"value_range|{op}", _noise(3, 3))
  with pytest.raises(ValueError, match=r"uint8\[h, w, 3\].*\(3, 3, 1\)"):
    _run(op, _noise(3, 3, 1))
