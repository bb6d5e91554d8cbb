"""Ops for images.

An image is [h, w, c]; c is 3 unless said otherwise. Between `decode` and
`value_range` it is uint8 in [0, 255]. Images may differ in size and their sizes
may be unknown in the graph, but rank and channels must be known; an image in a
RaggedTensor is refused (`registry.in_key_out_key`).

Wherever a `size` is asked for, one number means a square, a pair (h, w).
"""

from collections.abc import Sequence
import functools

import tensorflow as tf

from big_vision.pp import registry

# What is more is refused before it is decoded: a PNG of 400 kB can unfold to
# 400 MB, and one such file in a crawl would end the run.
MAX_PIXELS = 64 * 10**6

# ITU-R 601 luma, of red, green, blue.
LUMA = (0.299, 0.587, 0.114)

# These have negative weights, so results leave the range of their inputs.
_OVERSHOOTING = ("bicubic", "lanczos3", "lanczos5", "mitchellcubic")
_METHODS = (*_OVERSHOOTING, "area", "bilinear", "gaussian", "nearest")

Size = int | Sequence[int]


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
    raise ValueError(f"channels={channels} is none of [0, 1, 3, 4].")

  def exactly(contents):
    return tf.io.decode_jpeg(contents, channels, dct_method="INTEGER_ACCURATE")

  def decode_any(contents):
    contents = _check_pixels(_check_encoded(contents))
    if precise:
      image = tf.cond(
          tf.io.is_jpeg(contents),
          lambda: exactly(contents), lambda: _decode(contents, channels))
    else:
      image = _decode(contents, channels)
    return _with_shape(image, channels)
  return decode_any


def _decode(contents, channels):
  return tf.io.decode_image(contents, channels, expand_animations=False)


def _with_shape(image, channels):
  """`image` with its static shape [None, None, channels]."""
  image.set_shape([None, None, channels or None])
  return image


def _check_encoded(contents):
  """Returns `contents`; raises ValueError unless it is a scalar string."""
  if contents.dtype != tf.string or contents.shape.rank not in (0, None):
    raise ValueError(
        "the bytes of an image file are needed, string[]; it got "
        f"{contents.dtype.name}{contents.shape}, which may be decoded already.")
  return contents


def _check_pixels(contents):
  """Returns `contents`; reading it fails if its header says too many pixels."""
  size = tf.cond(
      tf.io.is_jpeg(contents),
      lambda: tf.cast(tf.io.extract_jpeg_shape(contents)[:2], tf.int64),
      lambda: _size_of_other_formats(contents))
  return _check_size(contents, size)


def _check_size(contents, size):
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


@registry.register("decode_jpeg_and_inception_crop", random=True)
@registry.in_key_out_key()
def decode_jpeg_and_inception_crop(
    size: Size | None = None, area_min: float = 5, area_max: float = 100,
    ratio_min: float = 0.75, ratio_max: float = 1.33, method: str = "bilinear",
    antialias: bool = False, precise: bool = False):
  """`decode|inception_crop(...)`, which decodes a JPEG only where it crops.

  string[] to uint8[size, 3] in [0, 255]. Other formats are decoded in full.
  Errors as for `decode`.

  Args:
    size: as for `inception_crop`, like the others.
    area_min: likewise.
    area_max: likewise.
    ratio_min: width / height of the narrowest crop.
    ratio_max: width / height of the widest crop.
    method: see `resize`.
    antialias: see `resize`.
    precise: see `decode`.
  """
  resize_crop = _make_resize_crop(size, method, antialias)
  dct_method = "INTEGER_ACCURATE" if precise else ""

  def decode_and_crop(contents, seed):
    contents = _check_encoded(contents)

    def jpeg():
      shape = tf.io.extract_jpeg_shape(contents)
      checked = _check_size(contents, tf.cast(shape[:2], tf.int64))
      window = _inception_window(
          shape, seed, area_min, area_max, ratio_min, ratio_max)
      return _decode_window(checked, shape[1], window, dct_method)

    def other():
      image = _decode(_check_pixels(contents), 3)
      window = _inception_window(
          tf.shape(image), seed, area_min, area_max, ratio_min, ratio_max)
      return tf.slice(
          image, [window[0], window[1], 0], [window[2], window[3], 3])

    image = tf.cond(tf.io.is_jpeg(contents), jpeg, other)
    return resize_crop(_with_shape(image, 3))
  return decode_and_crop


