"""Ops that crop and mirror images."""

import tensorflow as tf

from big_vision.pp import exif
from big_vision.pp import ops_decode
from big_vision.pp import ops_resize
from big_vision.pp import registry


@registry.register("decode_jpeg_and_inception_crop", random=True)
@registry.in_key_out_key()
def decode_jpeg_and_inception_crop(
    size: ops_resize.Size | None = None, area_min: float = 5,
    area_max: float = 100, ratio_min: float = 0.75, ratio_max: float = 1.33,
    method: str = "bilinear", antialias: bool = False, precise: bool = False,
    orient: bool = True):
  """Computes `decode|inception_crop(...)` but decodes only the crop of a JPEG.

  string[] to uint8[size, 3] in [0, 255]. Other formats, and JPEGs that must be
  turned upright, are decoded in full. Raises the same errors as `decode`.

  Args:
    size: Height and width of the result; None keeps the size of the crop.
    area_min: Area of the smallest crop, in percent of the image.
    area_max: Area of the largest crop, in percent of the image.
    ratio_min: Width / height of the narrowest crop.
    ratio_max: Width / height of the widest crop.
    method: see `resize`.
    antialias: see `resize`.
    precise: see `decode`.
    orient: see `decode`.
  """
  resize_crop = _make_resize_crop(size, method, antialias)
  dct_method = "INTEGER_ACCURATE" if precise else ""

  def draw_window(shape, seed):
    return _inception_window(
        shape, seed, area_min, area_max, ratio_min, ratio_max)

  def decode_and_crop(contents, seed):
    contents = ops_decode.check_encoded(contents)

    def part():
      shape = tf.io.extract_jpeg_shape(contents)
      checked = ops_decode.check_size(contents, shape[:2])
      return _decode_window(
          checked, shape[1], draw_window(shape, seed), dct_method)

    def whole():
      image = ops_decode.decode_image(contents, 3, precise, orient)
      window = draw_window(tf.shape(image), seed)
      return tf.slice(
          image, [window[0], window[1], 0], [window[2], window[3], 3])

    can_decode_part = exif.is_upright_jpeg if orient else tf.io.is_jpeg
    image = tf.cond(can_decode_part(contents), part, whole)
    return resize_crop(ops_decode.with_channels(image, 3))
  return decode_and_crop


def _decode_window(contents, image_width, window, dct_method):
  """Decodes the part of a JPEG inside a window, int32[4] y, x, height, width.

  The JPEG library computes the outermost columns of a cut-out from fewer
  neighbours than in the whole image, so one more column is decoded on either
  side and dropped.
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
    size: ops_resize.Size | None = None, area_min: float = 5,
    area_max: float = 100, method: str = "bilinear", antialias: bool = False):
  """Crops a window of random place, size and shape, and resizes it.

  Any dtype [h, w, c] to the same dtype and range [size, c]. The window's width
  / height lies between 0.75 and 1.33.

  Args:
    size: Height and width of the result; None keeps the size of the crop.
    area_min: Area of the smallest crop, in percent of the image.
    area_max: Area of the largest crop, in percent of the image.
    method: see `resize`.
    antialias: see `resize`.

  Source: arXiv:1409.4842, section 6.
  """
  resize_crop = _make_resize_crop(size, method, antialias)

  def crop(image, seed):
    y, x, height, width = tf.unstack(_inception_window(
        tf.shape(image), seed, area_min, area_max, 0.75, 1.33))
    image_crop = tf.slice(image, [y, x, 0], [height, width, -1])
    return resize_crop(tf.ensure_shape(
        image_crop, [None, None, image.shape[-1]]))
  return crop


def _inception_window(shape, seed, area_min, area_max, ratio_min, ratio_max):
  """Draws a window of an image, int32[4] y, x, height, width.

  Args:
    shape: int32[3], shape of the image.
    seed: int32[2].
    area_min, area_max, ratio_min, ratio_max: see
      `decode_jpeg_and_inception_crop`.
  """
  begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
      shape, tf.zeros([0, 0, 4]), seed, min_object_covered=0.0,
      aspect_ratio_range=(ratio_min, ratio_max),
      area_range=(area_min / 100, area_max / 100),
      use_image_if_no_bounding_boxes=True)
  return tf.concat([begin[:2], size[:2]], axis=0)


def _make_resize_crop(size, method, antialias):
  """Makes fn(image) -> image of size `size`; the identity if that is None."""
  ops_resize.check_method(method)
  size = None if size is None else ops_resize.size_pair(size)

  def resize_crop(image):
    if size is None:
      return image
    return ops_resize.resize_image(image, size, method, antialias)
  return resize_crop


@registry.register("random_crop", random=True)
@registry.in_key_out_key()
def random_crop(crop_size: ops_resize.Size):
  """Crops a window of fixed size; all places are equally likely.

  Any dtype [h, w, c] to the same dtype [crop_size, c]. A smaller image raises
  an InvalidArgumentError.
  """
  height, width = ops_resize.size_pair(crop_size)

  def crop(image, seed):
    image = _check_not_smaller(image, height, width)
    return tf.ensure_shape(
        tf.image.stateless_random_crop(
            image, [height, width, tf.shape(image)[-1]], seed),
        [height, width, image.shape[-1]])
  return crop


@registry.register("central_crop")
@registry.in_key_out_key()
def central_crop(crop_size: ops_resize.Size | None = None):
  """Crops the centre; an odd margin is one pixel larger at the end.

  Any dtype [h, w, c] to the same dtype [crop_size, c]. A smaller image raises
  an InvalidArgumentError.

  Args:
    crop_size: Height and width of the crop; None for the largest square that
      fits.
  """
  size = None if crop_size is None else ops_resize.size_pair(crop_size)

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
  """Returns `image`; reading it fails if it is smaller than that."""
  shape = tf.shape(image)
  return registry.checked(
      image, (shape[0] >= height) & (shape[1] >= width),
      f"A crop of ({height}, {width}) does not fit into the shape", shape)


@registry.register("flip_lr", random=True)
@registry.in_key_out_key()
def flip_lr():
  """Mirrors the image left to right with probability 1/2.

  Any dtype [h, w, c] to the same.
  """
  def flip(image, seed):
    return tf.cond(
        tf.random.stateless_uniform([], seed) < 0.5,
        lambda: tf.reverse(image, [1]), lambda: image)
  return flip
