"""RandAugment.

The functions on images take uint8[h, w, 3] and return the same; `factor` and
the like are numbers or float32[].
"""

import functools
import math

import tensorflow as tf

from big_vision.pp import ops_color
from big_vision.pp import registry

# What comes in from outside of an image that was turned or shifted.
FILL = 128


@registry.register("randaug", random=True)
@registry.in_key_out_key()
def randaug(num_layers: int = 2, magnitude: float = 10, legacy: bool = False):
  """Applies random changes of a common strength, one after the other.

  uint8[h, w, 3] to uint8[h, w, 3]. Each layer draws one of 14 ops with equal
  probability: identity, autocontrast, equalize, rotate, solarize, color,
  posterize, contrast, brightness, sharpness, shear and translate in x and in y.
  Pixels that come in from outside are grey, 128.

  Args:
    num_layers: number of changes.
    magnitude: their strength: 0 changes nothing but by autocontrast and
      equalize, 10 reaches the ends of the ranges in the paper, more goes on
      from there as far as that is possible.
    legacy: the 16 ops of google-research/big_vision, which results published
      with `randaug` were trained with. There is no identity, there are invert,
      cutout and solarize_add. Strength does not always grow with the magnitude:
      posterize and solarize get weaker, the blends (color, contrast,
      brightness, sharpness) change nothing at 5 and only exaggerate above.
      Contrast blends with h * w / 256 instead of the mean. The threshold of
      solarize wraps, so at 10 it inverts.

  Source: arXiv:1909.13719. Blends go both ways and translation is in parts of
    the sides, as in torchvision; strength grows with the magnitude for all ops.
  """
  if num_layers < 0 or magnitude < 0:
    raise ValueError(
        f"num_layers={num_layers} and magnitude={magnitude} must not be "
        "negative.")
  make_changes = legacy_changes if legacy else changes

  def augment(image, seed):
    ops_color.check_uint8(image)
    for layer in range(num_layers):
      image = apply_one(
          image, tf.random.experimental.stateless_fold_in(seed, layer))
    return image

  def apply_one(image, seed):
    seed_which, seed_sign, seed_cutout = tf.unstack(
        tf.random.experimental.stateless_split(seed, 3))
    sign = tf.where(
        tf.random.stateless_uniform([], seed_sign) < 0.5, -1.0, 1.0)
    branches = [
        functools.partial(change, image) for change in
        make_changes(magnitude, sign, seed_cutout).values()]
    which = tf.random.stateless_uniform(
        [], seed_which, 0, len(branches), dtype=tf.int32)
    return tf.ensure_shape(tf.switch_case(which, branches), image.shape)
  return augment


def changes(magnitude, sign, seed):
  """{name: fn(image)} of the 14 ops, at a magnitude.

  Args:
    magnitude: number, 0 for no change.
    sign: float32[], -1 or 1: the direction of what has one.
    seed: not used; as in `legacy_changes`.
  """
  del seed
  level = magnitude / 10
  signed = sign * level
  factor = tf.maximum(0.0, 1 + 0.9 * signed)
  bits = max(1, 8 - round(4 * level))
  threshold = max(0, round(256 * (1 - level)))
  turn = signed * math.radians(30)
  return {
      "identity": lambda image: image,
      "autocontrast": autocontrast,
      "equalize": equalize,
      "rotate": lambda image: rotate(image, turn),
      "solarize": lambda image: solarize(image, threshold),
      "color": lambda image: color(image, factor),
      "posterize": lambda image: posterize(image, bits),
      "contrast": lambda image: contrast(image, factor),
      "brightness": lambda image: brightness(image, factor),
      "sharpness": lambda image: sharpness(image, factor),
      "shear_x": lambda image: shear_x(image, 0.3 * signed),
      "shear_y": lambda image: shear_y(image, 0.3 * signed),
      # 150 pixels of 331, the size of the images in AutoAugment.
      "translate_x": lambda image: translate(
          image, x=signed * 150 / 331 * width_of(image)),
      "translate_y": lambda image: translate(
          image, y=signed * 150 / 331 * height_of(image)),
  }


