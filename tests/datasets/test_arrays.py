"""Tests of datasets/arrays.py."""

import pickle
import zipfile

import deadline
import numpy as np
import pytest
from sklearn import datasets
import tensorflow as tf

from big_vision import config as config_lib
from big_vision.datasets import core
from big_vision.datasets import data_files
from big_vision.datasets import memory
from big_vision.datasets import registry


def _read_all(source):
  """Returns every example, in order, read through tf.data."""
  dataset = tf.data.Dataset.range(len(source)).map(source.read)
  return list(dataset.as_numpy_iterator())


def test_digits_splits_partition_the_data():
  train = registry.open_source("bv:digits", split="train")
  test = registry.open_source("bv:digits", split="test")
  assert (len(train), len(test)) == (1438, 359)
  assert train.num_classes == test.num_classes == 10
  assert train.class_names == list("0123456789")
  data = datasets.load_digits()
  records = []
  for source in train, test:
    for i, example in enumerate(_read_all(source)):
      record = int(source.describe(i).rpartition(" record ")[2])
      assert example["image"].dtype == np.uint8
      assert example["label"].dtype == np.int64
      np.testing.assert_array_equal(
          example["image"], data.images[record][..., None])
      assert example["label"] == data.target[record]
      records.append(record)
  assert sorted(records) == list(range(1797))
  # Every class is held out about as often as the others.
  counts = np.bincount([e["label"] for e in _read_all(test)], minlength=10)
  assert counts.min() >= 25


def test_types_of_digits_are_known_without_reading():
  source = registry.open_source("bv:digits", split="test")
  spec = tf.data.Dataset.range(1).map(source.read).element_spec
  assert spec == {"image": tf.TensorSpec([8, 8, 1], tf.uint8),
                  "label": tf.TensorSpec([], tf.int64)}
  assert memory.in_memory(source) is source


def test_an_unknown_split_of_digits_is_named():
  with pytest.raises(config_lib.ConfigError,
                     match=r"no split 'tran' \(did you mean 'train'\?\)"):
    registry.open_source("bv:digits", split="tran")


@pytest.fixture(name="fname")
def _fname(tmp_path):
  rng = np.random.default_rng(0)
  fname = str(tmp_path / "data.npz")
  np.savez(fname, x=rng.integers(0, 256, (7, 4, 5, 3), dtype=np.uint8),
           y=np.arange(7), z=rng.normal(size=(7, 2)).astype(np.float32),
           text=np.array(["a", "bb", "", "c\u00e9", "e", "f", "g"]),
           other=np.zeros([3]))
  return fname


def test_examples_are_rows_of_the_stored_arrays(fname):
  source = registry.open_source(
      "bv:npz", fname=fname, num_classes=7,
      keys={"image": "x", "label": "y", "z": "z", "text": "text"})
  stored = np.load(fname)
  examples = _read_all(source)
  assert len(source) == len(examples) == 7
  assert source.num_classes == 7
  for i, example in enumerate(examples):
    assert sorted(example) == ["image", "label", "text", "z"]
    assert example["image"].dtype == np.uint8
    np.testing.assert_array_equal(example["image"], stored["x"][i])
    np.testing.assert_array_equal(example["z"], stored["z"][i])
    assert example["label"] == i
    assert example["text"].decode() == stored["text"][i]


def test_a_part_of_an_npz(fname):
  source = registry.open_source(
      "bv:npz", fname=fname, keys=["y"], start=0.5, stop=-1)
  assert [e["y"] for e in _read_all(source)] == [3, 4, 5]
  assert source.describe(1) == f"{fname} record 4"


def test_bad_npz_files_and_options_are_named(fname, tmp_path):
  def opens(error, message, **kwargs):
    with pytest.raises(error, match=message):
      registry.open_source("bv:npz", **kwargs)

  opens(config_lib.ConfigError, "there is no file '.*nope.npz'",
        fname=str(tmp_path / "nope.npz"))
  opens(config_lib.ConfigError, r"no array 'xx'.*; it has \['other', 'text', ",
        fname=fname, keys=["xx"])
  opens(core.DataError, r"data.npz.*lengths are {.*'other': 3", fname=fname)

  scalar = str(tmp_path / "scalar.npz")
  np.savez(scalar, x=np.zeros([2]), size=np.int64(3))
  opens(core.DataError, "scalar.npz: array 'size' is a scalar", fname=scalar)
  opens(config_lib.ConfigError, r"data.npz: keys=\[\] selects nothing",
        fname=fname, keys=[])

  single = str(tmp_path / "single.npy")
  np.save(single, np.zeros([3]))
  opens(core.DataError, "single.npy holds a single array", fname=single)

  truncated = tmp_path / "truncated.npz"
  truncated.write_bytes(open(fname, "rb").read()[:-40])
  opens(core.DataError, "truncated.npz", fname=str(truncated))

  flipped = bytearray(open(fname, "rb").read())
  flipped[300] ^= 1  # Inside the first array.
  (tmp_path / "flipped.npz").write_bytes(flipped)
  opens(core.DataError, "flipped.npz: array 'x' cannot be read.*CRC",
        fname=str(tmp_path / "flipped.npz"))


