"""Tests of pp/ops_decode.py against PIL."""

import functools
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
    "extended_webp": ("WEBP", {"exif": b"Exif\0\0MM\0*"}),
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


@pytest.mark.parametrize("encoding", ["gif", "bmp", "lossless_webp"])
def test_formats_that_pillow_decodes_agree_with_tensorflow(encoding):
  kind, kwargs = ENCODINGS[encoding]
  contents = ops.encode(ops.smooth(37, 53), kind, **kwargs)
  expected = tf.io.decode_image(contents, 3, expand_animations=False)
  assert np.array_equal(ops.run("decode", contents), expected)


@functools.cache
def _files():
  """Makes {name: (file, its mode)}, one for each way of storing channels."""
  pixels = ops.noise(13, 17, 4)
  pixels[..., 3] = np.where(pixels[..., 3] > 99, 255, 0)
  rgba = Image.fromarray(pixels)
  rgb = Image.fromarray(ops.smooth(13, 17))
  grey, palette = rgb.convert("L"), rgb.quantize(16)
  transparent = palette.copy()
  transparent.info["transparency"] = 3
  lossless = {"lossless": True, "exact": True}
  frames = {"save_all": True, "append_images": [rgba.transpose(1)]}
  images = {
      "jpeg rgb": ("JPEG", rgb, "RGB", {}),
      "jpeg grey": ("JPEG", grey, "L", {}),
      "jpeg cmyk": ("JPEG", rgb.convert("CMYK"), "RGB", {}),
      "png rgb": ("PNG", rgb, "RGB", {}), "png rgba": ("PNG", rgba, "RGBA", {}),
      "png grey": ("PNG", grey, "L", {}),
      "png palette": ("PNG", palette, "RGB", {}),
      "png transparent": ("PNG", transparent, "RGBA", {}),
      "png bits": ("PNG", rgb.convert("1"), "L", {}),
      "gif": ("GIF", palette, "RGB", {}),
      "gif transparent": ("GIF", transparent, "RGBA", {}),
      "gif animated": (
          "GIF", palette, "RGB",
          {"save_all": True, "append_images": [palette.transpose(1)]}),
      "bmp rgb": ("BMP", rgb, "RGB", {}), "bmp grey": ("BMP", grey, "L", {}),
      "bmp palette": ("BMP", palette, "RGB", {}),
      "bmp bits": ("BMP", rgb.convert("1"), "L", {}),
      "webp rgb": ("WEBP", rgb, "RGB", lossless),
      "webp rgba": ("WEBP", rgba, "RGBA", lossless),
      "webp animated": ("WEBP", rgba, "RGBA", {**lossless, **frames}),
      "webp animated rgb": ("WEBP", rgb, "RGBA", {
          **lossless, **frames, "append_images": [rgb.transpose(1)]}),
  }
  files = {}
  for name, (kind, image, mode, options) in images.items():
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    files[name] = buffer.getvalue(), image, mode
  return files


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
@pytest.mark.parametrize("name", _files())
def test_decode_every_number_of_channels_of_every_format(name, channels):
  contents, image, stored = _files()[name]
  mode = {0: stored, 1: "L", 3: "RGB", 4: "RGBA"}[channels]
  out = ops.run(f"decode({channels}, precise=True)", contents)
  if name.startswith("jpeg"):
    image = Image.open(io.BytesIO(contents))  # What the loss has left.
  if name == "jpeg cmyk":
    image = image.convert("RGB")
  expected = np.asarray(image.convert(mode)).astype(int)
  assert out.shape == (13, 17, {"L": 1, "RGB": 3, "RGBA": 4}[mode])
  # Libraries weigh red, green and blue differently in grey.
  atol = 8 if name == "jpeg cmyk" else 2 if channels == 1 else 0
  # Formats may forget colours that nobody sees.
  seen = np.asarray(image.convert("RGBA"))[..., 3] > 0
  out = out.reshape(expected.shape)
  np.testing.assert_allclose(out[seen], expected[seen], atol=atol)
  if mode == "RGBA":
    assert np.array_equal(out[..., 3], np.where(seen, 255, 0))


def test_decode_channels():
  image = ops.noise(5, 6, 4)
  for channels in (1, 3, 4):
    contents = ops.encode(image[..., :channels].squeeze(), "PNG")
    for argument in (channels, 0):
      out = ops.run(f"decode({argument})", contents)
      assert np.array_equal(out, image[..., :channels])


def test_decode_transparent_bmp():
  """Pillow's files of 32 bits have no alpha that counts, others have."""
  rgba = ops.noise(4, 6, 4)
  header = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 14 + 108) + struct.pack(
      "<IiiHHIIiiII4I", 108, 6, -4, 1, 32, 3, 0, 0, 0, 0, 0,
      0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(52)
  contents = header + rgba[..., [2, 1, 0, 3]].tobytes()
  assert np.array_equal(ops.run("decode(4)", contents), rgba)
  assert np.array_equal(ops.run("decode", contents), rgba[..., :3])


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


@pytest.mark.parametrize("kind, side", [
    ("JPEG", 50000), ("PNG", 50000), ("GIF", 50000), ("BMP", 50000),
    ("WEBP", 16383)])
def test_decode_refuses_files_that_claim_gigabytes(kind, side):
  with pytest.raises(
      tf.errors.InvalidArgumentError,
      match=f"(?s)64000000 pixels, the limit.*{side}.*{side}"):
    ops.run("decode", _with_size(kind, side, side))


def test_decode_refuses_a_gif_with_a_frame_larger_than_its_canvas():
  contents = bytearray(ops.encode(ops.smooth(8, 8), "GIF"))
  place = contents.index(b",\0\0\0\0\x08\0\x08\0") + 5
  for side in (8001, 50000):
    contents[place:place + 4] = struct.pack("<HH", side, side)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="64000000 pixels, the limit"):
      ops.run("decode", bytes(contents))


def test_decode_refuses_a_large_webp_of_the_extended_form():
  kind, options = ENCODINGS["extended_webp"]
  contents = bytearray(ops.encode(ops.smooth(8, 8), kind, **options))
  assert contents[12:16] == b"VP8X"
  contents[24:30] = b"".join(
      side.to_bytes(3, "little") for side in (49999, 29999))
  with pytest.raises(
      tf.errors.InvalidArgumentError, match=r"\[30000 50000\]"):
    ops.run("decode", bytes(contents))


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
