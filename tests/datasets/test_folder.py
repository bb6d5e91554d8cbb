"""Tests of datasets/folder.py."""

import io
import os
import shutil

import deadline
import numpy as np
from PIL import Image
import pytest
import tensorflow as tf

from big_vision import config as config_lib
from big_vision.datasets import core
from big_vision.datasets import folder
from big_vision.datasets import folder_tree
from big_vision.datasets import memory
from big_vision.datasets import registry
from big_vision.pp import builder


def _write(path, size=(5, 4)):
  """Writes a random image of (h, w)."""
  path.parent.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(len(str(path)))
  image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
  buffer = io.BytesIO()
  image.save(buffer, {".png": "PNG", ".gif": "GIF", ".bmp": "BMP",
                      ".webp": "WEBP"}.get(path.suffix.lower(), "JPEG"))
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


def test_every_format_that_is_listed_is_decoded(tmp_path):
  suffixes = [*folder_tree.SUFFIXES, ".JPG", ".WebP"]
  for i, suffix in enumerate(suffixes):
    for name in ("a", "b"):
      _write(tmp_path / "train" / name / f"{i}{suffix}", (6 + i, 5))
      _write(tmp_path / "test" / name / f"{i}{suffix}", (6 + i, 5))
  source = registry.open_source("bv:folder", path=str(tmp_path), split="train")
  decode = builder.make_preprocess("decode")
  dataset = tf.data.Dataset.range(len(source)).map(source.read).map(decode)
  shapes = {example["fname"].decode(): example["image"].shape
            for example in dataset.as_numpy_iterator()}
  assert shapes == {f"train/{name}/{i}{suffix}": (6 + i, 5, 3)
                    for i, suffix in enumerate(suffixes) for name in "ab"}


def test_a_format_that_is_not_decoded_is_not_listed(tmp_path):
  path = tmp_path / "0.tif"
  Image.new("RGB", (4, 4)).save(path)
  with pytest.raises(tf.errors.InvalidArgumentError):
    builder.make_preprocess("decode")({"image": tf.io.read_file(str(path))})
  assert ".tif" not in folder_tree.SUFFIXES


def test_pictures_in_folders_of_a_class_belong_to_it(tmp_path):
  for path in ("a/0.jpg", "a/2019/0.jpg", "a/2019/may/0.jpg", "b/x/0.jpg",
               "b/y/0.jpg", "a/.thumbnails/0.jpg"):
    _write(tmp_path / path)
  contents = folder.scan(str(tmp_path))
  assert contents.class_names == ["a", "b"]
  assert sorted(contents.splits["train"] + contents.splits["test"]) == [
      ("a/0.jpg", 0), ("a/2019/0.jpg", 0), ("a/2019/may/0.jpg", 0),
      ("b/x/0.jpg", 1), ("b/y/0.jpg", 1)]


@pytest.mark.parametrize("train, held_out", [
    ("training", "testing"), ("Train", "Valid"), ("train", "dev"),
    ("training_set", "test_set"), ("train_images", "validation"),
    ("trainset", "testset"), ("train2017", "val2017")])
def test_splits_have_their_usual_names(tmp_path, train, held_out):
  _write_classes(tmp_path / train, a=3, b=3)
  _write_classes(tmp_path / held_out, a=1, b=2)
  contents = folder.scan(str(tmp_path))
  assert (contents.class_names, contents.held_out) == (["a", "b"], held_out)
  assert {name: len(images) for name, images in contents.splits.items()} == {
      train: 6, held_out: 3}
  for split, size in (("train", 6), (held_out, 3)):
    assert len(registry.open_source(
        "bv:folder", path=str(tmp_path), split=split)) == size


def test_splits_that_cannot_be_told_are_errors(tmp_path):
  _write_classes(tmp_path / "valid", a=3, b=3)
  _write_classes(tmp_path / "test_set", a=3, b=3)
  with pytest.raises(core.DataError, match=r"splits, \['test_set', 'valid'\], "
                     "but none with class folders that is called train"):
    folder.scan(str(tmp_path))
  _write_classes(tmp_path / "train", a=3, b=3)
  _write_classes(tmp_path / "dev", a=3, b=3)
  with pytest.raises(core.DataError, match="two folders for one split, 'dev' "
                     "and 'valid'"):
    folder.scan(str(tmp_path))


def _report(path, capsys):
  """Returns what opening a folder prints."""
  for split in ("train", "test"):
    registry.open_source("bv:folder", path=str(path), split=split)
  return capsys.readouterr().out