@pytest.fixture(name="bomb", scope="module")
def _bomb(tmp_path_factory):
  """An .npz whose array "zeros" unfolds from 3 MB to 3 GB."""
  fname = str(tmp_path_factory.mktemp("bomb") / "bomb.npz")
  chunk = bytes(2 ** 24)
  with zipfile.ZipFile(fname, "w", zipfile.ZIP_DEFLATED) as file:
    with file.open("small.npy", "w") as part:
      np.lib.format.write_array(part, np.arange(5))
    with file.open("zeros.npy", "w", force_zip64=True) as part:
      np.lib.format.write_array_header_1_0(
          part, {"descr": "|u1", "fortran_order": False, "shape": (5, 2 ** 29)})
      for _ in range(160):
        part.write(chunk)
  return fname


def test_arrays_that_would_fill_the_memory_are_refused(bomb, monkeypatch):
  with deadline.within(30):
    with pytest.raises(core.DataError, match="bomb.npz would unfold from "
                       r"2,\d{3},\d{3} bytes to 2,684,\d{3},\d{3}"):
      registry.open_source("bv:npz", fname=bomb, keys=["small", "zeros"])
  assert len(registry.open_source("bv:npz", fname=bomb, keys=["small"])) == 5
  monkeypatch.setattr(data_files, "memory_limit", lambda: 2 ** 31)
  with pytest.raises(core.DataError, match="at most 2,147,483,648 are read, "
                     "half of this machine's memory"):
    registry.open_source("bv:npz", fname=bomb, keys=["zeros"])


def test_one_hot_labels_are_not_taken_for_a_bomb(tmp_path):
  """They are what compresses best among arrays of real data."""
  fname = str(tmp_path / "labels.npz")
  labels = np.zeros((300_000, 1000), np.uint8)
  labels[np.arange(len(labels)),
         np.random.default_rng(0).integers(1000, size=len(labels))] = 1
  np.savez_compressed(fname, labels=labels)
  assert len(registry.open_source("bv:npz", fname=fname)) == 300_000


class _Evil:
  """Its unpickling creates a file."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return open, (self._path, "w")


def test_pickled_objects_are_never_loaded(tmp_path):
  proof = tmp_path / "proof"
  np.savez(tmp_path / "evil.npz", x=np.array([_Evil(str(proof))], object))
  with open(tmp_path / "pickle.npz", "wb") as file:
    pickle.dump(_Evil(str(proof)), file)
  for name in "evil.npz", "pickle.npz":
    with pytest.raises(core.DataError, match=f"{name}.*pickle"):
      registry.open_source("bv:npz", fname=str(tmp_path / name))
  assert not proof.exists()


# --- photographs --------------------------------------------------------------


def test_photographs_are_cut_into_pieces_without_overlap():
  pytest.importorskip("skimage")
  splits = {split: [example["image"] for example in _read_all(
      registry.open_source("bv:photographs", split=split, size=150))]
            for split in ("train", "test")}
  from skimage import data
  from sklearn import datasets
  wanted = set()
  for image in (*datasets.load_sample_images().images, data.astronaut(),
                data.chelsea(), data.coffee(), data.rocket()):
    for i in range(image.shape[0] // 150):
      for j in range(image.shape[1] // 150):
        wanted.add(np.ascontiguousarray(
            image[150 * i:150 * i + 150, 150 * j:150 * j + 150]).tobytes())
  got = [np.asarray(image).tobytes() for images in splits.values()
         for image in images]
  assert len(got) == len(set(got)) and set(got) == wanted
  assert len(splits["test"]) == len(wanted) // 5
  with pytest.raises(config_lib.ConfigError, match="0 pieces of that size"):
    registry.open_source("bv:photographs", split="train", size=600)
  with pytest.raises(config_lib.ConfigError, match=r"splits \['test', 'train"):
    registry.open_source("bv:photographs", split="tset")
