"""Decodes image files, and limits how large an image may be.

JPEG and PNG are decoded by TensorFlow. GIF, BMP and WebP are decoded by Pillow:
TensorFlow ignores palettes, holds all frames of an animation in memory, and
crashes on some animated WebP files.
"""

import functools
import io
import struct

import numpy as np
import tensorflow as tf

from big_vision.pp import distortions
from big_vision.pp import exif
from big_vision.pp import registry

# Larger images are refused before they are decoded: a PNG of 400 kB can unfold
# to 400 MB, and one such file in a crawl would end the run.
MAX_PIXELS = 64 * 10**6
_OPAQUE = 255


@registry.register("decode")
@registry.in_key_out_key()
def decode(channels: int = 3, precise: bool = False, orient: bool = True):
  """Decodes an image file: JPEG, PNG, GIF, BMP or WebP; of animations a frame.

  string[] to uint8[h, w, channels] in [0, 255]. The first frame of an animation
  is decoded. A file that is damaged or of another kind, or an image of more
  than MAX_PIXELS pixels, raises an InvalidArgumentError; the latter before
  memory is taken for it.

  Args:
    channels: 1 for grey, 3 for RGB, 4 for RGBA, 0 for those of the file, where
      CMYK counts as RGB. Dropping the alpha channel leaves colours as they are.
    precise: Whether JPEGs are decoded with the exact integer DCT, as PIL and
      PyTorch do, instead of the faster one.
    orient: Whether images are turned upright as their EXIF data says.
  """
  if channels not in (0, 1, 3, 4):
    raise ValueError(f"channels={channels} must be one of [0, 1, 3, 4].")

  def decode_any(contents):
    return decode_image(check_encoded(contents), channels, precise, orient)
  return decode_any


def check_encoded(contents):
  """Returns `contents`; raises ValueError unless it is a scalar string."""
  if contents.dtype != tf.string or contents.shape.rank not in (0, None):
    raise ValueError(
        "the bytes of an image file are needed, string[]; it got "
        f"{contents.dtype.name}{contents.shape}, which may be decoded already.")
  return contents


def decode_image(contents, channels, precise, orient):
  """Decodes a file, string[], to uint8[h, w, channels]; see `decode`."""
  image = tf.cond(
      tf.io.is_jpeg(contents),
      lambda: _decode_jpeg(contents, channels, precise, orient),
      lambda: tf.cond(
          tf.equal(tf.strings.substr(contents, 0, 8), b"\x89PNG\r\n\x1a\n"),
          lambda: _decode_png(contents, channels, orient),
          lambda: _decode_others(contents, channels, orient)))
  return with_channels(image, channels)


def _decode_jpeg(contents, channels, precise, orient):
  """Decodes a JPEG; TensorFlow makes no alpha, and no grey of CMYK."""
  size = tf.io.extract_jpeg_shape(contents)
  decode_as = functools.partial(
      tf.io.decode_jpeg, check_size(contents, size[:2]),
      dct_method="INTEGER_ACCURATE" if precise else "")
  if channels == 4:
    image = _with_alpha(decode_as(channels=3))
  elif channels == 1:
    image = tf.cond(
        tf.equal(size[2], 4), lambda: distortions.grey(decode_as(channels=3)),
        lambda: decode_as(channels=1))
  else:
    image = decode_as(channels=channels)
  return exif.turned_jpeg(contents, image) if orient else image


def _decode_png(contents, channels, orient):
  """Decodes a PNG; TensorFlow gets alpha wrong below 8 bits per channel."""
  header = tf.io.decode_raw(contents, tf.uint8, fixed_length=44)
  sides = tf.reduce_sum(
      tf.reshape(tf.cast(header[16:24], tf.int64), [2, 4])
      * [256**3, 256**2, 256, 1], axis=1)
  contents = check_size(contents, sides[::-1])
  image = tf.io.decode_png(contents, channels)
  if channels == 4:
    def corrected():
      has_alpha = tf.equal(tf.shape(tf.io.decode_png(contents))[2] % 2, 0)
      return tf.where(has_alpha, image, _with_alpha(image[..., :3]))
    image = tf.cond(header[24] < 8, corrected, lambda: image)
  return exif.turned_png(contents, header, image) if orient else image