def legacy_changes(magnitude, sign, seed):
  """{name: fn(image)} of the 16 ops of the reference, with its quirks.

  Args:
    magnitude: number.
    sign: float32[], -1 or 1: the direction of what has one.
    seed: int32[2], for the place of cutout.
  """
  level = magnitude / 10
  signed = sign * level
  factor = level * 1.8 + 0.1
  turn = signed * math.radians(30)
  return {
      "autocontrast": autocontrast,
      "equalize": equalize,
      "invert": lambda image: 255 - image,
      "rotate": lambda image: rotate(image, turn),
      # The number of bits to drop was a uint8, and shifts end at 7.
      "posterize": lambda image: posterize(
          image, 8 - min((8 - int(level * 4)) % 256, 7)),
      "solarize": lambda image: solarize(image, int(level * 256) % 256),
      "color": lambda image: blend(legacy_grey(image), image, factor),
      "contrast": lambda image: legacy_contrast(image, factor),
      "brightness": lambda image: brightness(image, factor),
      "sharpness": lambda image: sharpness(image, factor, rounded=False),
      # From the middle of the first pixel instead of from its edge.
      "shear_x": lambda image: transform(
          image, (1, 0.3 * signed, -0.15 * signed, 0, 1, 0)),
      "shear_y": lambda image: transform(
          image, (1, 0, 0, 0.3 * signed, 1, -0.15 * signed)),
      "translate_x": lambda image: translate(image, x=signed * 100),
      "translate_y": lambda image: translate(image, y=signed * 100),
      "cutout": lambda image: cutout(image, int(level * 40), seed),
      "solarize_add": lambda image: solarize_add(image, int(level * 110)),
  }


def width_of(image):
  return tf.cast(tf.shape(image)[1], tf.float32)


def height_of(image):
  return tf.cast(tf.shape(image)[0], tf.float32)


def blend(other, image, factor):
  """other + factor * (image - other), clipped and truncated to uint8.

  Factor 0 gives `other`, 1 `image`, more exaggerates.
  """
  other = tf.cast(other, tf.float32)
  mixed = other + factor * (tf.cast(image, tf.float32) - other)
  return tf.cast(tf.clip_by_value(mixed, 0.0, 255.0), tf.uint8)


def grey(image):
  """uint8[h, w, 1], the luma, rounded; in integers, as PIL does."""
  weights = tf.constant([19595, 38470, 7471])  # Luma in parts of 2 ** 16.
  luma = tf.reduce_sum(
      tf.cast(image, tf.int32) * weights, axis=-1, keepdims=True)
  return tf.cast((luma + 2**15) // 2**16, tf.uint8)


def legacy_grey(image):
  """uint8[h, w, 1], the luma as TensorFlow rounds it."""
  return tf.image.rgb_to_grayscale(image)


def color(image, factor):
  """Less (factor < 1) or more (factor > 1) colour."""
  return blend(grey(image), image, factor)


def brightness(image, factor):
  """Darker (factor < 1) or brighter (factor > 1)."""
  return blend(0, image, factor)


def contrast(image, factor):
  """Closer to (factor < 1) or further from (factor > 1) the mean luma."""
  mean = tf.reduce_mean(tf.cast(grey(image), tf.float32))
  return blend(tf.floor(mean + 0.5), image, factor)


def legacy_contrast(image, factor):
  """Contrast about h * w / 256, where the mean was meant (issue 109)."""
  wrong_mean = tf.minimum(255.0, height_of(image) * width_of(image) / 256)
  return blend(tf.floor(wrong_mean), image, factor)


def sharpness(image, factor, rounded=True):
  """Blurred (factor < 1) or sharpened (factor > 1), its border aside.

  Args:
    image: see above.
    factor: see above.
    rounded: whether the blurred image is rounded, as in PIL, or truncated.
  """
  pixels = tf.pad(tf.cast(image, tf.float32), [[1, 1], [1, 1], [0, 0]])
  rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
  total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
  blurred = tf.floor(
      (total + 4 * pixels[1:-1, 1:-1]) / 13 + (0.5 if rounded else 0.0))
  inside = [
      (tf.range(side) > 0) & (tf.range(side) < side - 1)
      for side in tf.unstack(tf.shape(image)[:2])]
  inside = inside[0][:, None, None] & inside[1][None, :, None]
  return tf.where(inside, blend(blurred, image, factor), image)


def solarize(image, threshold):
  """Inverts the values from `threshold` on; 256 changes nothing, 0 inverts."""
  # In int32, as 256 is no uint8.
  return tf.where(tf.cast(image, tf.int32) < threshold, image, 255 - image)


def solarize_add(image, addition):
  """Adds to the values below 128, to at most 255."""
  added = tf.minimum(tf.cast(image, tf.int32) + addition, 255)
  return tf.where(image < 128, tf.cast(added, tf.uint8), image)


def posterize(image, bits):
  """Keeps the highest `bits`, 1 to 8, of each value."""
  mask = tf.constant(256 - 2**(8 - bits), tf.uint8)
  return tf.bitwise.bitwise_and(image, mask)


def autocontrast(image):
  """Stretches each channel to [0, 255], unless it has but one value."""
  pixels = tf.cast(image, tf.float32)
  low = tf.reduce_min(pixels, axis=(0, 1))
  high = tf.reduce_max(pixels, axis=(0, 1))
  scale = 255 / (high - low)
  stretched = tf.clip_by_value(pixels * scale - low * scale, 0.0, 255.0)
  return tf.where(high > low, tf.cast(stretched, tf.uint8), image)


def equalize(image):
  """Makes each channel's values equally frequent, as far as possible."""
  # One lookup serves all channels: channel c uses 256 * c and the following.
  places = tf.cast(image, tf.int32) + 256 * tf.range(3)
  counts = tf.reshape(
      tf.math.bincount(tf.reshape(places, [-1]), minlength=3 * 256), [3, 256])
  below = tf.cumsum(counts, axis=1, exclusive=True)
  highest = tf.reduce_max(tf.cast(image, tf.int32), axis=(0, 1))
  # Pixels per grey level; the highest value's do not count. 0: hardly any.
  step = tf.gather(below, highest, axis=1, batch_dims=1)[:, None] // 255
  table = (below + step // 2) // tf.maximum(step, 1)
  table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256))
  return tf.gather(tf.cast(tf.reshape(table, [-1]), tf.uint8), places)


