"""Tests of datasets/pvr.py, against naive readings of the definitions."""

import collections
import itertools

from big_vision import config as config_lib
from big_vision.datasets import registry
import numpy as np
import pytest
import tensorflow as tf


def _open(split="train", num_examples=300, **kw):
  return registry.open_source(
      "proj.pvr.problems", split=split, num_examples=num_examples, **kw)


def _examples(source):
  return [source.example(i) for i in range(len(source))]


def _numbers(example):
  assert (example["mask"] == 1).all()
  assert example["mask"].shape == example["tokens"].shape
  return [int(token) - 1 for token in example["tokens"]]


def _aggregate(name, values):
  values = sorted(values)
  if name == "mod_sum":
    return int(str(sum(values))[-1])
  if name == "median":
    middle = len(values) // 2
    return (values[middle] if len(values) % 2
            else (values[middle - 1] + values[middle]) // 2)
  if name == "majority":
    return max(values, key=values.count)  # The first, so the smallest.
  return {"min": values[0], "max": values[-1]}[name]


@pytest.mark.parametrize("aggregate, window", [
    ("mod_sum", 1), ("mod_sum", 4), ("min", 3), ("max", 10), ("median", 4),
    ("median", 5), ("majority", 6)])
def test_vector(aggregate, window):
  source = _open(aggregate=aggregate, window=window)
  assert source.num_classes == 10
  pointers, labels = collections.Counter(), set()
  for example in _examples(source):
    pointer, *values = _numbers(example)
    assert len(values) == 10
    chosen, place = [], pointer
    while len(chosen) < window:
      chosen.append(values[place])
      place = 0 if place == 9 else place + 1
    assert example["label"] == _aggregate(aggregate, chosen)
    assert example["difficulty"] == window
    pointers[pointer] += 1
    labels.add(int(example["label"]))
  assert len(pointers) == 10 and max(pointers.values()) < 60
  assert len(labels) >= (2 if window == 10 else 6)


def test_default_is_the_value_that_is_pointed_to():
  for example in _examples(_open(num_examples=50)):
    pointer, *values = _numbers(example)
    assert example["label"] == values[pointer]


def _chase(numbers):
  """(value, hops) of following pointers while they point ahead."""
  here, hops = 0, 0
  while True:
    there = numbers[here]
    if there <= here:
      return there, hops
    here, hops = there, hops + 1


def test_compositional():
  source = _open(form="compositional", length=9, min_hops=2, max_hops=8,
                 num_examples=700)
  assert source.num_classes == 9
  hops, labels, unvisited = collections.Counter(), set(), collections.Counter()
  for example in _examples(source):
    numbers = _numbers(example)
    assert len(numbers) == 9 and 0 <= min(numbers) and max(numbers) <= 8
    assert _chase(numbers) == (example["label"], example["difficulty"])
    hops[int(example["difficulty"])] += 1
    labels.add(int(example["label"]))
    visited, place = {0}, 0
    while numbers[place] > place:
      place = numbers[place]
      visited.add(place)
    unvisited.update(
        number for i, number in enumerate(numbers) if i not in visited)
  assert hops == {h: 100 for h in range(2, 9)}
  assert labels == set(range(9))
  assert set(unvisited) == set(range(9))


def test_chains_are_uniform():
  """Every set of 2 places among 1 to 4 is as frequent as the others."""
  source = _open(form="compositional", length=5, min_hops=2, max_hops=2,
                 num_examples=3000, seed=1)
  chains, last = collections.Counter(), collections.defaultdict(
      collections.Counter)
  for example in _examples(source):
    numbers = _numbers(example)
    first = numbers[0]
    chains[first, numbers[first]] += 1
    last[numbers[first]][int(example["label"])] += 1
  assert set(chains) == set(itertools.combinations(range(1, 5), 2))
  # 500 each, give or take the share of the split.
  assert 400 < min(chains.values()) and max(chains.values()) < 600
  for place, counts in last.items():
    assert set(counts) == set(range(place + 1))


def _digits(split):
  """{content of a digit: its labels}, of a split of bv:digits."""
  source = registry.open_source("bv:digits", split=split)
  table = collections.defaultdict(set)
  dataset = tf.data.Dataset.range(len(source)).map(source.read)
  for example in dataset.as_numpy_iterator():
    table[example["image"].tobytes()].add(int(example["label"]))
  return table


def test_image():
  splits = {split: _digits(split) for split in ("train", "test")}
  contents = {split: set() for split in splits}
  for split, table in splits.items():
    source = _open(split, form="image")
    labels, places = collections.Counter(), collections.Counter()
    for example in _examples(source):
      image = example["image"]
      assert image.shape == (16, 16, 1) and image.dtype == np.uint8
      parts = {(r, c): np.ascontiguousarray(image[r:r + 8, c:c + 8]).tobytes()
               for r in (0, 8) for c in (0, 8)}
      contents[split].update(parts.values())
      (pointer,) = table[parts[0, 0]]
      if pointer <= 3:
        place = 0, 8
      elif pointer <= 6:
        place = 8, 0
      else:
        place = 8, 8
      assert table[parts[place]] == {int(example["label"])}
      assert example["difficulty"] == 1
      labels[int(example["label"])] += 1
      places[place] += 1
    assert len(labels) == 10 and max(labels.values()) < 60
    assert len(places) == 3 and min(places.values()) > 60
  assert not contents["train"] & contents["test"]


def test_splits_are_disjoint():
  found = {}
  for split in ("train", "validation", "test"):
    found[split] = set()
    for seed in range(2):
      source = _open(split, 1500, form="compositional", length=4, min_hops=1,
                     max_hops=2, seed=seed)
      found[split].update(tuple(_numbers(e)) for e in _examples(source))
  union = set().union(*found.values())
  assert sum(map(len, found.values())) == len(union)
  # All 4 ** 4 but those that begin with 0, which have no hop, and those that
  # begin with 1, 2, 3, which have three.
  assert len(union) == 3 * 4 ** 3 - 4


@pytest.mark.parametrize("kw, message", [
    (dict(form="vectors"), r"no form 'vectors' \(did you mean 'vector'\?\); it "
     r"has \['compositional', 'image', 'vector'\]"),
    (dict(max_hops=3), r"form='vector'\)\.max_hops does not exist.*\['aggregate"
     r"', 'window'\]"),
    (dict(window=11), r"window is 11; it must be an int, in \[1, 10\]"),
    (dict(window=0), "window is 0"),
    (dict(aggregate="sum"), r"aggregate is 'sum' \(did you mean 'mod_sum'\?\)"),
    (dict(form="compositional", length=1), "length is 1.*at least 2"),
    (dict(form="compositional", length=5, max_hops=5),
     r"max_hops is 5; it must be an int, in \[1, 4\]"),
    (dict(form="compositional", min_hops=5), r"min_hops is 5.*\[1, 4\]"),
    (dict(form="compositional", min_hops=0), "min_hops is 0"),
    (dict(form="image", split="validation"),
     r"no split 'validation'; it has \['test', 'train'\]"),
    (dict(form="image", window=2), r"window does not exist"),
    (dict(split="dev"), "proj.pvr.problems has no split 'dev'"),
])
def test_errors(kw, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    _open(**kw)


def test_images_in_tensorflow():
  source = _open(form="image")
  example = source.read(np.int64(5))
  assert example["image"].shape == (16, 16, 1)
  np.testing.assert_array_equal(
      example["image"], source.example(5)["image"])
