"""Ops that resize images."""

from collections.abc import Sequence

import tensorflow as tf

from big_vision.pp import registry

# These methods have negative weights, so results can leave the inputs' range.
_OVERSHOOTING = ("bicubic", "lanczos3", "lanczos5", "mitchellcubic")
_METHODS = (*_OVERSHOOTING, "area", "bilinear", "gaussian", "nearest")

Size = int | Sequence[int]


@registry.register("resize")
@registry.in_key_out_key()
def resize(size: Size, method: str = "bilinear", antialias: bool = False):
  """Resizes without keeping the aspect ratio.

  Any number dtype [h, w, c] to the same dtype and range [size, c]. Integers are
  truncated, not rounded, so images get darker by half a grey level, as in the
  published runs that results are compared with.

  Args:
    size: Height and width of the result.
    method: "bilinear", "area", "bicubic", "gaussian", "lanczos3", "lanczos5",
      "mitchellcubic" or "nearest".
    antialias: Whether shrinking averages over all pixels. Prefer True unless
      results must be comparable with those of False.
  """
  check_method(method)
  size = size_pair(size)
  return lambda image: resize_image(image, size, method, antialias)


def resize_image(image, size, method, antialias):
  """Resizes an image and keeps its dtype.

  Args:
    image: number[h, w, c].
    size: (h, w), as numbers or int32[2].
    method: see `resize`.
    antialias: see `resize`.
  """
  resized = tf.image.resize(image, size, method, antialias=antialias)
  if method in _OVERSHOOTING:  # A plain cast would wrap 256 around to 0.
    return tf.saturate_cast(resized, image.dtype)
  return tf.cast(resized, image.dtype)


def check_method(method):
  if method not in _METHODS:
    raise ValueError(
        f"method={method!r} must be one of {sorted(_METHODS)}.")


def size_pair(size):
  """Returns (h, w) for a `size` argument; ValueError if it is invalid."""
  pair = (size, size) if isinstance(size, int) else size
  if not isinstance(pair, Sequence) or len(pair) != 2 or not all(
      isinstance(side, int) and side > 0 for side in pair):
    raise ValueError(
        f"a size must be a positive number or (h, w), not {size!r}.")
  return tuple(pair)


@registry.register("resize_small")
@registry.in_key_out_key()
def resize_small(
    smaller_size: int, method: str = "area", antialias: bool = False):
  """Resizes so that the shorter side is `smaller_size`; keeps proportions.

  Any number dtype [h, w, c] to the same dtype and range [h', w', c]; the length
  of the longer side is rounded. Integers are truncated, see `resize`.
  """
  return _make_proportional_resize(
      smaller_size, tf.minimum, method, antialias)


@registry.register("resize_long")
@registry.in_key_out_key()
def resize_long(
    longer_size: int, method: str = "area", antialias: bool = True):
  """Resizes so that the longer side is `longer_size`; keeps proportions.

  Any number dtype [h, w, c] to the same dtype and range [h', w', c]; the length
  of the shorter side is rounded and at least 1. Integers are truncated, see
  `resize`.
  """
  return _make_proportional_resize(longer_size, tf.maximum, method, antialias)


def _make_proportional_resize(side, which, method, antialias):
  """Makes fn(image) -> image whose shorter or longer side is `side`."""
  check_method(method)
  if not isinstance(side, int) or side <= 0:
    raise ValueError(f"a side must be a positive number, not {side!r}.")

  def new_size(old_size):
    sides = tf.cast(old_size, tf.float32)
    ratio = side / which(sides[0], sides[1])
    return tf.maximum(tf.cast(tf.round(sides * ratio), tf.int32), 1)

  def resize_sides(image):
    if image.shape[:2].is_fully_defined():
      with tf.init_scope():  # Computed while tracing: the shape is static.
        size = new_size(image.shape[:2]).numpy()
    else:
      size = new_size(tf.shape(image)[:2])
    return resize_image(image, size, method, antialias)
  return resize_sides