def _decode_window(contents, image_width, window, dct_method):
  """The part of a JPEG within int32[4] y, x, height, width.

  The outermost columns of what the JPEG library cuts out have other colours
  than in the image, so it gets to cut one more on either side.
  """
  y, x, height, width = tf.unstack(window)
  begin = tf.maximum(x - 1, 0)
  end = tf.minimum(x + width + 1, image_width)
  image = tf.io.decode_and_crop_jpeg(
      contents, [y, begin, height, end - begin], channels=3,
      dct_method=dct_method)
  return image[:, x - begin:x - begin + width]


@registry.register("inception_crop", random=True)
@registry.in_key_out_key()
def inception_crop(
    size: Size | None = None, area_min: float = 5, area_max: float = 100,
    method: str = "bilinear", antialias: bool = False):
  """Crops a random part of random size and shape, and resizes it.

  Any dtype [h, w, c] to the same dtype and range [size, c]. The part's width /
  height is within .75 to 1.33.

  Args:
    size: Size of the result; None keeps that of the crop.
    area_min: area of the smallest part, in percent of the image.
    area_max: area of the largest part, in percent.
    method: see `resize`.
    antialias: see `resize`.

  Source: arXiv:1409.4842, section 6.
  """
  resize_crop = _make_resize_crop(size, method, antialias)

  def crop(image, seed):
    y, x, height, width = tf.unstack(_inception_window(
        tf.shape(image), seed, area_min, area_max, 0.75, 1.33))
    image_crop = tf.slice(image, [y, x, 0], [height, width, -1])
    return resize_crop(_with_shape(image_crop, image.shape[-1]))
  return crop


def _inception_window(shape, seed, area_min, area_max, ratio_min, ratio_max):
  """int32[4] y, x, height, width of a random window into int32[3] `shape`."""
  begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
      shape, tf.zeros([0, 0, 4]), seed, min_object_covered=0.0,
      aspect_ratio_range=(ratio_min, ratio_max),
      area_range=(area_min / 100, area_max / 100),
      use_image_if_no_bounding_boxes=True)
  return tf.concat([begin[:2], size[:2]], axis=0)


def _make_resize_crop(size, method, antialias):
  """fn(image) -> image of the `size`; the identity if that is None."""
  _check_method(method)
  size = None if size is None else _pair(size)

  def resize_crop(image):
    return _resize(image, size, method, antialias) if size else image
  return resize_crop


@registry.register("resize")
@registry.in_key_out_key()
def resize(size: Size, method: str = "bilinear", antialias: bool = False):
  """Resizes, whatever becomes of the aspect ratio.

  Any number dtype [h, w, c] to the same dtype and range [size, c]. Integers are
  truncated, not rounded: images get darker by half a grey level, as they did
  in the trainings whose results we compare to.

  Args:
    size: Size of the result.
    method: "bilinear", "area", "bicubic", "gaussian", "lanczos3", "lanczos5",
      "mitchellcubic" or "nearest".
    antialias: whether shrinking averages over all pixels. Better True for what
      need not be compared to results with False.
  """
  _check_method(method)
  size = _pair(size)
  return lambda image: _resize(image, size, method, antialias)


