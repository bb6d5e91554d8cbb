"""Tests of tools/prepare_dataset.py with made-up and real IDX files."""

import gzip
import os
import shutil
import struct
import subprocess
import sys

import deadline
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from big_vision import config as config_lib
from big_vision.datasets import core
from big_vision.datasets import registry
from big_vision.tools import prepare_dataset

_SIZES = {"train": 20, "t10k": 7}


def _arrays(prefix):
  rng = np.random.default_rng(len(prefix))
  size = _SIZES[prefix]
  return (rng.integers(0, 256, (size, 28, 28), dtype=np.uint8),
          rng.permutation(np.arange(size) % 10).astype(np.uint8))


def _idx(array, magic=None):
  """Returns the bytes of an IDX file, as its authors describe the format."""
  return struct.pack(
      f">{1 + array.ndim}I", magic or 0x800 + array.ndim,
      *array.shape) + array.tobytes()


@pytest.fixture(name="idx_dir")
def _idx_dir(tmp_path):
  """Writes IDX files, compressed for train and plain for test."""
  directory = tmp_path / "idx"
  directory.mkdir()
  for prefix, suffix, open_fn in [("train", ".gz", gzip.open),
                                  ("t10k", "", open)]:
    images, labels = _arrays(prefix)
    for kind, array in ("images-idx3", images), ("labels-idx1", labels):
      with open_fn(directory / f"{prefix}-{kind}-ubyte{suffix}", "wb") as file:
        file.write(_idx(array))
  return directory


def _read_all(source):
  """Returns images and labels of a source, sorted by the images' bytes."""
  if isinstance(source, core.StreamSource):
    dataset = source.stream(None, 1).map(source.parse)
  else:
    dataset = tf.data.Dataset.range(len(source)).batch(64).map(
        source.fetch).unbatch().map(source.parse)
  dataset = dataset.map(
      lambda e: (tf.io.decode_png(e["image"], 1)[..., 0], e["label"]))
  return _sort(*next(dataset.batch(len(source)).as_numpy_iterator()))


def _sort(images, labels):
  keys = [image.tobytes() for image in images]
  order = sorted(range(len(keys)), key=keys.__getitem__)
  return images[order], labels[order]


def _check_tiny(data_dir, name):
  for split, prefix in ("train", "train"), ("test", "t10k"):
    source = registry.open_source(name, split=split, data_dir=data_dir)
    assert len(source) == _SIZES[prefix]
    assert source.num_classes == len(source.class_names) == 10
    for got, want in zip(_read_all(source), _sort(*_arrays(prefix))):
      np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_idx_files_become_a_dataset(idx_dir, tmp_path, name):
  data_dir = str(tmp_path / "data")
  message = prepare_dataset.prepare(name, data_dir, idx_dir=str(idx_dir))
  assert "prepared {'train': 20, 'test': 7} in " in message
  _check_tiny(data_dir, name)
  builder = tfds.builder(name, data_dir=data_dir)
  assert builder.info.full_name == f"{name}/3.0.1"
  assert builder.__module__ == "tensorflow_datasets.image_classification.mnist"
  records = builder.as_data_source("train")
  assert len(records) == 20
  assert records[3]["image"].shape == (28, 28, 1)
  directory = os.path.join(data_dir, name)
  assert os.listdir(directory) == ["3.0.1"]
  # A second call does nothing, also by another name of the same dataset.
  for again in name, f"{name}:3.0.1":
    message = prepare_dataset.prepare(again, data_dir, idx_dir=str(idx_dir))
    assert "already prepared as array_record in " + directory in message