def _with_alpha(rgb):
  return tf.pad(rgb, [[0, 0], [0, 0], [0, 1]], constant_values=_OPAQUE)


def _decode_others(contents, channels, orient):
  """Decodes GIF, BMP and WebP files."""
  image, message = tf.numpy_function(
      functools.partial(
          _decode_with_pillow, channels=channels, orient=orient),
      [contents], [tf.uint8, tf.string], stateful=False)
  # A message, and not an exception, so that the error is that of the ops.
  return registry.checked(image, tf.equal(message, ""), message)


def with_channels(image, channels):
  """Returns `image` with its static shape [None, None, channels]."""
  return tf.ensure_shape(image, [None, None, channels or None])


def check_size(contents, size):
  """Returns `contents`; reading it fails if int[2] `size` is too large."""
  size = tf.cast(size, tf.int64)
  return registry.checked(
      contents, tf.reduce_prod(size) <= MAX_PIXELS,
      f"An image of more than {MAX_PIXELS} pixels, the limit; its height and "
      "width:", size)


def _decode_with_pillow(contents, channels, orient):
  """Decodes a GIF, BMP or WebP file.

  Args:
    contents: The file, bytes or an array that holds them.
    channels: see `decode`.
    orient: see `decode`.

  Returns:
    uint8[h, w, channels] and b"", or an empty array and the reason why the
    image cannot be decoded.
  """
  from PIL import Image  # pylint: disable=g-import-not-at-top
  contents = exif.to_bytes(contents)
  try:
    _check_pixels(*_size_in_header(contents))
    image = Image.open(io.BytesIO(contents), formats=["GIF", "BMP", "WEBP"])
    _check_pixels(image.height, image.width)  # A GIF's frame may be larger.
    pixels = _to_array(image, channels)
    if orient:
      pixels = exif.turn_upright(
          pixels, exif.parse(image.info.get("exif", b"")))
    return pixels, b""
  except (_TooLarge, Image.DecompressionBombError) as error:
    message = f"An image of more than {MAX_PIXELS} pixels, the limit: {error}"
  except Exception as error:  # Pillow raises SyntaxError, struct.error, ...
    message = f"The file is not a valid JPEG, PNG, GIF, BMP or WebP: {error}"
  return np.zeros([0, 0, channels], np.uint8), message.encode()


class _TooLarge(Exception):
  """An image has more than MAX_PIXELS pixels."""


def _check_pixels(height, width):
  if height * width > MAX_PIXELS:
    raise _TooLarge(f"its height and width are [{height} {width}]")


def _size_in_header(contents):
  """Returns height and width in the header of a GIF, BMP or WebP file."""
  if contents.startswith(b"GIF8"):
    width, height = struct.unpack_from("<HH", contents, 6)
  elif contents.startswith(b"BM"):
    old = contents[14] == 12  # The header of OS/2.
    width, height = struct.unpack_from("<HH" if old else "<ii", contents, 18)
  elif contents[8:15] == b"WEBPVP8":
    if contents[15:16] == b"X":
      width, height = (
          1 + int.from_bytes(contents[i:i + 3], "little") for i in (24, 27))
    elif contents[15:16] == b"L":
      sizes, = struct.unpack_from("<I", contents, 21)
      width, height = 1 + sizes % 2**14, 1 + (sizes >> 14) % 2**14
    else:
      width, height = (
          side % 2**14 for side in struct.unpack_from("<HH", contents, 26))
  else:
    raise ValueError("it begins with none of their signatures")
  # A negative height says that a BMP begins with its top row.
  return abs(height), abs(width)


def _to_array(image, channels):
  """Returns the pixels of a Pillow image, uint8[h, w, channels]."""
  mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
  if mode is None:
    mode = "RGBA" if image.has_transparency_data else (
        "L" if image.mode in ("1", "L") else "RGB")
  pixels = np.asarray(image.convert(mode))
  return pixels[..., None] if pixels.ndim == 2 else pixels
