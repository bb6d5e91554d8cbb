"""Ops that change the values of pixels, but not the size of an image."""

from collections.abc import Sequence
import functools

import tensorflow as tf

from big_vision.pp import registry

# ITU-R 601 weights of red, green and blue in the luma.
LUMA = (0.299, 0.587, 0.114)


@registry.register("vgg_value_range")
@registry.in_key_out_key()
def vgg_value_range(
    mean: Sequence[float] = (0.485 * 255, 0.456 * 255, 0.406 * 255),
    std: Sequence[float] = (0.229 * 255, 0.224 * 255, 0.225 * 255)):
  """Standardizes with the mean and standard deviation of ImageNet's colours.

  uint8 or float [h, w, 3] in [0, 255] to float32[h, w, 3], about [-2.2, 2.7].

  Args:
    mean: Mean of red, green and blue, in [0, 255].
    std: Standard deviations of red, green and blue, in the same unit.
  """
  return _make_standardize(mean, std)


@registry.register("clip_value_range")
@registry.in_key_out_key()
def clip_value_range():
  """Standardizes with the mean and standard deviation of CLIP's data.

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
  """Changes brightness, contrast, saturation and hue, in random order.

  uint8[h, w, 3] to uint8[h, w, 3]; values are rounded once, at the end.
  Behaves as the op of this name in torchvision.

  Args:
    brightness: Strength of blending with black. The image's weight is uniform
      between max(0, 1 - brightness) and 1 + brightness.
    contrast: Strength of blending with the mean luma, as for brightness.
    saturation: Strength of blending with the luma, as for brightness.
    hue: Largest shift of the hue, as a fraction of the colour circle, at most
      0.5. Shifts are uniform in [-hue, hue].
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
        f"a uint8[h, w, 3] is needed; it got {image.dtype.name}{image.shape}. "
        "Ops such as value_range belong after this one.")


@registry.register("random_erasing", random=True)
@registry.in_key_out_key()
def random_erasing(
    p: float = 0.25, area_min: float = 2, area_max: float = 40,
    ratio_min: float = 0.3, ratio_max: float = 1 / 0.3,
    fill: int | None = None):
  """Overwrites a random rectangle with probability `p`.

  uint8[h, w, 3] to uint8[h, w, 3]. The image stays as it is if none of ten
  random rectangles fits into it, which happens in elongated images.

  Args:
    p: Probability that a rectangle is overwritten.
    area_min: Area of the smallest rectangle, in percent of the image.
    area_max: Area of the largest rectangle, in percent of the image.
    ratio_min: Height / width of the widest rectangle. The logarithm of the
      ratio is uniform.
    ratio_max: Height / width of the narrowest rectangle.
    fill: Grey value in [0, 255]; None draws each value at random.

  Source: arXiv:1708.04896. There the ratio itself is uniform, which makes high
    rectangles more frequent than wide ones.
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
    # argmax finds the first that fits; if none does, the rectangle is empty.
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