def test_tfrecord_is_converted_to_array_record_and_back(idx_dir, tmp_path):
  data_dir = str(tmp_path / "data")
  prepare_dataset.prepare("mnist", data_dir, "tfrecord", str(idx_dir))
  before = registry.open_source("mnist", split="train", data_dir=data_dir)
  assert isinstance(before, core.StreamSource)
  _check_tiny(data_dir, "mnist")
  message = prepare_dataset.prepare("mnist", data_dir)
  assert "mnist:3.0.1: converted from tfrecord to array_record" in message
  after = registry.open_source("mnist", split="train", data_dir=data_dir)
  assert isinstance(after, core.Source)
  _check_tiny(data_dir, "mnist")
  # The order is the same, and TFDS still reads the older files.
  labels = [e["label"] for e in before.stream(None, 1).map(
      before.parse).as_numpy_iterator()]
  assert labels == [after.read(tf.constant(i, tf.int64))["label"]
                    for i in range(20)]
  directory = os.path.join(data_dir, "mnist", "3.0.1")
  builder = tfds.builder_from_directory(directory)
  assert len(list(builder.as_dataset(split="train"))) == 20
  assert [f.value for f in builder.info.alternative_file_formats] == [
      "array_record"]
  assert "already prepared" in prepare_dataset.prepare("mnist", data_dir)
  assert "already prepared" in prepare_dataset.prepare(
      "mnist", data_dir, "tfrecord")
  assert not [f for f in os.listdir(directory) if f.startswith("incomplete")]

  other = str(tmp_path / "other")
  prepare_dataset.prepare("mnist", other, "array_record", str(idx_dir))
  prepare_dataset.prepare("mnist", other, "tfrecord")
  fname = os.path.join(
      other, "mnist", "3.0.1", "mnist-test.tfrecord-00000-of-00001")
  assert len(list(tf.data.TFRecordDataset(fname))) == 7


def test_a_failed_conversion_leaves_nothing(idx_dir, tmp_path):
  data_dir = str(tmp_path / "data")
  prepare_dataset.prepare("mnist", data_dir, "tfrecord", str(idx_dir))
  directory = tmp_path / "data" / "mnist" / "3.0.1"
  path = directory / "mnist-test.tfrecord-00000-of-00001"
  whole = path.read_bytes()
  before = sorted(os.listdir(directory))
  path.write_bytes(whole[:-3])
  with pytest.raises(core.DataError, match=f"{path} record 6 cannot be read"):
    prepare_dataset.prepare("mnist", data_dir)
  length = int.from_bytes(whole[:8], "little") + 16
  path.write_bytes(whole[length:])
  with pytest.raises(core.DataError, match=f"{path} has 6 records.* counts 7"):
    prepare_dataset.prepare("mnist", data_dir)
  assert sorted(os.listdir(directory)) == before
  path.write_bytes(whole)
  prepare_dataset.prepare("mnist", data_dir)
  _check_tiny(data_dir, "mnist")


def _damaged(images, labels, damage):
  """Returns (name of the damaged file, its bytes, the expected message)."""
  images_idx, labels_idx = _idx(images), _idx(labels)
  return {
      "magic": ("images-idx3", _idx(images, 0x803 + 0x100),
                "begins with 00000903; .* 3 dimensions begins with 00000803"),
      "swapped": ("images-idx3", labels_idx, "begins with 00000801"),
      "short": ("images-idx3", images_idx[:-1],
                "has 5487 bytes of data, but its header says 7 x 28 x 28 = "
                "5488"),
      "long": ("labels-idx1", labels_idx + b"\0", "has 8 bytes.*says 7 = 7"),
      "header": ("images-idx3", images_idx[:10], "begins with 00000803"),
      "empty": ("labels-idx1", b"", "begins with ;"),
      "size": ("images-idx3", _idx(images[:, :14]),
               r"has images of \(14, 28\) pixels; they must be \(28, 28\)"),
      "count": ("labels-idx1", _idx(labels[:-1]), "has 6 labels"),
      "label": ("labels-idx1", _idx(np.array([0, 1, 10, 3, 4, 5, 6], np.uint8)),
                "record 2 is label 10; labels are in 0..9"),
  }[damage]


@pytest.mark.parametrize("damage", [
    "magic", "swapped", "short", "long", "header", "empty", "size", "count",
    "label"])
