"""Tests of datasets/tfds_source.py, on small datasets written by TFDS."""

import collections
import os
import re
import shutil
import socket

from array_record.python import array_record_module
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from big_vision import config as config_lib
from big_vision.datasets import core
from big_vision.datasets import tfds_source

_SIZES = {"train": 23, "test": 7}  # Train is in shards of 5, 5, 5, 5, 3.


def _example(split, i):
  rng = np.random.default_rng([i, len(split)])
  return {"image": rng.integers(0, 256, (4, 6 + i % 3, 3), dtype=np.uint8),
          "label": i % 3, "number": np.float32(i / 7),
          "zeros": f"{split}{i}\0\0"}


def _write_dataset(data_dir, file_format, name="tiny", version="1.2.0"):
  """Writes a dataset in the layout of TFDS, by TFDS."""
  features = tfds.features.FeaturesDict({
      "image": tfds.features.Image(shape=(4, None, 3)),
      "label": tfds.features.ClassLabel(names=["x", "y", "z"]),
      "number": np.float32, "zeros": tfds.features.Text()})
  directory = os.path.join(data_dir, *name.split("/"), version)
  os.makedirs(directory)
  name, _, config = name.partition("/")
  identity = tfds.core.dataset_info.DatasetIdentity(
      name=name, version=tfds.core.Version(version), data_dir=directory,
      module_name="", config_name=config)
  writer = tfds.core.SequentialWriter(
      tfds.core.DatasetInfo(builder=identity, features=features),
      max_examples_per_shard=5, file_format=file_format)
  writer.initialize_splits(list(_SIZES))
  for split, size in _SIZES.items():
    writer.add_examples({split: [_example(split, i) for i in range(size)]})
  writer.close_all()


@pytest.fixture(name="data_dirs", scope="module")
def _data_dirs(tmp_path_factory):
  """{format: directory with the dataset "tiny"}; not to be written to."""
  found = {}
  for file_format in "array_record", "tfrecord":
    found[file_format] = str(tmp_path_factory.mktemp(file_format))
    _write_dataset(found[file_format], file_format)
  return found


@pytest.fixture(name="no_network", autouse=True)
def _no_network(monkeypatch):
  def refuse(*unused_args):
    raise AssertionError("A dataset that is prepared needs no network.")
  monkeypatch.setattr(socket.socket, "connect", refuse)
  monkeypatch.setattr(socket, "getaddrinfo", refuse)


def _check_example(example, split, i, decoded=False):
  want = _example(split, i)
  image = example["image"] if decoded else tf.io.decode_png(example["image"])
  np.testing.assert_array_equal(image, want["image"])
  assert example["label"] == want["label"]
  assert example["label"].dtype == np.int64
  assert example["number"] == want["number"]
  assert example["zeros"].decode() == want["zeros"]


def _read(source, indices):
  return list(tf.data.Dataset.from_tensor_slices(
      np.array(indices, np.int64)).map(source.read).as_numpy_iterator())


def _number(record, source):
  return round(7 * float(source.parse(record)["number"]))


def _numbers(source, seed, count, buffer_size=4, first=0):
  """Which examples a stream yields."""
  records = source.stream(seed, buffer_size, first).map(
      lambda record: source.parse(record)["number"])
  return [round(7 * float(x)) for x in records.take(count).as_numpy_iterator()]


def test_array_record_reads_any_index(data_dirs):
  source = core.open_source(
      "tiny", split="train", data_dir=data_dirs["array_record"])
  assert isinstance(source, core.Source)
  assert len(source) == 23
  assert (source.num_classes, source.class_names) == (3, ["x", "y", "z"])
  order = np.random.default_rng(0).permutation(23)
  for i, example in zip(order, _read(source, order)):
    _check_example(example, "train", i)
  spec = tf.data.Dataset.range(1).map(source.read).element_spec
  assert spec["image"] == tf.TensorSpec([], tf.string)
  assert spec["label"] == tf.TensorSpec([], tf.int64)
  assert source.describe(13).endswith(
      "/tiny/1.2.0/tiny-train.array_record-00002 record 3")


