"""Ops that resize images.

An image is [h, w, c]; c is 3 unless stated otherwise. Between `decode` and
`value_range` it is uint8 in [0, 255]. Images may differ in size, and their
sizes may be unknown in the graph, but rank and number of channels must be
known. An image in a RaggedTensor raises a ValueError.

Wherever an op takes a `size`, one number means a square, a pair means (h, w).
"""

from collections.abc import Sequence

import tensorflow as tf

from big_vision.pp import registry

# These have negative weights, so results leave the range of their inputs.
_OVERSHOOTING = ("bicubic", "lanczos3", "lanczos5", "mitchellcubic")
_METHODS = (*_OVERSHOOTING, "area", "bilinear", "gaussian", "nearest")

Size = int | Sequence[int]


@registry.register("resize")
@registry.in_key_out_key()
def resize(size: Size, method: str = "bilinear", antialias: bool = False):
  """Resizes, whatever becomes of the aspect ratio.

  Any number dtype [h, w, c] to the same dtype and range [size, c]. Integers are
  truncated, not rounded: images get darker by half a grey level, as they did
  in the trainings whose results we compare to.

  Args:
    size: Height and width of the result.
    method: "bilinear", "area", "bicubic", "gaussian", "lanczos3", "lanczos5",
      "mitchellcubic" or "nearest".
    antialias: whether shrinking averages over all pixels. Better True for what
      need not be compared to results with False.
  """
  check_method(method)
  size = size_pair(size)
  return lambda image: resize_image(image, size, method, antialias)


def resize_image(image, size, method, antialias):
  """`image` in `size`, a pair of numbers or int32[2], in the same dtype."""
  resized = tf.image.resize(image, size, method, antialias=antialias)
  if method in _OVERSHOOTING:  # A mere cast would wrap, to black and white.
    return tf.saturate_cast(resized, image.dtype)
  return tf.cast(resized, image.dtype)


def check_method(method):
  if method not in _METHODS:
    raise ValueError(f"method={method!r} is none of {sorted(_METHODS)}.")


def size_pair(size):
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
  check_method(method)
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
    return resize_image(image, size, method, antialias)
  return resize_sides
