"""Computes the sizes of a run's state, whole and on one device."""

import collections
from collections.abc import Iterator
import math
import re

import jax

from big_vision import build as build_lib
from big_vision import tree

# Groups of leaves below this fraction of the state are not listed.
_MIN_FRACTION = 0.01


def format_bytes(num_bytes: float) -> str:
  """Formats a size like "1.25 GiB", "300.00 MiB" or "1.00 KiB"."""
  unit, name = next(((1 << shift, name) for shift, name in (
      (30, "GiB"), (20, "MiB")) if num_bytes >= 1 << (shift - 1)),
                    (1 << 10, "KiB"))
  return f"{num_bytes / unit:,.2f} {name}"


def entry_bytes(built: build_lib.Built) -> list[tuple[str, int, int]]:
  """Returns (entry of the state, its bytes, its bytes on one device)."""
  rows = []
  for name, entry in built.shapes.items():
    pairs = [_leaf_bytes(leaf) for leaf in jax.tree.leaves(entry)]
    rows.append((name, *(sum(column) for column in zip(*pairs))))
  return rows


def placement_lines(built: build_lib.Built) -> Iterator[str]:
  """Yields a line for each group of similar parameters, the largest first.

  A line says how much memory the group takes on a device, how it is split, and
  by which rule. Moments and averages of a parameter count with it.
  """
  params = {name for name, _ in tree.flatten_with_names(
      built.shapes.get("params", {}))}
  leaves = tree.flatten_with_names(built.shapes)
  rules = tree.first_match(
      [name for name, _ in leaves], [pattern for pattern, _ in built.strategy])
  groups = collections.defaultdict(list)
  for name, leaf in leaves:
    parts = name.split("/")
    param = next((p for p in ("/".join(parts[i:]) for i in range(len(parts)))
                  if p in params), name)
    groups[re.sub(r"\d+", "*", param), leaf.shape, leaf.sharding.spec,
           rules[name]].append((parts[0], *_leaf_bytes(leaf)))
  total = sum(whole for group in groups.values() for _, whole, _ in group)
  for (name, shape, spec, rule), group in sorted(
      groups.items(), key=lambda item: -sum(whole for _, whole, _ in item[1])):
    entries, wholes, parts = zip(*group)
    if sum(wholes) < _MIN_FRACTION * total:
      continue
    place = f"split as {tuple(spec)}" if any(spec) else "a copy on each"
    why = "no rule" if rule is None else " ".join(
        map(repr, built.strategy[rule]))
    yield f"{format_bytes(sum(parts)):>11}  {len(group)} x {list(shape)} " \
          f"{name} ({', '.join(dict.fromkeys(entries))}): {place}, by {why}"


def _leaf_bytes(leaf) -> tuple[int, int]:
  """Returns the bytes of a leaf, whole and on one device."""
  shard = leaf.sharding.shard_shape(leaf.shape)
  return (leaf.size * leaf.dtype.itemsize,
          math.prod(shard) * leaf.dtype.itemsize)