def test_array_record_fetches_many_at_once(data_dirs):
  source = core.open_source(
      "tiny", split="train[3:]+test", data_dir=data_dirs["array_record"])
  order = np.random.default_rng(0).permutation(27)
  examples = tf.data.Dataset.from_tensor_slices(order).batch(8).map(
      source.fetch, num_parallel_calls=4).unbatch().map(source.parse)
  for i, example in zip(order, examples.as_numpy_iterator(), strict=True):
    _check_example(example, *(("train", i + 3) if i < 20 else ("test", i - 20)))


def test_array_record_fetches_bytes_as_they_are(tmp_path):
  want = [b"ends in zeros\0\0", b"", b"\xff\0\xfe", b"x" * 100_000]
  path = str(tmp_path / "records")
  writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
  for record in want:
    writer.write(record)
  writer.close()
  part = tfds.core.utils.shard_utils.FileInstruction(path, 0, 4, 4)
  source = tfds_source.ArrayRecordSource(
      [part], tfds.features.FeaturesDict({"x": np.int64}), [], "raw")
  assert source.fetch(tf.constant([3, 0, 2, 1, 0], tf.int64)).numpy().tolist(
      ) == [want[i] for i in [3, 0, 2, 1, 0]]


def test_stream_in_order_of_the_files(data_dirs):
  source = core.open_source(
      "tiny", split="train", data_dir=data_dirs["tfrecord"])
  assert isinstance(source, core.StreamSource)
  assert (len(source), source.num_classes) == (23, 3)
  examples = list(source.stream(None, 1).map(source.parse).as_numpy_iterator())
  assert len(examples) == 23
  for i, example in enumerate(examples):
    _check_example(example, "train", i)
  assert _numbers(source, None, 99, first=20) == [20, 21, 22]
  assert source.describe_position(13).endswith(
      "/tiny-train.tfrecord-00002 record 3")


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize("split, want", [
    ("test", list(range(7))), ("train[:3]", [0, 1, 2]),
    ("train[4:11]", list(range(4, 11))), ("train[-2:]", [21, 22]),
    ("train[:50%]", list(range(12))), ("test[5:]+train[:1]", [5, 6, 0])])
def test_splits(data_dirs, file_format, split, want):
  source = core.open_source(
      "tiny", split=split, data_dir=data_dirs[file_format])
  if file_format == "tfrecord":
    assert len(source) == len(want)
    source = core.in_memory(source)
  assert len(source) == len(want)
  for i, example in zip(want, _read(source, range(len(want)))):
    _check_example(example, "test" if example["zeros"].startswith(b"test") else
                   "train", i)


def test_stream_is_a_function_of_seed_and_position(data_dirs):
  source = core.open_source(
      "tiny", split="train", data_dir=data_dirs["tfrecord"])
  stream = _numbers(source, 5, 23 * 3)
  # Every epoch has every example once, in an order of its own.
  epochs = [stream[i * 23:(i + 1) * 23] for i in range(3)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(23))
  assert len(set(map(tuple, epochs))) == 3
  assert epochs[0] != list(range(23))
  # The same again, whatever else in the process sets seeds.
  tf.random.set_seed(17)
  assert _numbers(source, 5, 69) == stream
  assert _numbers(source, 6, 69) != stream
  again = core.open_source(
      "tiny", split="train", data_dir=data_dirs["tfrecord"])
  for first in 1, 22, 23, 24, 50:
    assert _numbers(again, 5, 69 - first, first=first) == stream[first:]


def test_every_position_of_a_shuffle_gets_every_example(data_dirs):
  source = core.open_source(
      "tiny", split="test", data_dir=data_dirs["tfrecord"])
  stream = np.reshape(_numbers(source, 0, 7 * 300, buffer_size=7), [300, 7])
  counts = np.stack([np.bincount(c, minlength=7) for c in stream.T])
  # Binomial with mean 42.9 and deviation 6.1: five deviations.
  assert counts.min() > 12 and counts.max() < 74


def test_in_memory(data_dirs, monkeypatch):
  for file_format in "array_record", "tfrecord":
    source = core.open_source(
        "tiny", split="train", data_dir=data_dirs[file_format])
    held = core.in_memory(source)
    # Nothing is read from here on.
    for name in "_fetch", "stream":
      monkeypatch.setattr(source, name, None, raising=False)
    assert isinstance(held, core.Source)
    assert (len(held), held.num_classes, held.class_names) == (
        23, 3, ["x", "y", "z"])
    for i, example in zip([22, 0, 7], _read(held, [22, 0, 7])):
      _check_example(example, "train", i)
    assert held.describe(13).endswith("-00002 record 3")