def _resize(image, size, method, antialias):
  """`image` in `size`, a pair of numbers or int32[2], in the same dtype."""
  resized = tf.image.resize(image, size, method, antialias=antialias)
  if method in _OVERSHOOTING:  # A mere cast would wrap, to black and white.
    return tf.saturate_cast(resized, image.dtype)
  return tf.cast(resized, image.dtype)


def _check_method(method):
  if method not in _METHODS:
    raise ValueError(f"method={method!r} is none of {sorted(_METHODS)}.")


def _pair(size):
  """(h, w) of a size argument."""
  pair = (size, size) if isinstance(size, int) else size
  if not isinstance(pair, Sequence) or len(pair) != 2 or not all(
      isinstance(side, int) and side > 0 for side in pair):
    raise ValueError(f"a size is a positive number or (h, w), not {size!r}.")
  return tuple(pair)


@registry.register("resize_small")
@registry.in_key_out_key()
def resize_small(
    smaller_size: int, method: str = "area", antialias: bool = False):
  """Resizes so that the shorter side is `smaller_size`; keeps proportions.

  Any number dtype [h, w, c] to the same dtype and range [h', w', c]; the longer
  side is rounded. Integers are truncated, see `resize`.
  """
  return _make_proportional_resize(
      smaller_size, tf.minimum, method, antialias)


@registry.register("resize_long")
@registry.in_key_out_key()
def resize_long(
    longer_size: int, method: str = "area", antialias: bool = True):
  """Resizes so that the longer side is `longer_size`; keeps proportions.

  Any number dtype [h, w, c] to the same dtype and range [h', w', c]; the
  shorter side is rounded, at least 1. Integers are truncated, see `resize`.
  """
  return _make_proportional_resize(longer_size, tf.maximum, method, antialias)


def _make_proportional_resize(side, which, method, antialias):
  """fn(image) -> image whose shorter or longer side is `side`."""
  _check_method(method)
  if not isinstance(side, int) or side <= 0:
    raise ValueError(f"a side is a positive number, not {side!r}.")

  def new_size(old_size):
    sides = tf.cast(old_size, tf.float32)
    ratio = side / which(sides[0], sides[1])
    return tf.maximum(tf.cast(tf.round(sides * ratio), tf.int32), 1)

  def resize_sides(image):
    if image.shape[:2].is_fully_defined():
      with tf.init_scope():  # Computed now, so that the new shape is static.
        size = new_size(image.shape[:2]).numpy()
    else:
      size = new_size(tf.shape(image)[:2])
    return _resize(image, size, method, antialias)
  return resize_sides


@registry.register("random_crop", random=True)
@registry.in_key_out_key()
def random_crop(crop_size: Size):
  """Crops a part at random, each place as likely as the others.

  Any dtype [h, w, c] to the same [crop_size, c]. A smaller image raises an
  InvalidArgumentError.
  """
  height, width = _pair(crop_size)

  def crop(image, seed):
    image = _check_not_smaller(image, height, width)
    return tf.ensure_shape(
        tf.image.stateless_random_crop(
            image, [height, width, tf.shape(image)[-1]], seed),
        [height, width, image.shape[-1]])
  return crop


