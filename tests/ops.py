"""Applies preprocessing strings, and makes images, for the tests of ops."""

import io

import numpy as np
from PIL import Image
import tensorflow as tf

from big_vision.pp import builder

SEED = np.array([3, 4], np.int32)


def noise(height, width, channels=3):
  """Makes an image of random values, the same at every call."""
  shape = (height, width, channels)
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def smooth(height, width):
  """Makes an image that JPEG compresses well, as it does photographs."""
  y, x = np.mgrid[:height, :width] / 7
  image = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1)
  return (image * 100 + 128).astype(np.uint8)


def encode(image, kind, **options):
  """Encodes uint8[h, w], [h, w, 3] or [h, w, 4] with PIL."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, kind, **options)
  return buffer.getvalue()


def apply(string, **data):
  """Applies a preprocessing string to one example; returns arrays."""
  result = builder.make_preprocess(string)(data)
  return tf.nest.map_structure(lambda x: x.numpy(), result)


def run(string, image):
  """Applies a preprocessing string to one image."""
  return apply(string, image=image, _seed=SEED)["image"]


def run_graph(string, image):
  """Applies a string in a graph that does not know the image's size.

  Returns:
    The result, and its shape as far as the graph knows it.
  """
  fn = builder.make_preprocess(string)
  spec = tf.TensorSpec([None, None, image.shape[-1]], image.dtype)
  dataset = tf.data.Dataset.from_generator(
      lambda: [image], output_signature=spec)
  dataset = dataset.map(lambda x: fn({"image": x, "_seed": SEED})["image"])
  return next(dataset.as_numpy_iterator()), dataset.element_spec.shape


def run_all(string, num, **data):
  """Applies a string to one example with `num` different seeds."""
  fn = builder.make_preprocess(string)
  seeds = np.stack([np.arange(num), np.arange(num) ** 2], 1).astype(np.int32)
  dataset = tf.data.Dataset.from_tensor_slices(seeds)
  return list(dataset.map(
      lambda seed: fn({**data, "_seed": seed})).as_numpy_iterator())


def run_image(string, image, num):
  """Applies a string to one image with `num` different seeds."""
  return [out["image"] for out in run_all(string, num, image=image)]
