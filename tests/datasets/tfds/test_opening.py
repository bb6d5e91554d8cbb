"""Tests of datasets/tfds/opening.py: splits, decoding, formats."""

import os

from big_vision import config as config_lib
from big_vision.datasets import core
from big_vision.datasets import memory
from big_vision.datasets import registry
import pytest
import tensorflow as tf
from tests.datasets.tfds import tiny_dataset


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize("split, want", [
    ("test", list(range(7))), ("train[:3]", [0, 1, 2]),
    ("train[4:11]", list(range(4, 11))), ("train[-2:]", [21, 22]),
    ("train[:50%]", list(range(12))), ("test[5:]+train[:1]", [5, 6, 0])])
def test_parts_of_splits_have_their_examples(
    data_dirs, file_format, split, want):
  source = registry.open_source(
      "tiny", split=split, data_dir=data_dirs[file_format])
  if file_format == "tfrecord":
    assert len(source) == len(want)
    source = memory.in_memory(source)
  assert len(source) == len(want)
  for i, example in zip(want, tiny_dataset.read(source, range(len(want)))):
    is_test = example["zeros"].startswith(b"test")
    tiny_dataset.check_example(example, "test" if is_test else "train", i)


def test_an_unknown_split_is_answered_with_the_sizes(data_dirs):
  for split in ("trian", "train[:200%]", "validation+test", "train[",
                "train[30:]", ""):
    with pytest.raises(
        config_lib.ConfigError,
        match=r"tiny:1.2.0 has no split '.*{'train': 23, 'test': 7}"):
      registry.open_source(
          "tiny", split=split, data_dir=data_dirs["array_record"])
  with pytest.raises(config_lib.ConfigError, match="is empty"):
    registry.open_source(
        "tiny", split="train[5:5]", data_dir=data_dirs["array_record"])


def test_skip_decode_chooses_what_stays_encoded(data_dirs):
  data_dir = data_dirs["array_record"]
  source = registry.open_source(
      "tiny", split="test", data_dir=data_dir, skip_decode=[])
  spec = tf.data.Dataset.range(1).map(source.read).element_spec
  assert spec["image"] == tf.TensorSpec([4, None, 3], tf.uint8)
  example, = tiny_dataset.read(source, [4])
  tiny_dataset.check_example(example, "test", 4, decoded=True)
  with pytest.raises(config_lib.ConfigError, match=r"\['images'\], which "
                     r"tiny:1.2.0 does not have; it has \['image', 'label'"):
    registry.open_source(
        "tiny", split="test", data_dir=data_dir, skip_decode=["images"])


def test_both_formats_can_be_held_in_memory(data_dirs, monkeypatch):
  for file_format in "array_record", "tfrecord":
    source = registry.open_source(
        "tiny", split="train", data_dir=data_dirs[file_format])
    held = memory.in_memory(source)
    # From here on nothing is read.
    for name in "_fetch", "stream":
      monkeypatch.setattr(source, name, None, raising=False)
    assert isinstance(held, core.Source)
    assert (len(held), held.num_classes, held.class_names) == (
        23, 3, ["x", "y", "z"])
    for i, example in zip([22, 0, 7], tiny_dataset.read(held, [22, 0, 7])):
      tiny_dataset.check_example(example, "train", i)
    assert held.describe(13).endswith("-00002 record 3")


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_a_missing_file_is_named_when_opened(copies, file_format):
  directory = copies[file_format] / "tiny" / "1.2.0"
  fname = f"tiny-train.{file_format}-00003"
  os.remove(directory / fname)
  with pytest.raises(
      core.DataError, match=f"{fname} does not exist, though.*5 records"):
    registry.open_source(
        "tiny", split="train", data_dir=str(copies[file_format]))
  os.mkfifo(directory / fname)  # Reading it would wait for ever.
  with pytest.raises(core.DataError, match=f"{fname} is a pipe, though"):
    registry.open_source(
        "tiny", split="train", data_dir=str(copies[file_format]))
  # It is not among the first ten.
  registry.open_source(
      "tiny", split="train[:10]", data_dir=str(copies[file_format]))
