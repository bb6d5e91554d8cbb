"""Tests of datasets/tfds/array_record.py."""

import collections
import re

from array_record.python import array_record_module
from big_vision.datasets import core
from big_vision.datasets import memory
from big_vision.datasets import registry
from big_vision.datasets.tfds import array_record
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from tests.datasets.tfds import tiny_dataset


def test_any_index_can_be_read(data_dirs):
  source = registry.open_source(
      "tiny", split="train", data_dir=data_dirs["array_record"])
  assert isinstance(source, core.Source)
  assert len(source) == 23
  assert (source.num_classes, source.class_names) == (3, ["x", "y", "z"])
  order = np.random.default_rng(0).permutation(23)
  for i, example in zip(order, tiny_dataset.read(source, order)):
    tiny_dataset.check_example(example, "train", i)
  spec = tf.data.Dataset.range(1).map(source.read).element_spec
  assert spec["image"] == tf.TensorSpec([], tf.string)
  assert spec["label"] == tf.TensorSpec([], tf.int64)
  assert source.describe(13).endswith(
      "/tiny/1.2.0/tiny-train.array_record-00002 record 3")


def test_many_records_are_fetched_at_once(data_dirs):
  source = registry.open_source(
      "tiny", split="train[3:]+test", data_dir=data_dirs["array_record"])
  order = np.random.default_rng(0).permutation(27)
  examples = tf.data.Dataset.from_tensor_slices(order).batch(8).map(
      source.fetch, num_parallel_calls=4).unbatch().map(source.parse)
  for i, example in zip(order, examples.as_numpy_iterator(), strict=True):
    split, i = ("train", i + 3) if i < 20 else ("test", i - 20)
    tiny_dataset.check_example(example, split, i)


def test_fetched_bytes_are_unchanged(tmp_path):
  want = [b"ends in zeros\0\0", b"", b"\xff\0\xfe", b"x" * 100_000]
  path = str(tmp_path / "records")
  writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
  for record in want:
    writer.write(record)
  writer.close()
  part = tfds.core.utils.shard_utils.FileInstruction(path, 0, 4, 4)
  source = array_record.ArrayRecordSource(
      [part], tfds.features.FeaturesDict({"x": np.int64}), [], "raw")
  assert source.fetch(tf.constant([3, 0, 2, 1, 0], tf.int64)).numpy().tolist(
      ) == [want[i] for i in [3, 0, 2, 1, 0]]


def test_a_damaged_record_fails_alone(copies):
  path = copies["array_record"] / "tiny" / "1.2.0" / (
      "tiny-train.array_record-00001")
  data = bytearray(path.read_bytes())
  source = registry.open_source(
      "tiny", split="train", data_dir=str(copies["array_record"]))
  images = [match.start() for match in re.finditer(b"IDAT", data)]
  data[images[2] + 10] ^= 4
  path.write_bytes(data)
  for i in range(23):
    if i != 7:
      tiny_dataset.check_example(tiny_dataset.read(source, [i])[0], "train", i)
  with pytest.raises(tf.errors.InvalidArgumentError,
                     match=f"{path} record 2 cannot be read"):
    tiny_dataset.read(source, [7])
  with pytest.raises(core.DataError, match=f"^{path} record 2 cannot be read"):
    memory.in_memory(source)
  # Records fetched together with a damaged one are whole.
  records = source.fetch(tf.range(23, dtype=tf.int64)).numpy()
  for i in range(23):
    if i != 7:
      example = source.parse(tf.constant(records[i]))
      tiny_dataset.check_example(
          {k: v.numpy() for k, v in example.items()}, "train", i)


def test_a_truncated_file_is_named(copies):
  path = copies["array_record"] / "tiny" / "1.2.0" / (
      "tiny-train.array_record-00001")
  path.write_bytes(path.read_bytes()[:-10])
  source = registry.open_source(
      "tiny", split="train", data_dir=str(copies["array_record"]))
  with pytest.raises(core.DataError, match=f"{path} record 0 cannot be read"):
    memory.in_memory(source)


def test_the_limit_of_open_files_is_raised(monkeypatch):
  limits = [1024, 4096]
  monkeypatch.setattr(
      array_record.resource, "getrlimit", lambda unused_what: tuple(limits))
  monkeypatch.setattr(
      array_record.resource, "setrlimit",
      lambda unused_what, new: limits.__setitem__(slice(None), new))
  array_record._allow_open_files(10)
  assert limits == [1024, 4096]
  array_record._allow_open_files(1024)
  assert limits == [4096, 4096]
  with pytest.raises(core.DataError, match="4096 .ulimit -Hn"):
    array_record._allow_open_files(4000)
  limits[:] = [1024, array_record.resource.RLIM_INFINITY]
  array_record._allow_open_files(4000)
  assert limits[0] == 4512


def test_threads_share_readers(data_dirs):
  source = registry.open_source(
      "tiny", split="train", data_dir=data_dirs["array_record"])
  indices = np.random.default_rng(0).integers(0, 23, 500)
  examples = tf.data.Dataset.from_tensor_slices(indices).map(
      source.read, num_parallel_calls=8).as_numpy_iterator()
  counts = collections.Counter()
  for i, example in zip(indices, examples, strict=True):
    tiny_dataset.check_example(example, "train", i)
    counts[i] += 1
  assert len(counts) == 23
