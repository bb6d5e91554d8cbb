"""Tests of datasets/tfds/tfrecord.py."""

from big_vision.datasets import core
from big_vision.datasets import memory
from big_vision.datasets import registry
import numpy as np
import pytest
import tensorflow as tf
from tests.datasets.tfds import tiny_dataset


def _number(record, source):
  return round(7 * float(source.parse(record)["number"]))


def test_an_unseeded_stream_follows_the_files(data_dirs):
  source = registry.open_source(
      "tiny", split="train", data_dir=data_dirs["tfrecord"])
  assert isinstance(source, core.StreamSource)
  assert (len(source), source.num_classes) == (23, 3)
  examples = list(source.stream(None, 1).map(source.parse).as_numpy_iterator())
  assert len(examples) == 23
  for i, example in enumerate(examples):
    tiny_dataset.check_example(example, "train", i)
  assert tiny_dataset.numbers(source, None, 99, first=20) == [20, 21, 22]
  assert source.describe_position(13).endswith(
      "/tiny-train.tfrecord-00002 record 3")


def test_a_stream_is_a_function_of_seed_and_position(data_dirs):
  source = registry.open_source(
      "tiny", split="train", data_dir=data_dirs["tfrecord"])
  stream = tiny_dataset.numbers(source, 5, 23 * 3)
  # Every epoch has every example once, in an order of its own.
  epochs = [stream[i * 23:(i + 1) * 23] for i in range(3)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(23))
  assert len(set(map(tuple, epochs))) == 3
  assert epochs[0] != list(range(23))
  # Seeds that other code sets change nothing.
  tf.random.set_seed(17)
  assert tiny_dataset.numbers(source, 5, 69) == stream
  assert tiny_dataset.numbers(source, 6, 69) != stream
  again = registry.open_source(
      "tiny", split="train", data_dir=data_dirs["tfrecord"])
  for first in 1, 22, 23, 24, 50:
    rest = tiny_dataset.numbers(again, 5, 69 - first, first=first)
    assert rest == stream[first:]


def test_every_position_of_a_shuffle_gets_every_example(data_dirs):
  source = registry.open_source(
      "tiny", split="test", data_dir=data_dirs["tfrecord"])
  stream = np.reshape(
      tiny_dataset.numbers(source, 0, 7 * 300, buffer_size=7), [300, 7])
  counts = np.stack([np.bincount(c, minlength=7) for c in stream.T])
  # Binomial with mean 42.9 and deviation 6.1: five deviations.
  assert counts.min() > 12 and counts.max() < 74


def _record_ends(path):
  """Returns where the records of a TFRecord file end, by its framing."""
  data = path.read_bytes()
  ends = []
  while (ends[-1] if ends else 0) < len(data):
    start = ends[-1] if ends else 0
    length = int.from_bytes(data[start:start + 8], "little")
    ends.append(start + 8 + 4 + length + 4)
  return ends


@pytest.mark.parametrize("damage, message", [
    ("truncated", "is damaged at record 3 of 5"),
    ("shortened", "has 3 records; the dataset's info counts 5"),
    ("flipped", "is damaged at record 1 of 5")])
def test_a_damaged_record_is_named(copies, damage, message):
  data_dir = str(copies["tfrecord"])
  path = copies["tfrecord"] / "tiny" / "1.2.0" / (
      "tiny-train.tfrecord-00001")
  ends = _record_ends(path)
  data = bytearray(path.read_bytes())
  if damage == "truncated":
    data = data[:ends[3] - 1]
  elif damage == "shortened":
    data = data[:ends[2]]
  else:
    data[(ends[0] + ends[1]) // 2] ^= 4
  path.write_bytes(data)

  source = registry.open_source("tiny", split="train", data_dir=data_dir)
  for seed in None, 0:
    with pytest.raises(tf.errors.OpError) as error:
      tiny_dataset.numbers(source, seed, 30)
    assert f"{path} {message}" in source.describe_error(error.value)
  with pytest.raises(core.DataError, match=f"{path} {message}"):
    source.check()
  with pytest.raises(core.DataError, match="-00001 record"):
    memory.in_memory(source)


def test_describe_names_the_file_of_a_record(data_dirs):
  source = registry.open_source(
      "tiny", split="train", data_dir=data_dirs["tfrecord"])
  source.check()
  assert "can be read, yet reading failed: why" in source.describe_error(
      ValueError("why"))
  record = next(r for r in source.stream(0, 23).take(23).as_numpy_iterator()
                if _number(r, source) == 13)
  assert source.describe(record) == source.describe_position(13)
  assert "none of the files" in source.describe(b"?")
