"""Trees of arrays, addressed by "/"-joined names.

Names are how a person speaks of a parameter ("params/head/kernel"): they appear
in regexes of configs, in error messages and in checkpoints.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import re
from typing import Any

import jax


def _entry_name(entry) -> str:
  """The name of one step of a jax key path."""
  for attribute in ("key", "name", "idx"):
    if hasattr(entry, attribute):
      return str(getattr(entry, attribute))
  raise TypeError(f"Cannot name the tree entry {entry!r}.")


def flatten_with_names(tree, is_leaf=None) -> list[tuple[str, Any]]:
  """Leaves of `tree` with their names, in jax's order.

  >>> flatten_with_names({"b": (1, 2), "a": 3})
  [('a', 3), ('b/0', 1), ('b/1', 2)]
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
  return [("/".join(map(_entry_name, path)), leaf) for path, leaf in leaves]


def map_with_names(fn: Callable[..., Any], tree, *rest, is_leaf=None):
  """Like `jax.tree.map`, and `fn` is given the leaf's name first."""
  def call(path, leaf, *others):
    return fn("/".join(map(_entry_name, path)), leaf, *others)
  return jax.tree_util.tree_map_with_path(call, tree, *rest, is_leaf=is_leaf)


def unflatten(named: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> dict:
  """Nested dict from "/"-joined names: the inverse for trees of dicts.

  Raises:
    ValueError: a name is both a leaf and the start of another name.
  """
  tree = {}
  for name, leaf in dict(named).items():
    *parents, last = name.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        raise ValueError(f"{parent!r} in {name!r} is already a leaf.")
    if last in node:
      raise ValueError(f"{name!r} is already a subtree or a leaf.")
    node[last] = leaf
  return tree


def first_match(
    names: Iterable[str], patterns: Sequence[str]) -> dict[str, int | None]:
  """For every name, the index of the first regex that matches all of it."""
  compiled = [re.compile(pattern) for pattern in patterns]
  def find(name):
    return next(
        (i for i, regex in enumerate(compiled) if regex.fullmatch(name)), None)
  return {name: find(name) for name in names}


def num_elements(tree) -> int:
  """How many numbers the arrays (or shapes) of `tree` hold together."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def merge(full, part: Mapping):
  """`full` with the leaves that `part`, a subtree of dicts, also has."""
  if not isinstance(part, Mapping):
    return part
  unknown = set(part) - set(full)
  if unknown:
    raise ValueError(f"{sorted(unknown)} are not among {sorted(full)}.")
  return {key: merge(value, part[key]) if key in part else value
          for key, value in full.items()}


def keep(tree: Mapping, predicate: Callable[[Any], bool]) -> dict:
  """The nested dict without the leaves that fail `predicate`."""
  kept = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      if value := keep(value, predicate):
        kept[key] = value
    elif predicate(value):
      kept[key] = value
  return kept


def select(tree, part: Mapping):
  """The leaves of `tree` at the places where `part` has leaves."""
  if not isinstance(part, Mapping):
    return tree
  return {key: select(tree[key], value) for key, value in part.items()}