@registry.register("central_crop")
@registry.in_key_out_key()
def central_crop(crop_size: Size | None = None):
  """Crops the middle; where it cannot be halved, the rest stays at the end.

  Any dtype [h, w, c] to the same [crop_size, c]. A smaller image raises an
  InvalidArgumentError.

  Args:
    crop_size: None: the largest square that fits.
  """
  size = None if crop_size is None else _pair(crop_size)

  def crop(image):
    sides = tf.shape(image)[:2]
    if size is not None:
      height, width = size
      image = _check_not_smaller(image, height, width)
    elif image.shape[:2].is_fully_defined():
      height = width = min(image.shape[:2])
    else:
      height = width = tf.reduce_min(sides)
    y, x = tf.unstack((sides - tf.stack([height, width])) // 2)
    cropped = image[y:y + height, x:x + width]
    if not tf.is_tensor(height):
      cropped = tf.ensure_shape(cropped, [height, width, image.shape[-1]])
    return cropped
  return crop


def _check_not_smaller(image, height, width):
  """Returns `image`, to be read only if it is at least that large."""
  shape = tf.shape(image)
  return registry.checked(
      image, (shape[0] >= height) & (shape[1] >= width),
      f"A crop of ({height}, {width}) does not fit into the shape", shape)


@registry.register("flip_lr", random=True)
@registry.in_key_out_key()
def flip_lr():
  """Mirrors every other image, at random: any dtype [h, w, c] to the same."""
  def flip(image, seed):
    return tf.cond(
        tf.random.stateless_uniform([], seed) < 0.5,
        lambda: tf.reverse(image, [1]), lambda: image)
  return flip


@registry.register("vgg_value_range")
@registry.in_key_out_key()
def vgg_value_range(
    mean: Sequence[float] = (0.485 * 255, 0.456 * 255, 0.406 * 255),
    std: Sequence[float] = (0.229 * 255, 0.224 * 255, 0.225 * 255)):
  """Subtracts the mean of ImageNet's colours, divides by their deviation.

  uint8 or float [h, w, 3] in [0, 255] to float32[h, w, 3], about [-2.2, 2.7].

  Args:
    mean: Means of red, green and blue, in [0, 255].
    std: their standard deviations, in the same unit.
  """
  return _make_standardize(mean, std)


@registry.register("clip_value_range")
@registry.in_key_out_key()
def clip_value_range():
  """Standardizes with the mean and deviation of the data of CLIP.

  uint8 or float [h, w, 3] in [0, 255] to float32[h, w, 3], about [-1.8, 2.2].

  Source: arXiv:2103.00020, its published code.
  """
  return _make_standardize(
      (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255),
      (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255))


def _make_standardize(mean, std):
  def standardize(image):
    return (tf.cast(image, tf.float32) - tf.constant(mean)) / tf.constant(std)
  return standardize


@registry.register("color_jitter", random=True)
@registry.in_key_out_key()
def color_jitter(
    brightness: float = 0, contrast: float = 0, saturation: float = 0,
    hue: float = 0):
  """Changes the colours at random, in random order; as in torchvision.

  uint8[h, w, 3] to uint8[h, w, 3], rounded once, at the end.

  Args:
    brightness: the image is blended with black; its part is uniform within
      1 - brightness (at least 0) and 1 + brightness.
    contrast: the same with the mean of its luma.
    saturation: the same with its luma.
    hue: the hue is shifted, uniformly within -hue and hue, of 1 for the whole
      colour circle; at most 0.5.
  """
  if min(brightness, contrast, saturation) < 0 or not 0 <= hue <= 0.5:
    raise ValueError(
        f"brightness={brightness}, contrast={contrast} and "
        f"saturation={saturation} must not be negative, hue={hue} must be in "
        "[0, 0.5].")

  def luma(image):
    return tf.reduce_sum(image * LUMA, axis=-1, keepdims=True)

  def blend(other, image, factor):
    mixed = other + tf.maximum(0.0, factor) * (image - other)
    return tf.clip_by_value(mixed, 0.0, 255.0)

  def jitter(image, seed):
    check_uint8(image)
    seed_amounts, seed_order = tf.unstack(
        tf.random.experimental.stateless_split(seed, 2))
    u = tf.unstack(tf.random.stateless_uniform([4], seed_amounts, minval=-1.0))
    changes = [fn for strength, fn in [
        (brightness, lambda x: blend(0.0, x, 1 + u[0] * brightness)),
        (contrast, lambda x: blend(
            tf.reduce_mean(luma(x)), x, 1 + u[1] * contrast)),
        (saturation, lambda x: blend(luma(x), x, 1 + u[2] * saturation)),
        (hue, lambda x: tf.image.adjust_hue(x, u[3] * hue)),
    ] if strength]
    order = tf.random.experimental.stateless_shuffle(
        tf.range(len(changes)), seed_order)
    result = tf.cast(image, tf.float32)
    for i in range(len(changes)):
      branches = [functools.partial(change, result) for change in changes]
      result = tf.switch_case(order[i], branches)
    return tf.ensure_shape(tf.cast(tf.round(result), tf.uint8), image.shape)
  return jitter


def check_uint8(image):
  """Raises a ValueError unless `image` is uint8[h, w, 3]."""
  if image.dtype != tf.uint8 or image.shape.rank != 3 or image.shape[-1] != 3:
    raise ValueError(
        f"a uint8[h, w, 3] is needed, it got {image.dtype.name}{image.shape}; "
        "value_range and the like come later.")


@registry.register("random_erasing", random=True)
@registry.in_key_out_key()
def random_erasing(
    p: float = 0.25, area_min: float = 2, area_max: float = 40,
    ratio_min: float = 0.3, ratio_max: float = 1 / 0.3,
    fill: int | None = None):
  """Overwrites a rectangle, with probability `p`.

  uint8[h, w, 3] to uint8[h, w, 3]. If ten random rectangles do not fit into the
  image, which happens in long ones, none is overwritten.

  Args:
    p: how often.
    area_min: area of the smallest rectangle, in percent of the image.
    area_max: area of the largest rectangle, in percent.
    ratio_min: height / width of the widest; its logarithm is uniform.
    ratio_max: height / width of the narrowest.
    fill: grey value in [0, 255]; None: each value is random.

  Source: arXiv:1708.04896; differs in the ratio, there uniform, which makes
    high rectangles more frequent than wide ones.
  """
  if not 0 <= p <= 1 or not 0 < area_min <= area_max <= 100 or not (
      0 < ratio_min <= ratio_max):
    raise ValueError(
        f"p={p} must be in [0, 1], 0 < {area_min} <= {area_max} <= 100, "
        f"0 < {ratio_min} <= {ratio_max}.")
  if fill is not None and not 0 <= fill <= 255:
    raise ValueError(f"fill={fill} must be in [0, 255].")

  def maybe_erase(image, seed):
    check_uint8(image)
    seed_p, seed_size, seed_place, seed_fill = tf.unstack(
        tf.random.experimental.stateless_split(seed, 4))
    return tf.ensure_shape(tf.cond(
        tf.random.stateless_uniform([], seed_p) < p,
        lambda: erase(image, seed_size, seed_place, seed_fill),
        lambda: image), image.shape)

  def erase(image, seed_size, seed_place, seed_fill):
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    u = tf.random.stateless_uniform([2, 10], seed_size)
    area = (area_min + u[0] * (area_max - area_min)) / 100
    area *= tf.reduce_prod(sides)
    ratio = ratio_min * (ratio_max / ratio_min) ** u[1]
    sizes = tf.round(tf.sqrt([area * ratio, area / ratio]))
    fits = tf.reduce_all(sizes < sides[:, None], axis=0)
    # argmax gives the first that fits; without any, the rectangle is empty.
    size = sizes[:, tf.argmax(fits)] * tf.cast(tf.reduce_any(fits), tf.float32)
    begin = tf.floor(
        tf.random.stateless_uniform([2], seed_place) * (sides - size + 1))
    rows, columns = [
        (tf.range(sides[i]) >= begin[i]) &
        (tf.range(sides[i]) < begin[i] + size[i]) for i in range(2)]
    inside = rows[:, None, None] & columns[None, :, None]
    if fill is None:
      filling = tf.cast(tf.random.stateless_uniform(
          tf.shape(image), seed_fill, 0, 256, dtype=tf.int32), tf.uint8)
    else:
      filling = tf.constant(fill, tf.uint8)
    return tf.where(inside, filling, image)
  return maybe_erase