def test_a_damaged_idx_file_is_named(idx_dir, tmp_path, damage):
  kind, data, message = _damaged(*_arrays("t10k"), damage)
  (idx_dir / f"t10k-{kind}-ubyte").write_bytes(data)
  with pytest.raises(core.DataError, match=f"idx/t10k-{kind}-ubyte .*{message}"
                     if damage != "count" else
                     f"has 7 images, but .*/t10k-{kind}-ubyte {message}"):
    prepare_dataset.prepare("mnist", str(tmp_path / "d"), idx_dir=str(idx_dir))
  assert not (tmp_path / "d" / "mnist").exists()


def test_damaged_gzip_and_missing_idx_files_are_named(idx_dir, tmp_path):
  def fails(message):
    with pytest.raises(core.DataError, match=message):
      prepare_dataset.prepare(
          "mnist", str(tmp_path / "data"), idx_dir=str(idx_dir))

  path = idx_dir / "train-labels-idx1-ubyte.gz"
  whole = path.read_bytes()
  path.write_bytes(whole[:-9])
  fails(f"{path} cannot be read")
  path.write_bytes(b"plain")
  fails(f"{path} cannot be read")
  path.unlink()
  fails(r"There is no .*train-labels-idx1-ubyte\[.gz\]; .*'t10k-images")
  shutil.rmtree(idx_dir)
  fails("There is no .*no such folder")


def _gzip_bomb(path, header, num_bytes):
  """Writes a small file that unfolds to a header and many zeros."""
  with gzip.open(path, "wb", compresslevel=1) as file:
    file.write(header)
    for _ in range(num_bytes >> 24):
      file.write(bytes(2 ** 24))


@pytest.mark.parametrize("shape, message", [
    ((7, 28, 28), r"has 5489 bytes of data or more.*7 x 28 x 28 = 5488"),
    # The product is 3 GB; then 2**64, which is 0 in 64 bits.
    ((2 ** 22, 28, 28), r"says that it has 4194304 x 28 x 28 = 3,288,334,336"),
    ((2 ** 31, 2 ** 31, 4), r"says .* = 18,446,744,073,709,551,616 bytes")])
def test_an_idx_file_that_unfolds_to_too_much_is_refused(
    tmp_path, shape, message):
  path = str(tmp_path / "images.gz")
  _gzip_bomb(path, struct.pack(">4I", 0x803, *shape), 2 ** 28)
  with deadline.within(30):
    with pytest.raises(core.DataError, match=f"images.gz {message}"):
      prepare_dataset.read_idx(path, 3)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_idx_file_must_be_regular(tmp_path, suffix):
  pipe, zero = tmp_path / f"pipe{suffix}", tmp_path / f"zero{suffix}"
  os.mkfifo(pipe)
  zero.symlink_to("/dev/zero")
  with deadline.within(60):
    for path in (pipe, zero):
      with pytest.raises(core.DataError, match="is not a regular file but a"):
        prepare_dataset.read_idx(str(path), 3)


def test_unknown_names_are_refused(idx_dir, tmp_path):
  data_dir = str(tmp_path)
  with pytest.raises(config_lib.ConfigError,
                     match=r"not for 'cifar10'.*leave out --idx_dir"):
    prepare_dataset.prepare("cifar10", data_dir, idx_dir=str(idx_dir))
  with pytest.raises(config_lib.ConfigError,
                     match=r"no dataset of this name \(did you mean 'cifar10'"):
    prepare_dataset.prepare("cifar01", data_dir)


class Squares(tfds.core.GeneratorBasedBuilder):
  """A dataset that TFDS knows because this class exists."""

  VERSION = tfds.core.Version("2.0.0")

  def _info(self):
    return self.dataset_info_from_configs(
        features=tfds.features.FeaturesDict({"x": np.int64, "y": np.int64}))

  def _split_generators(self, unused_dl_manager):
    return {"all_of_it": ((i, {"x": i, "y": i * i}) for i in range(12))}

  def _generate_examples(self):
    """Abstract in TFDS; unused."""


