"""Distortions of images, the building blocks of RandAugment.

All functions take an image, uint8[h, w, 3], and return one of the same type and
shape, unless they say otherwise. Strengths are Python numbers or float32[].
"""

import tensorflow as tf

# Grey value of pixels that a rotation, shear or translation uncovers.
FILL = 128


def width_of(image):
  return tf.cast(tf.shape(image)[1], tf.float32)


def height_of(image):
  return tf.cast(tf.shape(image)[0], tf.float32)


def blend(other, image, factor):
  """Returns other + factor * (image - other), clipped and truncated to uint8.

  Args:
    other: Image, or anything that broadcasts to one; the result at factor 0.
    image: Image; the result at factor 1.
    factor: Weight; values above 1 exaggerate the difference.
  """
  other = tf.cast(other, tf.float32)
  mixed = other + factor * (tf.cast(image, tf.float32) - other)
  return tf.cast(tf.clip_by_value(mixed, 0.0, 255.0), tf.uint8)


def grey(image):
  """Returns the luma, uint8[h, w, 1], rounded; in integers, as PIL does."""
  weights = tf.constant([19595, 38470, 7471])  # Luma in units of 2 ** -16.
  luma = tf.reduce_sum(
      tf.cast(image, tf.int32) * weights, axis=-1, keepdims=True)
  return tf.cast((luma + 2**15) // 2**16, tf.uint8)


def legacy_grey(image):
  """Returns the luma, uint8[h, w, 1], as TensorFlow rounds it."""
  return tf.image.rgb_to_grayscale(image)


def color(image, factor):
  """Makes colours weaker (factor < 1) or stronger (factor > 1)."""
  return blend(grey(image), image, factor)


def brightness(image, factor):
  """Darkens (factor < 1) or brightens (factor > 1)."""
  return blend(0, image, factor)


def contrast(image, factor):
  """Moves values towards (factor < 1) or away from the mean luma."""
  mean = tf.reduce_mean(tf.cast(grey(image), tf.float32))
  return blend(tf.floor(mean + 0.5), image, factor)


def legacy_contrast(image, factor):
  """Changes the contrast about h * w / 256, where the mean was intended.

  Source: google-research/big_vision, which has this fault.
  """
  wrong_mean = tf.minimum(255.0, height_of(image) * width_of(image) / 256)
  return blend(tf.floor(wrong_mean), image, factor)


def sharpness(image, factor, rounded=True):
  """Blurs (factor < 1) or sharpens (factor > 1) all but the border pixels.

  Args:
    image: Image.
    factor: Weight of the image against its blurred version.
    rounded: Whether the blurred image is rounded, as in PIL, or truncated.
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
  """Inverts values of at least `threshold`: 0 inverts all values, 256 none."""
  # In int32, because 256 does not fit in a uint8.
  return tf.where(tf.cast(image, tf.int32) < threshold, image, 255 - image)


def solarize_add(image, addition):
  """Adds to values below 128; the sum is at most 255."""
  added = tf.minimum(tf.cast(image, tf.int32) + addition, 255)
  return tf.where(image < 128, tf.cast(added, tf.uint8), image)


def posterize(image, bits):
  """Keeps the highest `bits`, 1 to 8, of each value."""
  mask = tf.constant(256 - 2**(8 - bits), tf.uint8)
  return tf.bitwise.bitwise_and(image, mask)


def autocontrast(image):
  """Stretches each channel to [0, 255], unless all its values are equal."""
  pixels = tf.cast(image, tf.float32)
  low = tf.reduce_min(pixels, axis=(0, 1))
  high = tf.reduce_max(pixels, axis=(0, 1))
  scale = 255 / (high - low)
  stretched = tf.clip_by_value(pixels * scale - low * scale, 0.0, 255.0)
  return tf.where(high > low, tf.cast(stretched, tf.uint8), image)


def equalize(image):
  """Makes the values of each channel equally frequent, as far as possible."""
  # One table serves all channels: channel c uses the entries from 256 * c on.
  places = tf.cast(image, tf.int32) + 256 * tf.range(3)
  counts = tf.reshape(
      tf.math.bincount(tf.reshape(places, [-1]), minlength=3 * 256), [3, 256])
  below = tf.cumsum(counts, axis=1, exclusive=True)
  highest = tf.reduce_max(tf.cast(image, tf.int32), axis=(0, 1))
  # Number of pixels for each grey level, without those of the highest value. It
  # is 0 where a channel has too few other pixels, which then stays as it is.
  step = tf.gather(below, highest, axis=1, batch_dims=1)[:, None] // 255
  table = (below + step // 2) // tf.maximum(step, 1)
  table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256))
  return tf.gather(tf.cast(tf.reshape(table, [-1]), tf.uint8), places)


def transform(image, coefficients):
  """Moves pixels by an affine map, to the nearest pixel.

  Args:
    image: Image.
    coefficients: Six numbers: the pixel centred at (x, y) is taken from
      (a x + b y + c, d x + e y + f), or becomes grey if that is outside.
      Lengths are in pixels, x to the right and y down, from the image's upper
      left corner.
  """
  a, b, c, d, e, f = [tf.cast(value, tf.float32) for value in coefficients]
  # The TensorFlow op counts from the centre of the first pixel instead.
  c = c + (a + b - 1) / 2
  f = f + (d + e - 1) / 2
  moved = tf.raw_ops.ImageProjectiveTransformV3(
      images=image[None], transforms=[[a, b, c, d, e, f, 0.0, 0.0]],
      output_shape=tf.shape(image)[:2], fill_value=float(FILL),
      interpolation="NEAREST", fill_mode="CONSTANT")
  return tf.ensure_shape(moved[0], image.shape)


def rotate(image, angle):
  """Turns the image about its centre, counterclockwise by `angle` radians."""
  x, y = width_of(image) / 2, height_of(image) / 2
  cos, sin = tf.cos(angle), tf.sin(angle)
  return transform(image, (
      cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y))


def shear_x(image, amount):
  """Moves each row left by `amount` times its distance from the top."""
  return transform(image, (1, amount, 0, 0, 1, 0))


def shear_y(image, amount):
  """Moves each column up by `amount` times its distance from the left."""
  return transform(image, (1, 0, 0, amount, 1, 0))


def translate(image, x=0.0, y=0.0):
  """Moves the image left by `x` and up by `y` pixels, to the nearest pixel."""
  return transform(image, (1, 0, x, 0, 1, y))


def cutout(image, half_size, seed):
  """Covers a grey square with a random centre; it is cut off at the border.

  Args:
    image: Image.
    half_size: Half the side of the square, in pixels.
    seed: int32[2], from which the centre is drawn.
  """
  def covered(side, seed_side):
    middle = tf.random.stateless_uniform([], seed_side, 0, side, tf.int32)
    places = tf.range(side)
    return (places >= middle - half_size) & (places < middle + half_size)
  seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
  height, width = tf.unstack(tf.shape(image)[:2])
  rows, columns = covered(height, seeds[0]), covered(width, seeds[1])
  inside = rows[:, None, None] & columns[None, :, None]
  return tf.where(inside, tf.constant(FILL, tf.uint8), image)
