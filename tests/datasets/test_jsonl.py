"""Tests of datasets/jsonl.py."""

import json
import os

import deadline
import numpy as np
import pytest
import tensorflow as tf

from big_vision import config as config_lib
from big_vision.datasets import core
from big_vision.datasets import memory
from big_vision.datasets import registry

_ROWS = [
    {"image": "images/0.png", "label": 3, "text": "a cat", "score": 1},
    {"image": "images/1.png", "label": -1, "text": "", "score": 0.25},
    {"image": "images/0.png", "label": 2**40, "text": "d\u00e9j\u00e0\0",
     "score": 3},
]


@pytest.fixture(name="fname")
def _fname(tmp_path):
  (tmp_path / "images").mkdir()
  # Images are not decoded here, so any bytes do.
  (tmp_path / "images" / "0.png").write_bytes(b"first\0\0")
  (tmp_path / "images" / "1.png").write_bytes(b"")
  return _write(tmp_path, _ROWS)


def _write(tmp_path, rows):
  """Writes one line for each row: dicts as JSON, strings as they are."""
  path = tmp_path / "data.jsonl"
  path.write_text("\n".join(
      row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
  return str(path)


def _read_all(source):
  dataset = tf.data.Dataset.range(len(source)).map(source.read)
  return list(dataset.as_numpy_iterator())


def test_reads_columns_and_images(fname):
  source = registry.open_source("bv:jsonl", fname=fname, num_classes=5)
  spec = tf.data.Dataset.range(1).map(source.read).element_spec
  assert {key: (s.dtype, s.shape.rank) for key, s in spec.items()} == {
      "image": (tf.string, 0), "label": (tf.int64, 0), "text": (tf.string, 0),
      "score": (tf.float32, 0)}
  for source in source, memory.in_memory(source):
    examples = _read_all(source)
    assert source.num_classes == 5
    assert [e["image"] for e in examples] == [b"first\0\0", b"", b"first\0\0"]
    assert [e["label"] for e in examples] == [3, -1, 2**40]
    assert [e["text"].decode() for e in examples] == [r["text"] for r in _ROWS]
    assert [e["score"] for e in examples] == [1, 0.25, 3]


def test_a_part_of_a_file_without_images(tmp_path):
  rows = [{"i": i, "even": i % 2 == 0} for i in range(6)]
  rows.insert(2, "  ")
  fname = _write(tmp_path, rows)
  source = registry.open_source(
      "bv:jsonl", fname=fname, image_keys=(), start=1, stop=0.5)
  examples = _read_all(source)
  assert [e["i"] for e in examples] == [1, 2]
  assert [e["even"] for e in examples] == [False, True]
  assert examples[0]["even"].dtype == np.bool_
  # Lines are counted as an editor does, the empty one included.
  assert [source.describe(i) for i in range(2)] == [
      f"{fname} line 2", f"{fname} line 4"]


def test_a_path_relative_to_the_working_directory(fname, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  source = registry.open_source("bv:jsonl", fname="data.jsonl")
  assert _read_all(source)[0]["image"] == b"first\0\0"


@pytest.mark.parametrize("row, message", [
    ('{"a": 1', "line 3 is not JSON"), ("[1]", "line 3 is a list"),
    ({"a": 1}, r"line 3 has the keys \['a'\], but line 1 has \['a', 'b'\]"),
    ({"a": 1, "b": "x", "c": 0}, r"keys \['a', 'b', 'c'\]"),
    ({"a": "1", "b": "x"}, "line 3: 'a' is the string '1', but on line 1 it is "
     "the number 1"),
    ({"a": 1, "b": 2}, "'b' is the number 2.*the string 'x'"),
    ({"a": True, "b": "x"}, "'a' is the boolean True"),
    ({"a": 1, "b": None}, "line 3: 'b' is None; only strings, numbers"),
    ({"a": 1, "b": ["x"]}, r"'b' is \['x'\]"),
    ({"a": 2**63, "b": "x"}, "too large for int64"),
    ({"a": 1, "b": "\ud800"}, "line 3 is not JSON: .*surrogates not allowed"),
    ('{"a": 1, "\\udc00": 2}', "line 3 is not JSON: .*surrogates not allowed"),
    ("[" * 10**6, "line 3 is not JSON: .*recursion"),
    ('{"a":' * 10**6, "line 3 is not JSON: .*recursion"),
    ('{"a": NaN, "b": "x"}', "line 3 is not JSON: NaN is not a number"),
    ('{"a": -Infinity, "b": "x"}', "line 3 is not JSON: -Infinity is not"),
    ('{"a": 1, "b": "x", "a": 2}', "line 3 is not JSON: a key is repeated"),
    ({"a": 1e39, "b": "x"}, r"line 3: 'a' is 1e\+39, too large for float32")])
def test_a_bad_line_is_named(tmp_path, row, message):
  fname = _write(tmp_path, [{"a": 1, "b": "x"}, {"b": "y", "a": 2}, row])
  with pytest.raises(core.DataError, match=f"data.jsonl {message}" if (
      message.startswith("line")) else message):
    registry.open_source("bv:jsonl", fname=fname, image_keys=())
  # Lines outside the part are not parsed.
  registry.open_source("bv:jsonl", fname=fname, image_keys=(), stop=2)


def test_a_line_that_is_not_utf8_is_named(tmp_path):
  path = tmp_path / "data.jsonl"
  path.write_bytes(b'{"a": "\xff"}\n')
  with pytest.raises(core.DataError, match="data.jsonl line 1 is not JSON"):
    registry.open_source("bv:jsonl", fname=str(path), image_keys=())


def test_missing_images_and_wrong_image_keys_are_named(fname, tmp_path):
  with pytest.raises(config_lib.ConfigError, match=r"no key 'img'.*\['image', "
                     r"'label', 'score', 'text'\].*image_keys"):
    registry.open_source("bv:jsonl", fname=fname, image_keys=["img"])
  with pytest.raises(core.DataError, match="line 1: 'label' must be the path"):
    registry.open_source("bv:jsonl", fname=fname, image_keys=["label"])
  for missing in "images/2.png", "elsewhere/0.png":
    fname = _write(tmp_path, [*_ROWS, {**_ROWS[0], "image": missing}])
    with pytest.raises(core.DataError, match=f"line 4: 'image' is .*{missing}, "
                       "which does not exist"):
      registry.open_source("bv:jsonl", fname=fname)


def test_only_regular_files_of_bounded_size_are_read(fname, tmp_path):
  """Reading a pipe or /dev/zero would never end."""
  os.mkfifo(tmp_path / "images" / "pipe.png")
  (tmp_path / "images" / "zero.png").symlink_to("/dev/zero")
  with open(tmp_path / "images" / "huge.png", "wb") as file:
    file.truncate(2 ** 40)  # Takes no space on the disk.
  (tmp_path / "images" / "link.png").symlink_to("0.png")
  for name, problem in (("pipe", "is a pipe"), ("zero", "is a device"),
                        ("huge", "is larger than 256 MiB")):
    fname = _write(tmp_path, [
        {"image": "images/link.png"}, {"image": f"images/{name}.png"}])
    with pytest.raises(core.DataError, match=f"line 2: .*{name}.png, which "
                       f"{problem}"):
      registry.open_source("bv:jsonl", fname=fname)


@pytest.mark.parametrize("name", ["bv:jsonl", "bv:npz"])
def test_a_file_of_examples_must_be_regular_and_fit_into_memory(tmp_path, name):
  os.mkfifo(tmp_path / "pipe")
  with open(tmp_path / "huge", "wb") as file:
    file.truncate(2 ** 43)
  with deadline.within(60):
    for fname, problem in (
        (tmp_path / "pipe", "is not a regular file but a pipe"),
        ("/dev/zero", "is not a regular file but a device"),
        (tmp_path, "is not a regular file but a folder"),
        (tmp_path / "huge", "8,796,093,022,208 bytes; at most .* are read, "
         "half of this machine's memory")):
      with pytest.raises(core.DataError, match=problem):
        registry.open_source(name, fname=str(fname))


def test_empty_and_missing_files_are_errors(tmp_path):
  with pytest.raises(config_lib.ConfigError, match="no file '.*x.jsonl'"):
    registry.open_source("bv:jsonl", fname=str(tmp_path / "x.jsonl"))
  with pytest.raises(core.DataError, match="data.jsonl has no examples"):
    registry.open_source("bv:jsonl", fname=_write(tmp_path, [""]))