def test_what_is_used_and_what_is_not_is_printed_once(tmp_path, capsys):
  _write_classes(tmp_path, dog=10, ant=3)
  for name in ("a.tif", "b.tif", "c.txt", ".hidden.jpg"):
    (tmp_path / "dog" / name).write_bytes(b"")
  assert _report(tmp_path, capsys) == (
      f"{tmp_path}: train 10 images, test 3 images. 2 classes: ant 3, dog 10.\n"
      "  A random fifth of each class, always the same, is held out as "
      '"test".\n  Files that are not used: 2 x .tif, such as '
      "dog/a.tif; 1 x .txt, such as dog/c.txt; 1 x hidden, such as "
      "dog/.hidden.jpg.\n")


def test_a_test_folder_without_classes_is_reported(tmp_path, capsys):
  _write_classes(tmp_path / "train", a=5, b=5)
  for i in range(4):
    _write(tmp_path / "test" / f"{i}.jpg")
  _write(tmp_path / "extra" / "more" / "0.jpg")
  _write(tmp_path / "train" / "stray.jpg")
  _write(tmp_path / "stray.jpg")
  printed = _report(tmp_path, capsys)
  assert "train 8 images, test 2 images" in printed
  for line in ("test/ has no class folders: its 4 pictures are not used.",
               "extra/ lies beside train/: its 1 pictures are not used.",
               "1 pictures in train/ (train/stray.jpg, ...) are not used",
               "1 pictures in the root (stray.jpg, ...) are not used"):
    assert line in printed, printed


def test_a_class_called_like_a_split_is_pointed_out(tmp_path, capsys):
  _write_classes(tmp_path, cat=5, dog=5, test=5)
  assert "test/ is named like a split but used as a class." in _report(
      tmp_path, capsys)


def test_many_classes_are_cut_short(tmp_path, capsys):
  _write_classes(tmp_path, **{f"class{i:02}": 2 for i in range(23)})
  printed = _report(tmp_path, capsys)
  assert "23 classes: class00 2, " in printed
  assert "class19 2, ... 3 more." in printed and "class20" not in printed


def test_only_regular_files_of_bounded_size_are_read(tmp_path, capsys):
  """Reading a pipe or /dev/zero would never end."""
  _write_classes(tmp_path, a=5, b=5)
  os.mkfifo(tmp_path / "a" / "pipe.jpg")
  (tmp_path / "a" / "zero.jpg").symlink_to("/dev/zero")
  (tmp_path / "a" / "dangling.jpg").symlink_to("nowhere")
  (tmp_path / "a" / "linked.jpg").symlink_to(tmp_path / "b" / "00.jpg")
  (tmp_path / "b" / "round").symlink_to(tmp_path)
  with open(tmp_path / "b" / "huge.jpg", "wb") as file:
    file.truncate(2 ** 40)  # Takes no space on the disk.
  with deadline.within(60):
    printed = _report(tmp_path, capsys)
  assert "a 6, b 5." in printed
  assert "3 x not a regular file, such as a/dangling.jpg" in printed
  assert "1 x larger than 256 MiB, such as b/huge.jpg" in printed
  assert "1 x link to a folder around it, such as b/round" in printed
  assert folder.scan(str(tmp_path)).image_size == (5, 4)


def test_names_that_are_not_utf8_can_be_read_and_shown(tmp_path, capsys):
  _write_classes(tmp_path, a=4)
  os.rename(tmp_path / "a" / "01.JPEG",
            os.path.join(os.fsencode(tmp_path), b"a", b"\xff.jpg"))
  shutil.copytree(
      os.fsencode(tmp_path / "a"), os.fsencode(tmp_path) + b"/caf\xe9")
  sources = [registry.open_source("bv:folder", path=str(tmp_path), split=split)
             for split in ("train", "test")]
  assert sources[0].class_names == ["a", "caf\\xe9"]
  assert "caf\\xe9 4." in capsys.readouterr().out
  examples = [example for source in sources for example in _read_all(source)]
  assert {b"a/\xff.jpg", b"caf\xe9/\xff.jpg"} <= {
      example["fname"] for example in examples}
  for source in sources:
    for i in range(len(source)):
      source.describe(i).encode()


def test_home_directories_are_expanded(tmp_path, monkeypatch):
  _write_classes(tmp_path / "pets", a=5)
  monkeypatch.setenv("HOME", str(tmp_path))
  assert folder.scan("~/pets").class_names == ["a"]
  source = registry.open_source("bv:folder", path="~/pets", split="train")
  assert len(_read_all(source)) == 4


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
  fails(core.DataError, r"no class folders, but 1 pictures \(0.jpg, ...\)")
  _write_classes(root, b=3)
  (root / "a").mkdir()
  fails(core.DataError, r"nowhere/a has no images \(no files\)")
  (root / "a" / "x.tif").write_bytes(b"")
  fails(core.DataError, r"a has no images \(1 x \.tif, such as a/x.tif\)")
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