def test_skip_decode(data_dirs):
  data_dir = data_dirs["array_record"]
  source = core.open_source(
      "tiny", split="test", data_dir=data_dir, skip_decode=[])
  spec = tf.data.Dataset.range(1).map(source.read).element_spec
  assert spec["image"] == tf.TensorSpec([4, None, 3], tf.uint8)
  _check_example(_read(source, [4])[0], "test", 4, decoded=True)
  with pytest.raises(config_lib.ConfigError, match=r"\['images'\], which "
                     r"tiny:1.2.0 does not have; it has \['image', 'label'"):
    core.open_source(
        "tiny", split="test", data_dir=data_dir, skip_decode=["images"])


def test_unknown_split(data_dirs):
  for split in ("trian", "train[:200%]", "validation+test", "train[",
                "train[30:]", ""):
    with pytest.raises(
        config_lib.ConfigError,
        match=r"tiny:1.2.0 has no split '.*{'train': 23, 'test': 7}"):
      core.open_source(
          "tiny", split=split, data_dir=data_dirs["array_record"])
  with pytest.raises(config_lib.ConfigError, match="is empty"):
    core.open_source(
        "tiny", split="train[5:5]", data_dir=data_dirs["array_record"])


def test_dataset_that_is_not_prepared(data_dirs, monkeypatch, tmp_path):
  data_dir = data_dirs["tfrecord"]
  monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
  with pytest.raises(config_lib.ConfigError) as error:
    core.open_source("tinny", split="train")
  assert "'tinny' is not prepared in " + data_dir in str(error.value)
  assert "(did you mean 'tiny'?)" in str(error.value)
  assert "There are: ['tiny:1.2.0']" in str(error.value)
  assert ("\n  python -m big_vision.tools.prepare_dataset tinny --data_dir "
          f"{data_dir}") in str(error.value)
  with pytest.raises(config_lib.ConfigError, match="'tiny:2.0.0' is not prep"):
    core.open_source("tiny:2.0.0", split="train")
  with pytest.raises(config_lib.ConfigError, match=r"There are: \[\]"):
    core.open_source("tiny", split="train", data_dir=str(tmp_path / "no dir"))
  with pytest.raises(config_lib.ConfigError, match="is not a name"):
    core.open_source("a:b:c", split="train")


def test_versions_and_configs(tmp_path):
  data_dir = str(tmp_path)
  for name, version in [("a", "1.2.0"), ("a", "1.10.0"), ("a", "1.9.0"),
                        ("b/big", "1.0.0"), ("b/small", "1.0.0")]:
    _write_dataset(data_dir, "array_record", name, version)
  os.makedirs(tmp_path / "a" / "incomplete.X_2.0.0")
  shutil.copy(tmp_path / "a" / "1.9.0" / "dataset_info.json",
              tmp_path / "a" / "incomplete.X_2.0.0")

  def find(name):
    found = tfds_source.find_prepared(name, data_dir)
    return os.path.relpath(found.directory, data_dir)

  assert find("a") == "a/1.10.0"
  assert find("a:1.2.0") == "a/1.2.0"
  assert find("a:1.9.*") == "a/1.9.0"
  assert find("b/small") == "b/small/1.0.0"
  assert find("b/big:1.0.0") == "b/big/1.0.0"
  with pytest.raises(config_lib.ConfigError,
                     match=r"choose one of \['b/big', 'b/small'\]"):
    find("b")
  (tmp_path / "b" / ".config").mkdir()
  (tmp_path / "b" / ".config" / "metadata.json").write_text(
      '{"default_config_name": "small"}')
  assert find("b") == "b/small/1.0.0"
  assert len(core.open_source("b", split="test", data_dir=data_dir)) == 7


@pytest.fixture(name="copies")
def _copies(data_dirs, tmp_path):
  """{format: directory} of copies that may be damaged."""
  return {
      file_format: shutil.copytree(data_dir, tmp_path / file_format)
      for file_format, data_dir in data_dirs.items()}


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_missing_file_is_named_when_opened(copies, file_format):
  directory = copies[file_format] / "tiny" / "1.2.0"
  fname = f"tiny-train.{file_format}-00003"
  os.remove(directory / fname)
  with pytest.raises(core.DataError, match=f"{fname} is missing.*5 records"):
    core.open_source("tiny", split="train", data_dir=str(copies[file_format]))
  # It is not among the first ten.
  core.open_source(
      "tiny", split="train[:10]", data_dir=str(copies[file_format]))


