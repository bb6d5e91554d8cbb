"""Tests of datasets/sequences.py and of the base of all generated sources."""

import collections
import hashlib
import itertools

from big_vision import config as config_lib
from big_vision import input_pipeline
from big_vision.datasets import generated
from big_vision.datasets import memory
from big_vision.datasets import registry
import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
import tensorflow as tf

SPLITS = ("train", "validation", "test")


def _open(name, split="train", num_examples=60, **kw):
  return registry.open_source(
      name, split=split, num_examples=num_examples, **kw)


def _examples(source, num=None):
  return [source.example(i) for i in range(num or len(source))]


def _tokens(example):
  """Returns the unpadded tokens; checks that mask and padding agree."""
  n = int(example["mask"].sum())
  np.testing.assert_array_equal(
      example["mask"], np.arange(len(example["tokens"])) < n)
  assert (example["tokens"][:n] > 0).all()
  assert not example["tokens"][n:].any()
  if "labels" in example:
    assert not example["labels"][n:].any()
  return example["tokens"][:n].tolist()


@pytest.mark.parametrize("name", ["bv:copy", "bv:reverse"])
def test_labels_repeat_or_reverse_the_tokens(name):
  source = _open(name, min_length=3, max_length=7, num_symbols=4, size=9)
  assert (len(source), source.num_classes) == (60, 5)
  seen = set()
  for i, example in enumerate(_examples(source)):
    tokens = _tokens(example)
    labels = example["labels"][:len(tokens)].tolist()
    if name == "bv:reverse":
      answer = []
      for token in tokens:
        answer.insert(0, token)
      assert labels == answer
    else:
      assert labels == tokens
    assert example["difficulty"] == len(tokens) == 3 + i % 5
    seen.update(tokens)
  assert seen == {1, 2, 3, 4}


def test_labels_are_the_digits_of_the_sum():
  source = _open("bv:addition", num_examples=200, max_digits=25)
  assert source.num_classes == 12
  lengths, sums = set(), set()
  for i, example in enumerate(_examples(source)):
    text = "".join("_0123456789+"[token] for token in _tokens(example))
    a, b = text.split("+")
    answer = "".join(
        "_0123456789+"[token] for token in example["labels"][:len(text)])
    assert len(answer) == len(text) == 2 * len(a) + 1
    assert int(answer) == int(a) + int(b)
    assert example["difficulty"] == len(a) == len(b) == 1 + i % 25
    assert len(example["tokens"]) == 51
    lengths.add(len(a))
    sums.add(int(answer))
  assert lengths == set(range(1, 26)) and len(sums) > 180


def test_addition_has_the_documented_layout():
  example = _open("bv:addition", max_digits=3).solve(
      np.array([[1, 2], [9, 5]]), 2)
  assert example["tokens"].tolist() == [2, 3, 11, 10, 6, 0, 0]  # 12 + 95
  assert example["labels"].tolist() == [1, 1, 2, 1, 8, 0, 0]  # 00107


def test_digits_are_uniform():
  source = _open("bv:addition", num_examples=4000, min_digits=3, max_digits=3)
  digits = np.stack([e["tokens"] for e in _examples(source)])[:, [0, 2, 4, 6]]
  for column in digits.T:
    counts = np.bincount(column, minlength=11)[1:]
    # 400 each; the 0.1 % quantile of chi-squared with 9 degrees is 27.9.
    assert ((counts - 400) ** 2 / 400).sum() < 27.9


OPTIONS = {
    "bv:copy": dict(max_length=5), "bv:reverse": dict(max_length=5),
    "bv:addition": dict(max_digits=4),
    "bv:listops": dict(min_length=4, max_length=30),
    "proj.pvr.problems": dict(form="compositional", length=8),
}


@pytest.mark.parametrize("name, digest", [
    ("bv:copy", "27f2b38d53c7cdf3"),
    ("bv:reverse", "1614c87212e24e91"),
    ("bv:addition", "99f0cde880dc20be"),
    ("bv:listops", "63cfd21d68acd488"),
    ("proj.pvr.problems", "99cda64afffef8c6")])
def test_examples_have_not_changed(name, digest):
  """A run that is resumed after an upgrade must see the same examples."""
  content = hashlib.sha256()
  for split, seed in (("train", 0), ("test", 0), ("train", 7)):
    source = _open(name, split, 10, seed=seed, **OPTIONS[name])
    for example in _examples(source):
      for key in sorted(example):
        content.update(np.asarray(example[key], "<f8").tobytes())
  assert content.hexdigest()[:16] == digest


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_examples_do_not_depend_on_order_readers_or_size(name):
  source = _open(name, **OPTIONS[name])
  in_order = _examples(source)
  # Another source of another size, read from the end.
  other = _open(name, num_examples=1000, **OPTIONS[name])
  backwards = [other.example(i) for i in reversed(range(60))][::-1]
  indices = np.random.default_rng(0).permutation(60)
  dataset = tf.data.Dataset.from_tensor_slices(indices).map(
      source.read, num_parallel_calls=4)
  for key, spec in dataset.element_spec.items():
    assert spec.shape == in_order[0][key].shape
    assert spec.dtype in (tf.int32, tf.float32)
  shuffled = dict(zip(indices, dataset.as_numpy_iterator()))
  held = memory.in_memory(source)
  for i, example in enumerate(in_order):
    assert set(example) == set(shuffled[i])
    for key, value in example.items():
      for others in (backwards, shuffled):
        np.testing.assert_array_equal(value, others[i][key])
        assert value.dtype == others[i][key].dtype
      np.testing.assert_array_equal(value, held.read(np.int64(i))[key])


