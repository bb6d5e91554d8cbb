"""Tests of datasets/tfds/declared.py: stand-ins for unprepared datasets."""

from big_vision.datasets import registry
from big_vision.datasets.tfds import declared
from big_vision.datasets.tfds import prepared
import pytest
import tensorflow as tf


def test_stand_ins_have_specs_and_sizes_but_no_examples(tmp_path):
  with declared.declared_if_missing() as missing:
    source = registry.open_source(
        "cifar10", split="train[:40%]", data_dir=str(tmp_path))
  assert missing == {"cifar10"}
  assert (len(source), source.num_classes) == (20_000, 10)
  examples = tf.data.Dataset.range(1).map(source.read)
  assert examples.element_spec["image"] == tf.TensorSpec([], tf.string)
  assert examples.element_spec["label"] == tf.TensorSpec([], tf.int64)
  with pytest.raises(tf.errors.OpError):
    next(iter(examples))
  assert "is not on this machine" in source.describe(3)


@pytest.mark.parametrize("name", ["cifar11", "cifar10/config"])
def test_only_known_datasets_have_stand_ins(tmp_path, name):
  with declared.declared_if_missing() as missing:
    with pytest.raises(prepared.NotPreparedError):
      registry.open_source(name, split="train", data_dir=str(tmp_path))
  assert not missing


def test_stand_ins_end_with_their_context(tmp_path):
  with declared.declared_if_missing():
    pass
  with pytest.raises(prepared.NotPreparedError):
    registry.open_source("cifar10", split="train", data_dir=str(tmp_path))
