"""Compares the names of leaves with paths written by hand."""

import collections

from big_vision import tree
import jax
import numpy as np
import pytest

Pair = collections.namedtuple("Pair", "mu nu")


def test_names_of_dicts_tuples_and_namedtuples():
  nested = {"opt": (Pair({"w": 1}, 2), ()), "a": [3]}
  assert tree.flatten_with_names(nested) == [
      ("a/0", 3), ("opt/0/mu/w", 1), ("opt/0/nu", 2)]
  mapped = tree.map_with_names(lambda name, x, y: (name, x + y), nested, nested)
  assert mapped["opt"][0].nu == ("opt/0/nu", 4)


def test_unflatten_is_the_inverse_and_refuses_clashes():
  nested = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
  assert tree.unflatten(tree.flatten_with_names(nested)) == nested
  for names in (["a", "a/b"], ["a/b", "a"]):
    with pytest.raises(ValueError, match="already"):
      tree.unflatten([(name, 0) for name in names])


def test_first_match_is_a_full_match():
  matches = tree.first_match(["head/kernel", "head", "x"], ["head", "head/.*"])
  assert matches == {"head/kernel": 1, "head": 0, "x": None}


def test_merge_keep_and_select():
  full = {"a": {"b": 1, "c": 2}, "d": 3}
  assert tree.merge(full, {"a": {"c": 9}}) == {"a": {"b": 1, "c": 9}, "d": 3}
  with pytest.raises(ValueError, match="'x'"):
    tree.merge(full, {"x": 1})
  assert tree.keep(full, lambda v: v > 1) == {"a": {"c": 2}, "d": 3}
  assert tree.keep(full, lambda v: v > 2) == {"d": 3}
  assert tree.select(full, {"a": {"b": None}}) == {"a": {"b": 1}}


def test_num_elements():
  shapes = {"a": np.zeros((2, 3)), "b": jax.ShapeDtypeStruct((4,), np.float32)}
  assert tree.num_elements(shapes) == 10