def test_training_batches_are_examples_of_the_source():
  data = dict(name="bv:addition", split="train", num_examples=40, max_digits=4)
  pipeline = input_pipeline.make_training(
      dict(data=data, batch_size=8, pp="drop('mask')"), seed=0)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  assert {k: (v.shape, v.dtype) for k, v in pipeline.batch_spec.items()} == {
      "tokens": ((8, 9), np.int32), "labels": ((8, 9), np.int32),
      "difficulty": ((8,), np.int32)}
  seen = []
  with pipeline.start(0, NamedSharding(mesh, P("data"))) as batches:
    for _ in range(5):
      seen.extend(np.asarray(next(batches)["tokens"]).tolist())
  source = registry.open_source(**data)
  expected = [e["tokens"].tolist() for e in _examples(source)]
  assert sorted(seen) == sorted(expected)  # One epoch.


def test_seeds_differ():
  first, second = (
      _examples(_open("bv:copy", seed=seed, min_length=10)) for seed in (0, 1))
  same = sum(a["tokens"].tolist() == b["tokens"].tolist()
             for a, b in zip(first, second))
  assert same == 0


def test_examples_share_no_random_numbers():
  """Ten symbols in a row that two examples share would reveal it.

  By chance that happens with probability 5e-4: 100 examples have 31 rows each.
  """
  source = _open("bv:copy", num_examples=100, min_length=40, max_length=40)
  rows = []
  for example in _examples(source):
    tokens = example["tokens"].tolist()
    rows.extend(tuple(tokens[i:i + 10]) for i in range(31))
  assert len(set(rows)) == len(rows) == 3100


def test_splits_are_disjoint_and_leave_nothing_out():
  """Draws a small space completely, with different seeds, sizes and lengths."""
  found = collections.defaultdict(set)
  for name, split, seed in itertools.product(
      ("bv:copy", "bv:reverse"), SPLITS, range(3)):
    source = _open(name, split, 600, seed=seed, min_length=2, num_symbols=6,
                   max_length=2 + seed, size=5 + seed)
    found[split].update(
        tuple(tokens) for tokens in map(_tokens, _examples(source))
        if len(tokens) == 2)
  total = list(itertools.chain.from_iterable(found.values()))
  assert len(total) == len(set(total)) == 36
  assert len(found["train"]) > max(len(found["validation"]), len(found["test"]))


def test_swapped_summands_are_in_the_same_split():
  found = collections.defaultdict(set)
  for split in SPLITS:
    source = _open("bv:addition", split, 1500, max_digits=1)
    for tokens in map(_tokens, _examples(source)):
      found[split].add((tokens[0] - 1, tokens[2] - 1))
  assert sum(map(len, found.values())) == len(set().union(*found.values()))
  assert set().union(*found.values()) == set(
      itertools.product(range(10), range(10)))
  for pairs in found.values():
    assert pairs == {(b, a) for a, b in pairs}


def test_splits_have_half_a_quarter_and_a_quarter_of_all_problems():
  sizes = []
  for split in SPLITS:
    source = _open("bv:copy", split, 6000, min_length=4, max_length=4,
                   num_symbols=4)
    sizes.append(len({tuple(e["tokens"]) for e in _examples(source)}))
  assert sum(sizes) == 256
  np.testing.assert_allclose(np.array(sizes) / 256, [.5, .25, .25], atol=.07)


@pytest.mark.parametrize("name, kw, message", [
    ("bv:copy", dict(split="val"), r"bv:copy has no split 'val'; it "
     r"has \['test', 'train', 'validation'\]"),
    ("bv:copy", dict(num_examples=0), "num_examples is 0.*at least 1"),
    ("bv:copy", dict(seed=-1), "seed is -1"),
    ("bv:copy", dict(min_length=0), "min_length is 0.*at least 1"),
    ("bv:copy", dict(min_length=5, max_length=4), "max_length is 4.*least 5"),
    ("bv:reverse", dict(num_symbols=1), "bv:reverse: num_symbols is 1"),
    ("bv:reverse", dict(size=9), "size is 9; it must be an int, at least 10"),
    ("bv:addition", dict(min_digits=2.), r"min_digits is 2\.0"),
    ("bv:addition", dict(max_digits=True), "max_digits is True"),
    ("bv:addition", dict(size=20), "size is 20.*at least 21"),
    ("bv:addition", dict(max_length=4), r"max_length does not exist"),
    ("bv:copy", dict(num_symbols=2, split="validation"),
     "validation, seed 0, example 0: 1000 draws found no.*difficulty 1"),
])
def test_invalid_options_are_named(name, kw, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    _open(name, **kw)


def test_a_source_of_very_rare_problems_does_not_open():
  """It would fail at one of its many examples, in the middle of a run."""
  class Rare(generated.GeneratedSource):

    def draw(self, rng, difficulty):
      return np.zeros(1, np.int64) if rng.randint(3_000) == 0 else None

    def belongs(self, problem):
      return True

    def solve(self, problem, difficulty):
      return {"tokens": problem}

  for seed in range(20):
    with pytest.raises(config_lib.ConfigError, match="1000 draws found no"):
      Rare(name="rare", split="train", num_examples=1, seed=seed,
           difficulties=[1], num_classes=2)


def test_messages_name_split_seed_and_example():
  source = _open("bv:reverse", "test", seed=3)
  assert source.describe(17) == "bv:reverse test, seed 3, example 17"
