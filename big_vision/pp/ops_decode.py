"""Decodes image files, and limits how large an image may be."""

import tensorflow as tf

from big_vision.pp import registry

# Larger images are refused before they are decoded: a PNG of 400 kB can unfold
# to 400 MB, and one such file in a crawl would end the run.
MAX_PIXELS = 64 * 10**6


@registry.register("decode")
@registry.in_key_out_key()
def decode(channels: int = 3, precise: bool = False):
  """Decodes an image file: JPEG, PNG, GIF (its first frame), BMP or WebP.

  string[] to uint8[h, w, channels] in [0, 255]. What cannot be decoded, or
  has more than `MAX_PIXELS` pixels by its header, raises an
  InvalidArgumentError; the latter before memory is taken for it. The header of
  a GIF only tells the size of its canvas, which frames could exceed.

  Args:
    channels: 1 grey, 3 RGB, 4 RGBA, 0 as in the file.
    precise: whether JPEGs are decoded with the exact integer DCT, as PIL and
      PyTorch do, instead of the faster one.
  """
  if channels not in (0, 1, 3, 4):
    raise ValueError(f"channels={channels} must be one of [0, 1, 3, 4].")

  def exactly(contents):
    return tf.io.decode_jpeg(contents, channels, dct_method="INTEGER_ACCURATE")

  def decode_any(contents):
    contents = check_pixels(check_encoded(contents))
    if precise:
      image = tf.cond(
          tf.io.is_jpeg(contents),
          lambda: exactly(contents), lambda: decode_image(contents, channels))
    else:
      image = decode_image(contents, channels)
    return with_channels(image, channels)
  return decode_any


def decode_image(contents, channels):
  return tf.io.decode_image(contents, channels, expand_animations=False)


def with_channels(image, channels):
  """`image` with its static shape [None, None, channels]."""
  image.set_shape([None, None, channels or None])
  return image


def check_encoded(contents):
  """Returns `contents`; raises ValueError unless it is a scalar string."""
  if contents.dtype != tf.string or contents.shape.rank not in (0, None):
    raise ValueError(
        "the bytes of an image file are needed, string[]; it got "
        f"{contents.dtype.name}{contents.shape}, which may be decoded already.")
  return contents


def check_pixels(contents):
  """Returns `contents`; reading it fails if its header says too many pixels."""
  size = tf.cond(
      tf.io.is_jpeg(contents),
      lambda: tf.cast(tf.io.extract_jpeg_shape(contents)[:2], tf.int64),
      lambda: _size_of_other_formats(contents))
  return check_size(contents, size)


def check_size(contents, size):
  """Returns `contents`, to be read only if int64[2] `size` is acceptable."""
  return registry.checked(
      contents, tf.reduce_prod(size) <= MAX_PIXELS,
      f"An image of more than {MAX_PIXELS} pixels; its height and width:",
      size)


def _size_of_other_formats(contents):
  """int64[2] height and width by the header; 0 for an unknown format."""
  header = tf.cast(
      tf.io.decode_raw(contents, tf.uint8, fixed_length=32), tf.int64)

  def number(begin, end, big_endian=False):
    places = tf.range(end - begin, dtype=tf.int64)
    places = places[::-1] if big_endian else places
    return tf.reduce_sum(header[begin:end] * 256**places)

  def png():
    return number(20, 24, big_endian=True), number(16, 20, big_endian=True)

  def gif():
    return number(8, 10), number(6, 8)

  def bmp():
    height, width = number(22, 26), number(18, 22)
    # Signed; a negative height says that the top row comes first.
    return tf.where(height < 2**31, height, 2**32 - height), width

  def webp():  # The fourth letter of the first chunk's name: "VP8 ", "VP8L".
    extended = number(27, 30) + 1, number(24, 27) + 1
    sizes = number(21, 25)
    lossless = sizes // 2**14 % 2**14 + 1, sizes % 2**14 + 1
    lossy = number(28, 30) % 2**14, number(26, 28) % 2**14
    kind = header[15]
    return tf.where(kind == ord("X"), extended, tf.where(
        kind == ord("L"), lossless, lossy))

  def starts_with(magic, begin=0):
    expected = tf.constant(list(magic), tf.int64)
    return tf.reduce_all(header[begin:begin + len(magic)] == expected)

  return tf.case(
      [(starts_with(b"\x89PNG"), lambda: tf.stack(png())),
       (starts_with(b"GIF8"), lambda: tf.stack(gif())),
       (starts_with(b"BM"), lambda: tf.stack(bmp())),
       (starts_with(b"WEBP", 8), webp)],
      default=lambda: tf.zeros([2], tf.int64))