def _record_ends(path):
  """Where the records of a TFRecord file end, from its framing."""
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
def test_damaged_tfrecord_is_named(copies, damage, message):
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

  source = core.open_source("tiny", split="train", data_dir=data_dir)
  for seed in None, 0:
    with pytest.raises(tf.errors.OpError) as error:
      _numbers(source, seed, 30)
    assert f"{path} {message}" in source.describe_error(error.value)
  with pytest.raises(core.DataError, match=f"{path} {message}"):
    source.check()
  with pytest.raises(core.DataError, match="-00001 record"):
    core.in_memory(source)


def test_describe_names_the_file_of_a_record(data_dirs):
  source = core.open_source(
      "tiny", split="train", data_dir=data_dirs["tfrecord"])
  source.check()
  assert "can be read, yet reading failed: why" in source.describe_error(
      ValueError("why"))
  record = next(r for r in source.stream(0, 23).take(23).as_numpy_iterator()
                if _number(r, source) == 13)
  assert source.describe(record) == source.describe_position(13)
  assert "none of the files" in source.describe(b"?")


def test_damaged_array_record_fails_alone(copies):
  path = copies["array_record"] / "tiny" / "1.2.0" / (
      "tiny-train.array_record-00001")
  data = bytearray(path.read_bytes())
  source = core.open_source(
      "tiny", split="train", data_dir=str(copies["array_record"]))
  images = [match.start() for match in re.finditer(b"IDAT", data)]
  data[images[2] + 10] ^= 4
  path.write_bytes(data)
  for i in range(23):
    if i != 7:
      _check_example(_read(source, [i])[0], "train", i)
  with pytest.raises(tf.errors.InvalidArgumentError,
                     match=f"{path} record 2 cannot be read"):
    _read(source, [7])
  with pytest.raises(core.DataError, match=f"^{path} record 2 cannot be read"):
    core.in_memory(source)
  # Fetched together with a damaged record, the others are whole.
  records = source.fetch(tf.range(23, dtype=tf.int64)).numpy()
  for i in range(23):
    if i != 7:
      example = source.parse(tf.constant(records[i]))
      _check_example({k: v.numpy() for k, v in example.items()}, "train", i)


def test_truncated_array_record_is_named(copies):
  path = copies["array_record"] / "tiny" / "1.2.0" / (
      "tiny-train.array_record-00001")
  path.write_bytes(path.read_bytes()[:-10])
  source = core.open_source(
      "tiny", split="train", data_dir=str(copies["array_record"]))
  with pytest.raises(core.DataError, match=f"{path} record 0 cannot be read"):
    core.in_memory(source)


def test_limit_of_open_files(monkeypatch):
  limits = [1024, 4096]
  monkeypatch.setattr(
      tfds_source.resource, "getrlimit", lambda unused_what: tuple(limits))
  monkeypatch.setattr(
      tfds_source.resource, "setrlimit",
      lambda unused_what, new: limits.__setitem__(slice(None), new))
  tfds_source._allow_open_files(10)
  assert limits == [1024, 4096]
  tfds_source._allow_open_files(1024)
  assert limits == [4096, 4096]
  with pytest.raises(core.DataError, match="4096 .ulimit -Hn"):
    tfds_source._allow_open_files(4000)
  limits[:] = [1024, tfds_source.resource.RLIM_INFINITY]
  tfds_source._allow_open_files(4000)
  assert limits[0] == 4512


def test_threads_share_readers(data_dirs):
  source = core.open_source(
      "tiny", split="train", data_dir=data_dirs["array_record"])
  indices = np.random.default_rng(0).integers(0, 23, 500)
  examples = tf.data.Dataset.from_tensor_slices(indices).map(
      source.read, num_parallel_calls=8).as_numpy_iterator()
  counts = collections.Counter()
  for i, example in zip(indices, examples, strict=True):
    _check_example(example, "train", i)
    counts[i] += 1
  assert len(counts) == 23
