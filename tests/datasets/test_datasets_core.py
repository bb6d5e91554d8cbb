"""Tests of datasets/core.py: opening by name, holding sources in memory."""

import io
import subprocess
import sys

from big_vision import config as config_lib
from big_vision.datasets import core
import numpy as np
from PIL import Image
import pytest
import tensorflow as tf


class _Ragged(core.Source):
  """Images of different sizes; example 3 is damaged if `damaged`."""

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


def test_in_memory_reads_once_and_serves_ragged_values():
  images = _images()
  source = _Ragged(images)
  held = core.in_memory(source)
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
  assert core.in_memory(held) is held


def test_in_memory_names_the_damaged_example():
  with pytest.raises(core.DataError, match="^file 3 cannot be read: "):
    core.in_memory(_Ragged(_images(), damaged=True))


@pytest.mark.parametrize("start, stop, want", [
    (None, None, (0, 10)), (2, 5, (2, 5)), (-3, None, (7, 10)),
    (0.3, 0.75, (3, 7)), (None, 1, (0, 1)), (None, 1.0, (0, 10)),
    (0.5, -1, (5, 9)), (8, 99, (8, 10))])
def test_slice_bounds(start, stop, want):
  assert core.slice_bounds(start, stop, 10, "data") == want


@pytest.mark.parametrize("start, stop, message", [
    (5, 5, "data has 10 examples, none of them in start=5, stop=5"),
    (10, None, "none of them"), (1.5, None, r"start is 1.5.*\[0, 1\]"),
    (None, -0.1, "stop is -0.1"), (True, None, "start is True"),
    (None, "5", "stop is '5'.*must be a number")])
def test_slice_bounds_errors(start, stop, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    core.slice_bounds(start, stop, 10, "data")


@pytest.mark.parametrize("name, kwargs, message", [
    ("bv:digitz", {}, r"'bv:digitz' \(did you mean 'bv:digits'\?\); there are "
     r"\['bv:addition', 'bv:copy', 'bv:digits', 'bv:folder', 'bv:jsonl', "
     r"'bv:listops', 'bv:npz', 'bv:photographs', 'bv:reverse'\]"),
    ("bv:digits", {"splitt": "train"}, r"splitt does not exist \(did you mean "
     r"'split'\?\)\. It accepts \['split'\]"),
    ("bv:digits", {}, r"lacks \['split'\]"),
    ("cifar10", {"split": "train", "dir": "x"}, r"dir does not exist.*"
     r"\['data_dir', 'skip_decode', 'split'\]")])
def test_open_source_errors(name, kwargs, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    core.open_source(name, **kwargs)


def test_modules_do_not_import_tensorflow():
  code = (
      "import sys; from big_vision.datasets import arrays, core, folder, "
      "jsonl, listops, sequences, tfds_source; "
      "from big_vision.tools import prepare_dataset; "
      "print([m for m in sys.modules if m.startswith('tensorflow')])")
  found = subprocess.run(
      [sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert found.stdout == "[]\n"
