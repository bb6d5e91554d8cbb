"""Tests of datasets/memory.py: holding sources in memory."""

import io

from big_vision.datasets import core
from big_vision.datasets import memory
import numpy as np
from PIL import Image
import pytest
import tensorflow as tf


class _Ragged(core.Source):
  """Images of different sizes; example 3 is damaged if `damaged` is set."""

  num_classes = 4
  class_names = list("abcd")

  def __init__(self, images, damaged=False):
    files = []
    for image in images:
      buffer = io.BytesIO()
      Image.fromarray(image).save(buffer, "PNG")
      files.append(buffer.getvalue())
    if damaged:
      files[3] = files[3][:20]
    self._files = tf.constant(files)
    self.num_reads = 0

  def __len__(self):
    return len(self._files)

  def read(self, index):
    def count():
      self.num_reads += 1
      return np.int64(1)
    image = tf.io.decode_png(self._files[index], 3)
    return {"nested": {"image": image, "size": tf.shape(image)},
            "count": tf.numpy_function(count, [], tf.int64), "id": index}

  def describe(self, index):
    return f"file {index}"


def _images():
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, (2 + i, 3 * i + 1, 3), dtype=np.uint8)
          for i in range(5)]


def test_a_source_is_read_once_and_keeps_values_of_any_size():
  images = _images()
  source = _Ragged(images)
  held = memory.in_memory(source)
  assert source.num_reads == 5
  assert (len(held), held.num_classes, held.class_names) == (
      5, 4, ["a", "b", "c", "d"])
  dataset = tf.data.Dataset.from_tensor_slices(
      np.array([4, 0, 4, 2])).map(held.read)
  assert dataset.element_spec["nested"]["image"].dtype == tf.uint8
  assert dataset.element_spec["nested"]["image"].shape.as_list() == [
      None, None, 3]
  for index, example in zip([4, 0, 4, 2], dataset):
    np.testing.assert_array_equal(example["nested"]["image"], images[index])
    np.testing.assert_array_equal(
        example["nested"]["size"], images[index].shape)
    assert example["id"] == index
  assert source.num_reads == 5
  assert held.describe(2) == "file 2"
  assert memory.in_memory(held) is held


def test_a_damaged_example_is_named():
  with pytest.raises(core.DataError, match="^file 3 cannot be read: "):
    memory.in_memory(_Ragged(_images(), damaged=True))
