"""Tests of pp/ops_decode.py against PIL."""

import io
import struct

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from big_vision.pp import builder
from big_vision.pp import ops_decode
from tests import ops


def _pil_decode(contents, mode="RGB"):
  return np.asarray(Image.open(io.BytesIO(contents)).convert(mode))


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
def test_decode_precise_agrees_with_pil(encoding):
  kind, kwargs = ENCODINGS[encoding]
  contents = ops.encode(ops.smooth(37, 53), kind, **kwargs)
  expected = _pil_decode(contents)
  out = ops.run("decode(precise=True)", contents)
  assert out.dtype == np.uint8
  # Lossy WebP is converted from YUV by another routine in PIL.
  atol = 2 if encoding in ("webp", "extended_webp") else 0
  np.testing.assert_allclose(out.astype(int), expected.astype(int), atol=atol)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_decode(encoding):
  kind, kwargs = ENCODINGS[encoding]
  contents = ops.encode(ops.smooth(37, 53), kind, **kwargs)
  error = ops.run("decode", contents) - _pil_decode(contents).astype(int)
  assert abs(error).max() <= (8 if kind == "JPEG" else 2)
  assert abs(error).mean() < 2


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_decode_channels(channels, mode):
  image = ops.noise(5, 6, 4)
  contents = ops.encode(image[..., :channels].squeeze(), "PNG")
  for argument in {channels, 0}:
    out = ops.run(f"decode({argument})", contents)
    assert out.shape == (5, 6, channels)
    assert np.array_equal(out.squeeze(), _pil_decode(contents, mode))
  assert ops.run("decode", contents).shape == (5, 6, 3)


def _with_size(kind, height, width):
  """Makes a file whose header claims the given size."""
  image = ops.smooth(8, 8)
  if kind == "JPEG":
    contents = ops.encode(image, kind)
    place = contents.index(b"\xff\xc0") + 5
    size = struct.pack(">HH", height, width)
  elif kind == "PNG":
    contents, place = ops.encode(image, kind), 16
    size = struct.pack(">II", width, height)
  elif kind == "GIF":
    contents, place = ops.encode(image, kind), 6
    size = struct.pack("<HH", width, height)
  elif kind == "BMP":
    contents, place = ops.encode(image, kind), 18
    size = struct.pack("<Ii", width, -height)
  else:
    contents, place = ops.encode(image, kind), 26
    size = struct.pack("<HH", width, height)
  return contents[:place] + size + contents[place + len(size):]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize(
    "string", ["decode", "decode(precise=True)",
               "decode_jpeg_and_inception_crop(4)"])
def test_decode_refuses_bombs_by_their_header(kind, string):
  contents = _with_size(kind, 16001, 12002)
  fn = builder.make_preprocess(string)
  data = {"image": contents, "_seed": ops.SEED}
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
    ops.run("decode", contents)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_decode_reads_sizes_from_headers(encoding, monkeypatch):
  kind, kwargs = ENCODINGS[encoding]
  contents = ops.encode(ops.smooth(37, 53), kind, **kwargs)
  monkeypatch.setattr(ops_decode, "MAX_PIXELS", 37 * 53)
  for string in ("decode", "decode_jpeg_and_inception_crop"):
    assert ops.run(string, contents).shape[-1] == 3
    monkeypatch.setattr(ops_decode, "MAX_PIXELS", 37 * 53 - 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="(?s)37.*53"):
      ops.run(string, contents)
    monkeypatch.setattr(ops_decode, "MAX_PIXELS", 37 * 53)


@pytest.mark.parametrize("contents", [b"", b"GIF8", b"hello", b"\x89PNG\r\n"])
def test_decode_refuses_bytes_that_are_not_an_image(contents):
  for string in ("decode", "decode_jpeg_and_inception_crop"):
    with pytest.raises(tf.errors.InvalidArgumentError):
      ops.run(string, contents)


def test_decode_refuses_a_truncated_jpeg():
  contents = ops.encode(ops.noise(64, 64), "JPEG")[:2000]
  with pytest.raises(tf.errors.InvalidArgumentError):
    ops.run("decode", contents)


@pytest.mark.parametrize("op", ["decode", "decode_jpeg_and_inception_crop"])
def test_decode_reports_images_that_are_decoded_already(op):
  with pytest.raises(ValueError, match=r"uint8\(4, 4, 3\).*decoded already"):
    ops.run(op, ops.noise(4, 4))
