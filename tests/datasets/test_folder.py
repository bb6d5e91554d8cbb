"""Tests of datasets/folder.py."""

import io
import os

import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from big_vision import config as config_lib
from big_vision.datasets import core
from big_vision.datasets import folder
from big_vision.datasets import memory
from big_vision.datasets import registry


def _write(path, size=(5, 4)):
  """Writes a random image of (h, w)."""
  path.parent.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(len(str(path)))
  image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
  buffer = io.BytesIO()
  image.save(buffer, "PNG" if path.suffix.lower() == ".png" else "JPEG")
  path.write_bytes(buffer.getvalue())


def _write_classes(root, **num_images):
  for name, count in num_images.items():
    for i in range(count):
      _write(root / name / f"{i:02}{['.jpg', '.JPEG', '.PNG'][i % 3]}")


def _read_all(source):
  dataset = tf.data.Dataset.range(len(source)).map(source.read)
  assert dataset.element_spec == {
      "image": tf.TensorSpec([], tf.string),
      "label": tf.TensorSpec([], tf.int64),
      "fname": tf.TensorSpec([], tf.string)}
  return list(dataset.as_numpy_iterator())


def test_a_fifth_of_every_class_is_held_out(tmp_path):
  _write_classes(tmp_path, dog=10, ant=3, cat=5)
  (tmp_path / "readme.txt").write_text("not a class")
  (tmp_path / ".hidden").mkdir()
  (tmp_path / "ant" / "notes.txt").write_text("not an image")
  (tmp_path / "ant" / "._00.jpg").write_text("macOS writes such files")
  sources = {split: registry.open_source("bv:folder", path=str(tmp_path),
                                     split=split)
             for split in ("train", "test")}
  counts = {}
  fnames = []
  for split, source in sources.items():
    assert source.num_classes == 3
    assert source.class_names == ["ant", "cat", "dog"]
    examples = _read_all(source)
    assert len(examples) == len(source)
    counts[split] = np.bincount([e["label"] for e in examples]).tolist()
    for i, example in enumerate(examples):
      fname = example["fname"].decode()
      assert example["image"] == (tmp_path / fname).read_bytes()
      assert fname.startswith(source.class_names[example["label"]])
      assert source.describe(i) == str(tmp_path / fname)
      fnames.append(fname)
  assert counts == {"train": [2, 4, 8], "test": [1, 1, 2]}
  assert len(set(fnames)) == 18


def test_held_out_images_do_not_depend_on_other_classes(tmp_path):
  _write_classes(tmp_path, cat=20)
  before = folder.scan(str(tmp_path)).splits["test"]
  _write_classes(tmp_path, ant=7)
  after = folder.scan(str(tmp_path)).splits["test"]
  assert [f for f, _ in before] == [f for f, _ in after if "cat" in f]
  # The choice is random, not the first fifth.
  assert [f for f, _ in before] != sorted(
      f"cat/{name}" for name in os.listdir(tmp_path / "cat"))[:4]


@pytest.mark.parametrize("names, held_out", [
    (["train", "test"], "test"), (["train", "val"], "val"),
    (["train", "test", "validation"], "validation")])
def test_folders_of_splits_are_used_as_splits(tmp_path, names, held_out):
  for count, name in enumerate(names, 1):
    _write_classes(tmp_path / name, b=count, a=count + 1)
  contents = folder.scan(str(tmp_path))
  assert contents.class_names == ["a", "b"]
  assert contents.held_out == held_out
  assert sorted(contents.splits) == sorted(names)
  for count, name in enumerate(names, 1):
    assert [label for _, label in contents.splits[name]] == (
        [0] * (count + 1) + [1] * count)
    source = registry.open_source("bv:folder", path=str(tmp_path), split=name)
    for example in _read_all(source):
      assert example["image"] == (
          tmp_path / example["fname"].decode()).read_bytes()


def test_only_a_train_folder_is_split(tmp_path):
  _write_classes(tmp_path / "train", b=5, a=5)
  contents = folder.scan(str(tmp_path))
  assert contents.class_names == ["a", "b"]
  assert {k: len(v) for k, v in contents.splits.items()} == {
      "train": 8, "test": 2}
  assert os.path.exists(tmp_path / contents.splits["train"][0][0])


def test_classes_may_be_called_like_splits(tmp_path):
  _write_classes(tmp_path, train=5, tram=5)
  assert folder.scan(str(tmp_path)).class_names == ["train", "tram"]


def test_image_size_is_the_median_of_readable_images(tmp_path):
  for i, size in enumerate([(3, 9), (40, 50), (4, 8), (5, 7), (900, 2)]):
    _write(tmp_path / "train" / "a" / f"{i}.png", size)
  (tmp_path / "train" / "a" / "broken.jpg").write_bytes(b"no image")
  (tmp_path / "train" / "a" / "half.png").write_bytes(
      (tmp_path / "train" / "a" / "0.png").read_bytes()[:20])
  _write(tmp_path / "val" / "a" / "0.png", (1, 1))
  assert folder.scan(str(tmp_path)).image_size == (5, 8)


def test_image_size_needs_a_readable_image(tmp_path):
  for name in "0.jpg", "1.jpg":
    _write(tmp_path / "a" / name)
    (tmp_path / "a" / name).write_bytes(b"no image")
  with pytest.raises(core.DataError, match="No image could be read.*.jpg"):
    folder.scan(str(tmp_path))


def test_folders_without_usable_classes_are_errors(tmp_path):
  def fails(error, message, split="train"):
    with pytest.raises(error, match=message):
      registry.open_source("bv:folder", path=str(root), split=split)

  root = tmp_path / "nowhere"
  fails(config_lib.ConfigError, "nowhere is not a folder.*No such file")
  root.mkdir()
  fails(core.DataError, "nowhere has no class folders, but nothing.*CLASS/NAME")
  _write(root / "0.jpg")
  fails(core.DataError, r"has no class folders, but 1 files \(0.jpg, ...\)")
  _write_classes(root, b=3)
  (root / "a").mkdir()
  fails(core.DataError, r"nowhere/a has no images \(no files\)")
  (root / "a" / "x.webp").write_bytes(b"")
  fails(core.DataError, r"a has no images \(1 other files \(x.webp, ...\)\)")
  _write(root / "a" / "0.jpg")
  fails(core.DataError, "Class 'a' in .* has a single image")
  _write(root / "a" / "1.jpg")
  fails(config_lib.ConfigError, r"no split 'val'; it has \['test', 'train'\]",
        split="val")

  root = tmp_path / "splits"
  _write_classes(root / "train", a=1, b=1)
  _write_classes(root / "test", a=1, c=1)
  fails(core.DataError, r"splits/test and .*/train must have the same classes; "
        r"it lacks \['b'\], and has \['c'\]")


def test_a_file_that_vanishes_is_named(tmp_path):
  _write_classes(tmp_path, a=5)
  source = registry.open_source("bv:folder", path=str(tmp_path), split="train")
  os.remove(source.describe(2))
  with pytest.raises(core.DataError, match=source.describe(2)):
    memory.in_memory(source)