def test_tfds_prepares_datasets_that_it_knows(tmp_path):
  data_dir = str(tmp_path)
  message = prepare_dataset.prepare("squares", data_dir)
  assert message.startswith("squares/2.0.0: prepared {'all_of_it': 12} in ")
  source = registry.open_source("squares", split="all_of_it", data_dir=data_dir)
  examples = tf.data.Dataset.range(12).map(source.read).as_numpy_iterator()
  assert {e["x"]: e["y"] for e in examples} == {i: i * i for i in range(12)}


def test_the_error_names_files_to_download_by_hand(tmp_path):
  with pytest.raises(core.DataError, match="ILSVRC2012_img_train.tar"):
    prepare_dataset.prepare("imagenet2012", str(tmp_path))
  with pytest.raises(config_lib.ConfigError, match="is not the name"):
    prepare_dataset.prepare("imagenet 2012", str(tmp_path))


def test_the_command_line_prepares_and_reports_errors(idx_dir, tmp_path):
  def run(*args):
    return subprocess.run(
        [sys.executable, "-m", "big_vision.tools.prepare_dataset", *args],
        capture_output=True, text=True, check=False,
        env={**os.environ, "TFDS_DATA_DIR": str(tmp_path / "data")})

  shown = run("--help")
  assert shown.returncode == 0 and "--idx_dir" in shown.stdout
  done = run("kmnist", "--idx_dir", str(idx_dir))
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1].startswith("kmnist/3.0.1: prepared {")
  assert not done.stderr  # TensorFlow has much to say, and bars are for people.
  _check_tiny(str(tmp_path / "data"), "kmnist")
  refused = run("kmnist", "mnist", "--idx_dir", str(idx_dir))
  assert refused.returncode == 2 and "one at a time" in refused.stderr
  (idx_dir / "t10k-labels-idx1-ubyte").unlink()
  failed = run("mnist", "--idx_dir", str(idx_dir))
  assert failed.returncode == 6
  assert "mnist: " in failed.stderr and "Traceback" not in failed.stderr


@pytest.fixture(name="debian_dir")
def _debian_dir():
  """Returns the folder of Debian's Fashion-MNIST; installs it if possible."""
  directory = prepare_dataset._DEBIAN_IDX_DIRS["fashion_mnist"]
  if not os.path.isdir(directory) and shutil.which("apt-get") and (
      os.geteuid() == 0):
    for command in ["update"], ["install", "-y", "dataset-fashion-mnist"]:
      subprocess.run(["apt-get", "-qq", *command], check=False)
  if not os.path.isdir(directory):
    pytest.skip("Debian's package dataset-fashion-mnist is not installed and "
                "cannot be installed.")
  return directory


def test_fashion_mnist_of_debian_becomes_the_dataset(debian_dir, tmp_path):
  data_dir = str(tmp_path)
  message = prepare_dataset.prepare("fashion_mnist", data_dir)
  assert message.endswith(f"from {debian_dir}")
  for split, prefix in ("train", "train"), ("test", "t10k"):
    source = registry.open_source(
        "fashion_mnist", split=split, data_dir=data_dir)
    images, labels = _read_all(source)
    with gzip.open(f"{debian_dir}/{prefix}-images-idx3-ubyte.gz") as file:
      want_images = np.frombuffer(
          file.read()[16:], np.uint8).reshape(-1, 28, 28)
    with gzip.open(f"{debian_dir}/{prefix}-labels-idx1-ubyte.gz") as file:
      want_labels = np.frombuffer(file.read()[8:], np.uint8)
    assert len(images) == {"train": 60_000, "test": 10_000}[split]
    # There are ten balanced classes, named in the order of the labels.
    assert set(np.bincount(labels)) == {len(labels) // 10}
    assert source.class_names[0] == "T-shirt/top"
    assert source.class_names[9] == "Ankle boot"
    # A few images occur twice with different labels; compare sums for them.
    want_images, want_labels = _sort(want_images, want_labels)
    np.testing.assert_array_equal(images, want_images)
    assert (labels != want_labels).sum() <= 20
    np.testing.assert_array_equal(
        np.bincount(labels), np.bincount(want_labels))
