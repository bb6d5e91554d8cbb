"""Addresses the leaves of trees by "/"-joined names.

Regexes in configs, error messages and checkpoints all refer to a parameter by
its name ("params/head/kernel").
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import re
from typing import Any

import jax


def _entry_name(entry) -> str:
  """Returns the name of one entry of a jax key path."""
  for attribute in ("key", "name", "idx"):
    if hasattr(entry, attribute):
      return str(getattr(entry, attribute))
  raise TypeError(f"Cannot name the tree entry {entry!r}.")


def flatten_with_names(tree, is_leaf=None) -> list[tuple[str, Any]]:
  """Lists the leaves of `tree` with their names, in jax's order.

  >>> flatten_with_names({"b": (1, 2), "a": 3})
  [('a', 3), ('b/0', 1), ('b/1', 2)]
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
  return [("/".join(map(_entry_name, path)), leaf) for path, leaf in leaves]


def map_with_names(fn: Callable[..., Any], tree, *rest, is_leaf=None):
  """Maps like `jax.tree.map`, and passes each leaf's name as first argument."""
  def call(path, leaf, *others):
    return fn("/".join(map(_entry_name, path)), leaf, *others)
  return jax.tree_util.tree_map_with_path(call, tree, *rest, is_leaf=is_leaf)


def unflatten(named: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> dict:
  """Builds a nested dict from "/"-joined names.

  The inverse of `flatten_with_names` for trees of dicts.

  Raises:
    ValueError: A name is both a leaf and the start of another name.
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
  """Finds the first pattern that matches each name as a whole.

  Returns:
    {name: index into `patterns`, or None if no pattern matches}.
  """
  compiled = [re.compile(pattern) for pattern in patterns]
  def find(name):
    return next(
        (i for i, regex in enumerate(compiled) if regex.fullmatch(name)), None)
  return {name: find(name) for name in names}


def num_elements(tree) -> int:
  """Counts the elements of all arrays (or shapes) in `tree`."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def merge(full, part: Mapping):
  """Replaces leaves of `full` by those of `part` that have the same names.

  Args:
    full: Tree whose upper levels are dicts.
    part: Nested dict with some of the names in `full`. Anything but a dict
      replaces all of `full`.

  Raises:
    ValueError: `part` has a name that `full` lacks.
  """
  if not isinstance(part, Mapping):
    return part
  unknown = set(part) - set(full)
  if unknown:
    raise ValueError(f"{sorted(unknown)} are not among {sorted(full)}.")
  return {key: merge(value, part[key]) if key in part else value
          for key, value in full.items()}


def keep(tree: Mapping, predicate: Callable[[Any], bool]) -> dict:
  """Drops the leaves of a nested dict for which `predicate` is false.

  Dicts that become empty are dropped too.
  """
  kept = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      if value := keep(value, predicate):
        kept[key] = value
    elif predicate(value):
      kept[key] = value
  return kept


def select(tree, part: Mapping):
  """Returns the subtrees of `tree` at the leaves of the nested dict `part`."""
  if not isinstance(part, Mapping):
    return tree
  return {key: select(tree[key], value) for key, value in part.items()}