def transform(image, coefficients):
  """The pixel of `image` that each place comes from, nearest; else grey.

  Args:
    image: see above.
    coefficients: six numbers; the pixel whose middle is (x, y) comes from
      (a x + b y + c, d x + e y + f). Lengths are in pixels, x to the right and
      y down, from the upper left corner of the image.
  """
  a, b, c, d, e, f = [tf.cast(value, tf.float32) for value in coefficients]
  # The TensorFlow op counts from the middle of the first pixel instead.
  c = c + (a + b - 1) / 2
  f = f + (d + e - 1) / 2
  moved = tf.raw_ops.ImageProjectiveTransformV3(
      images=image[None], transforms=[[a, b, c, d, e, f, 0.0, 0.0]],
      output_shape=tf.shape(image)[:2], fill_value=float(FILL),
      interpolation="NEAREST", fill_mode="CONSTANT")
  return tf.ensure_shape(moved[0], image.shape)


def rotate(image, angle):
  """Turned about its middle, counterclockwise, by `angle` in radians."""
  x, y = width_of(image) / 2, height_of(image) / 2
  cos, sin = tf.cos(angle), tf.sin(angle)
  return transform(image, (
      cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y))


def shear_x(image, amount):
  """Each row is moved left by `amount` of its distance from the top."""
  return transform(image, (1, amount, 0, 0, 1, 0))


def shear_y(image, amount):
  """Each column is moved up by `amount` of its distance from the left."""
  return transform(image, (1, 0, 0, amount, 1, 0))


def translate(image, x=0.0, y=0.0):
  """Moved left by `x` and up by `y` pixels, to the nearest pixel."""
  return transform(image, (1, 0, x, 0, 1, y))


def cutout(image, half_size, seed):
  """A grey square of up to 2 * `half_size`, its middle at random."""
  def covered(side, seed_side):
    middle = tf.random.stateless_uniform([], seed_side, 0, side, tf.int32)
    places = tf.range(side)
    return (places >= middle - half_size) & (places < middle + half_size)
  seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
  height, width = tf.unstack(tf.shape(image)[:2])
  rows, columns = covered(height, seeds[0]), covered(width, seeds[1])
  inside = rows[:, None, None] & columns[None, :, None]
  return tf.where(inside, tf.constant(FILL, tf.uint8), image)
