"""Tests of pp/exif.py, and of the ops that use it, against Pillow."""

import io
import struct

import numpy as np
from PIL import Image
from PIL import ImageOps
import pytest
import tensorflow as tf

from big_vision.pp import builder
from big_vision.pp import exif
from tests import ops

ORIENTATIONS = range(1, 9)
FORMATS = {
    "jpeg": ("JPEG", {"subsampling": 0}), "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True})}


def _tag(orientation):
  tags = Image.Exif()
  tags[0x0112] = orientation
  return tags


def _turned_by_pillow(contents):
  image = ImageOps.exif_transpose(Image.open(io.BytesIO(contents)))
  return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_images_are_turned_upright(name, orientation):
  kind, options = FORMATS[name]
  contents = ops.encode(
      ops.smooth(21, 34), kind, exif=_tag(orientation), **options)
  upright = ops.run("decode(precise=True)", contents)
  assert np.array_equal(upright, _turned_by_pillow(contents))
  assert upright.shape == ((34, 21, 3) if orientation > 4 else (21, 34, 3))
  stored = np.asarray(Image.open(io.BytesIO(contents)))
  assert np.array_equal(
      ops.run("decode(precise=True, orient=False)", contents), stored)


def test_portrait_photographs_stand_upright():
  """Without Pillow: the sky is at the top when the camera was held upright."""
  upright = np.full((48, 32, 3), 40, np.uint8)
  upright[:24] = 220
  stored = np.rot90(upright)  # The sensor's rows are the columns of the scene.
  contents = ops.encode(stored, "JPEG", exif=_tag(6))
  for string in ("decode", "reshape([])|decode_jpeg_and_inception_crop("
                 "area_min=99, ratio_min=.66, ratio_max=.68)"):
    image = ops.run(string, contents).astype(int)
    assert image.shape[0] > image.shape[1]
    assert image[:15].min() > 200 and image[-15:].max() < 60


@pytest.mark.parametrize("name, orient, orientation", [
    *(("jpeg", True, orientation) for orientation in ORIENTATIONS),
    ("jpeg", False, 6), ("png", True, 8), ("webp", True, 7)])
def test_decoding_the_crop_alone_gives_the_crop_of_the_upright_image(
    name, orient, orientation):
  kind, options = FORMATS[name]
  contents = ops.encode(
      ops.noise(40, 27), kind, exif=_tag(orientation), **options)
  apart = ops.run_image(
      f"decode(orient={orient})|inception_crop(area_max=60)", contents, 8)
  at_once = ops.run_image(
      "reshape([])|decode_jpeg_and_inception_crop("
      f"area_max=60, orient={orient})", contents, 8)
  for expected, got in zip(apart, at_once, strict=True):
    assert np.array_equal(got, expected)


# Files as cameras and editors write them, made by hand.


def _tiff(order, value, kind=3, tag=0x0112):
  entries = [(0x010F, 2, 4, 0), (tag, kind, 1, value)]
  if order == ">" and kind == 3:
    entries[1] = (tag, kind, 1, value << 16)  # The value is left-aligned.
  return ((b"II*\0" if order == "<" else b"MM\0*") + struct.pack(
      f"{order}IH", 8, len(entries)) + b"".join(
          struct.pack(f"{order}HHII", *entry) for entry in entries)
          + bytes(4))


def _segment(marker, data):
  return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _jpeg(*segments):
  """Makes a JPEG that begins with these segments instead of JFIF."""
  plain = ops.encode(ops.smooth(8, 16), "JPEG")
  end_of_jfif = 4 + struct.unpack(">H", plain[4:6])[0]
  return plain[:2] + b"".join(segments) + plain[end_of_jfif:]


JFIF = _segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
EXIF = b"Exif\0\0"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("before", [
    [], [JFIF], [_segment(0xFE, b"a comment")],
    [JFIF, _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + bytes(999))],
    [_segment(0xE0, b"JFIF\0" + bytes(200))],
    [_segment(0xED, b"Photoshop 3.0\0"), _segment(0xFE, b"x")]])
def test_exif_data_is_found_after_other_segments(order, before):
  contents = _jpeg(*before, _segment(0xE1, EXIF + _tiff(order, 6)))
  assert exif.read_orientation(contents) == 6
  assert ops.run("decode", contents).shape == (16, 8, 3)
  assert Image.open(io.BytesIO(contents)).getexif()[0x0112] == 6


@pytest.mark.parametrize("tiff", [
    _tiff("<", 0), _tiff("<", 9), _tiff("<", 65535), _tiff("<", 6, kind=7),
    _tiff("<", 6, tag=0x0111), _tiff("<", 6)[:12], b"II*\0", b"", b"XX" * 20,
    b"II*\0\xff\xff\xff\xff", _tiff("<", 6)[:8] + b"\xff\xff",
    b"MM\0*\0\0\0\x08" + bytes(2)])
def test_damaged_or_absent_orientations_mean_upright(tiff):
  contents = _jpeg(JFIF, _segment(0xE1, EXIF + tiff))
  assert exif.read_orientation(contents) == 1
  assert ops.run("decode", contents).shape == (8, 16, 3)


def test_a_webp_with_damaged_exif_data_is_decoded():
  image = ops.smooth(8, 16)
  contents = ops.encode(image, "WEBP", lossless=True, exif=EXIF + b"MM\0*")
  assert np.array_equal(ops.run("decode", contents), image)


def test_exif_data_after_the_header_is_not_taken_for_the_image_s():
  plain = _jpeg(JFIF)
  hidden = plain + _segment(0xE1, EXIF + _tiff("<", 6))
  assert exif.read_orientation(hidden) == 1
  assert ops.run("decode", hidden).shape == (8, 16, 3)


def test_every_ending_of_a_file_is_survived():
  contents = _jpeg(JFIF, _segment(0xE1, EXIF + _tiff(">", 8)))
  assert {int(exif.read_orientation(contents[:n]))
          for n in range(len(contents))} == {1, 8}
  contents = ops.encode(ops.smooth(8, 16), "PNG", exif=_tag(8))
  assert {int(exif.read_orientation(contents[:n]))
          for n in range(len(contents))} == {1, 8}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_files_without_exif_data_are_not_searched(kind, monkeypatch):
  def fail(contents):
    raise AssertionError("the file was searched")
  monkeypatch.setattr(exif, "read_orientation", fail)
  contents = ops.encode(ops.smooth(8, 16), kind)
  fn = builder.make_preprocess("decode")
  dataset = tf.data.Dataset.from_tensors({"image": contents}).map(fn)
  assert next(iter(dataset))["image"].shape == (8, 16, 3)
  if kind in ("JPEG", "PNG"):  # The test would notice a search.
    contents = ops.encode(ops.smooth(8, 16), kind, exif=_tag(6))
    with pytest.raises(Exception, match="the file was searched"):
      fn({"image": contents})
