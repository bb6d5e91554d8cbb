"""RandAugment: random distortions of a common strength."""

import functools
import math

import tensorflow as tf

from big_vision.pp import distortions
from big_vision.pp import ops_color
from big_vision.pp import registry


@registry.register("randaug", random=True)
@registry.in_key_out_key()
def randaug(num_layers: int = 2, magnitude: float = 10, legacy: bool = False):
  """Applies random distortions of a common strength, one after the other.

  uint8[h, w, 3] to uint8[h, w, 3]. Each layer draws one of 14 distortions with
  equal probability: identity, autocontrast, equalize, rotate, solarize, color,
  posterize, contrast, brightness, sharpness, shear and translate in x and in y.
  Where a distortion uncovers the border, the new pixels are grey, 128.

  Args:
    num_layers: Number of distortions.
    magnitude: Strength of the distortions. At 0 only autocontrast and equalize
      change the image; 10 reaches the ends of the paper's ranges; larger values
      go further as far as a distortion allows.
    legacy: Whether to use the 16 distortions of google-research/big_vision, as
      its published results do. They include invert, cutout and solarize_add but
      not the identity, and their strength does not always grow with the
      magnitude: posterize and solarize get weaker; color, contrast, brightness
      and sharpness change nothing at 5 and only exaggerate above it. Contrast
      blends with h * w / 256 instead of the mean. The threshold of solarize
      wraps around, so solarize inverts the image at 10.

  Source: arXiv:1909.13719. As in torchvision, blends go both ways and
    translations are fractions of the image's sides. Unlike there, the strength
    of every distortion grows with the magnitude.
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
  """Returns {name: fn(image)}, the 14 distortions at a magnitude.

  Args:
    magnitude: Strength; 0 changes nothing.
    sign: float32[], -1 or 1: direction of the distortions that have one.
    seed: Unused; `legacy_changes` needs it.
  """
  del seed
  level = magnitude / 10
  signed = sign * level
  factor = tf.maximum(0.0, 1 + 0.9 * signed)
  bits = max(1, 8 - round(4 * level))
  threshold = max(0, round(256 * (1 - level)))
  turn = signed * math.radians(30)
  # 150 pixels of 331, the size of the images in AutoAugment.
  shift = signed * 150 / 331
  return {
      "identity": lambda image: image,
      "autocontrast": distortions.autocontrast,
      "equalize": distortions.equalize,
      "rotate": lambda image: distortions.rotate(image, turn),
      "solarize": lambda image: distortions.solarize(image, threshold),
      "color": lambda image: distortions.color(image, factor),
      "posterize": lambda image: distortions.posterize(image, bits),
      "contrast": lambda image: distortions.contrast(image, factor),
      "brightness": lambda image: distortions.brightness(image, factor),
      "sharpness": lambda image: distortions.sharpness(image, factor),
      "shear_x": lambda image: distortions.shear_x(image, 0.3 * signed),
      "shear_y": lambda image: distortions.shear_y(image, 0.3 * signed),
      "translate_x": lambda image: distortions.translate(
          image, x=shift * distortions.width_of(image)),
      "translate_y": lambda image: distortions.translate(
          image, y=shift * distortions.height_of(image)),
  }


def legacy_changes(magnitude, sign, seed):
  """Returns {name: fn(image)}, the reference's 16 distortions with its quirks.

  Args:
    magnitude: Strength, see `randaug`.
    sign: float32[], -1 or 1: direction of the distortions that have one.
    seed: int32[2], from which the position of cutout is drawn.
  """
  level = magnitude / 10
  signed = sign * level
  factor = level * 1.8 + 0.1
  turn = signed * math.radians(30)
  # The reference computes the number of dropped bits as a uint8, which wraps
  # around, and a shift of a uint8 stops at 7.
  bits = 8 - min((8 - int(level * 4)) % 256, 7)
  return {
      "autocontrast": distortions.autocontrast,
      "equalize": distortions.equalize,
      "invert": lambda image: 255 - image,
      "rotate": lambda image: distortions.rotate(image, turn),
      "posterize": lambda image: distortions.posterize(image, bits),
      "solarize": lambda image: distortions.solarize(
          image, int(level * 256) % 256),
      "color": lambda image: distortions.blend(
          distortions.legacy_grey(image), image, factor),
      "contrast": lambda image: distortions.legacy_contrast(image, factor),
      "brightness": lambda image: distortions.brightness(image, factor),
      "sharpness": lambda image: distortions.sharpness(
          image, factor, rounded=False),
      # The reference shears about the centre of the first pixel, not its edge.
      "shear_x": lambda image: distortions.transform(
          image, (1, 0.3 * signed, -0.15 * signed, 0, 1, 0)),
      "shear_y": lambda image: distortions.transform(
          image, (1, 0, 0, 0.3 * signed, 1, -0.15 * signed)),
      "translate_x": lambda image: distortions.translate(
          image, x=signed * 100),
      "translate_y": lambda image: distortions.translate(
          image, y=signed * 100),
      "cutout": lambda image: distortions.cutout(
          image, int(level * 40), seed),
      "solarize_add": lambda image: distortions.solarize_add(
          image, int(level * 110)),
  }
