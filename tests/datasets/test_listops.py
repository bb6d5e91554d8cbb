"""Tests of datasets/listops.py against a parser of the written form."""

import collections
import statistics

import numpy as np
import pytest

from big_vision import config as config_lib
from big_vision.datasets import listops
from big_vision.datasets import registry

SHORT = dict(min_length=10, max_length=60)


def _open(split="train", num_examples=300, **kw):
  return registry.open_source(
      "bv:listops", split=split, num_examples=num_examples, **kw)


def _examples(source):
  return [source.example(i) for i in range(len(source))]


def _parse(words):
  """Takes one expression off `words`; returns (operator, arguments) or int."""
  word = words.pop(0)
  if not word.startswith("["):
    return int(word)
  arguments = []
  while words[0] != "]":
    arguments.append(_parse(words))
  words.pop(0)
  return word[1:], arguments


def _value(node):
  if isinstance(node, int):
    return node
  values = [_value(argument) for argument in node[1]]
  return {"MIN": lambda: min(values), "MAX": lambda: max(values),
          "MED": lambda: int(statistics.median(values)),
          "SM": lambda: int(str(sum(values))[-1])}[node[0]]()


def _depth(node):
  return 1 if isinstance(node, int) else 1 + max(map(_depth, node[1]))


def _lists(node):
  if not isinstance(node, int):
    yield node
    for argument in node[1]:
      yield from _lists(argument)


def _read(example):
  """Returns an example's tree and length; checks the form of the example."""
  n = int(example["mask"].sum())
  np.testing.assert_array_equal(
      example["mask"], np.arange(len(example["tokens"])) < n)
  assert not example["tokens"][n:].any()
  text = listops.to_string(example["tokens"])
  words = text.split()
  assert len(words) == n
  tree = _parse(words)
  assert not words, f"{text} goes on after its end."
  return tree, n


@pytest.mark.parametrize("kw", [
    {**SHORT}, {**SHORT, "max_args": 3, "max_depth": 6},
    {**SHORT, "min_depth": 2, "max_depth": 7},
    {"num_examples": 12}, {"num_examples": 12, "split": "test"}])
def test_values_depths_and_lengths_agree_with_the_parser(kw):
  source = _open(**kw)
  assert source.num_classes == 10
  low, high = kw.get("min_length", 500), kw.get("max_length", 2000)
  for example in _examples(source):
    tree, n = _read(example)
    assert low <= n <= high == len(example["tokens"])
    assert example["label"] == _value(tree)
    assert example["difficulty"] == _depth(tree) <= kw.get("max_depth", 10)
    for _, arguments in _lists(tree):
      assert 2 <= len(arguments) <= kw.get("max_args", 10)


def test_values_computed_by_hand():
  def evaluate(text):
    return listops.evaluate(
        [listops.VOCABULARY.index(word) for word in text.split()])
  assert evaluate("[MAX 2 9 [MIN 4 7 ] 0 ]") == 9
  assert evaluate("[MED 1 2 ]") == 1  # 1.5
  assert evaluate("[MED 9 0 4 5 ]") == 4  # 4.5
  assert evaluate("[MED 9 0 8 ]") == 8
  assert evaluate("[SM 9 9 [SM 9 9 ] ]") == 6  # 18 + 8
  assert evaluate("[MIN [MAX 3 4 ] 5 6 ]") == 4


def test_depths_are_equally_frequent_and_labels_are_not_degenerate():
  source = _open(num_examples=700, min_depth=2, max_depth=8, min_length=4,
                 max_length=100)
  examples = _examples(source)
  depths = collections.Counter(int(e["difficulty"]) for e in examples)
  assert depths == {depth: 100 for depth in range(2, 9)}
  for depth in range(2, 9):
    labels = np.bincount(
        [e["label"] for e in examples if e["difficulty"] == depth],
        minlength=10)
    assert (labels > 0).sum() >= 9 and labels.max() <= 40, labels


def test_grammar_has_the_frequencies_of_long_range_arena():
  """Depth 4 has at most 1112 tokens, so no tree is discarded."""
  source = _open(num_examples=4000, min_length=4, max_length=1112, max_depth=4)
  operators, counts, are_lists, digits = (collections.Counter() for _ in "0123")
  for example in _examples(source):
    tree, _ = _read(example)
    operators.update(operator for operator, _ in _lists(tree))
    counts.update(len(arguments) for _, arguments in _lists(tree))
    digits.update(a for _, arguments in _lists(tree)
                  for a in arguments if isinstance(a, int))
    # Below the outermost list, arguments may have to be digits.
    are_lists.update(not isinstance(a, int) for a in tree[1])
  total = sum(operators.values())
  for operator in ("MIN", "MAX", "MED", "SM"):
    np.testing.assert_allclose(operators[operator] / total, 1 / 4, atol=.01)
  for number in range(2, 11):
    np.testing.assert_allclose(counts[number] / total, 1 / 9, atol=.01)
  for digit in range(10):
    np.testing.assert_allclose(
        digits[digit] / sum(digits.values()), .1, atol=.01)
  np.testing.assert_allclose(
      are_lists[True] / sum(are_lists.values()), 1 / 4, atol=.01)


def test_splits_are_disjoint():
  """There are only 400 expressions of four tokens."""
  found = {}
  for split in ("train", "validation", "test"):
    found[split] = set()
    for seed in (0, 1):
      source = _open(split, 1500, seed=seed, min_length=4, max_length=4 + seed,
                     max_depth=2)
      found[split].update(
          listops.to_string(e["tokens"]) for e in _examples(source)
          if e["mask"].sum() == 4)
  union = set().union(*found.values())
  assert sum(map(len, found.values())) == len(union) == 400
  assert len(found["train"]) > 150
  assert min(len(found["validation"]), len(found["test"])) > 70


@pytest.mark.parametrize("kw, message", [
    (dict(min_length=3), r"min_length is 3; it must be an int, in \[4, 2000\]"),
    (dict(max_length=3), "max_length is 3"),
    (dict(min_length=50, max_length=40), r"min_length is 50.*\[4, 40\]"),
    (dict(max_args=1), "max_args is 1"),
    (dict(max_depth=1), "max_depth is 1.*at least 2"),
    (dict(min_depth=1), r"min_depth is 1.*\[2, 10\]"),
    (dict(min_depth=11), r"min_depth is 11.*\[2, 10\]"),
    (dict(**SHORT, min_depth=3, max_depth=21), r"max_depth is 21.*\[2, 20\]"),
    # An expression of depth 3 has at most 2 + 3 * 5 tokens.
    (dict(min_length=18, max_length=60, max_args=3, min_depth=3),
     r"min_length is 18.*\[4, 17\]"),
    (dict(**SHORT, min_depth=20, max_depth=20, max_args=10),
     "1000 draws found no problem of difficulty 20.*too rare"),
])
def test_invalid_options_are_named(kw, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    _open(**kw)
