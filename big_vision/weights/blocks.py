"""Converts weights between models with `scan` and models without it."""

from collections.abc import Mapping
import re

import numpy as np

from big_vision import tree

_BLOCK = re.compile(r"encoderblock_(\d+)")


def stack_blocks(encoder: Mapping) -> dict:
  """Stacks `encoderblock_0`, ... into one `encoderblock`, depth axis first.

  The inverse of `unstack_blocks`.

  Raises:
    ValueError: Blocks are missing, or differ in names or shapes.
  """
  blocks = {int(match[1]): dict(tree.flatten_with_names(encoder[key]))
            for key in encoder if (match := _BLOCK.fullmatch(key))}
  if sorted(blocks) != list(range(len(blocks))):
    raise ValueError(
        f"Blocks must be numbered from 0 without gaps; there are "
        f"{sorted(blocks)}.")
  if not blocks:
    return dict(encoder)
  def shapes(block):
    return {name: np.shape(leaf) for name, leaf in block.items()}
  for i, block in blocks.items():
    if shapes(block) != shapes(blocks[0]):
      raise ValueError(
          f"encoderblock_{i} differs from encoderblock_0, so they cannot be "
          f"stacked: {shapes(block)} and {shapes(blocks[0])}.")
  rest = {key: value for key, value in encoder.items()
          if not _BLOCK.fullmatch(key)}
  return {**rest, "encoderblock": tree.unflatten({
      name: np.stack([blocks[i][name] for i in range(len(blocks))])
      for name in blocks[0]})}


def unstack_blocks(encoder: Mapping) -> dict:
  """Splits one `encoderblock`, depth axis first, into `encoderblock_0`, ...

  The inverse of `stack_blocks`.

  Raises:
    ValueError: The arrays have different depths.
  """
  stacked = dict(tree.flatten_with_names(encoder["encoderblock"]))
  depths = {len(leaf) for leaf in stacked.values()}
  if len(depths) != 1:
    raise ValueError(
        "The leaves of encoderblock do not agree on the depth: "
        f"{ {name: leaf.shape for name, leaf in stacked.items()} }.")
  rest = {key: value for key, value in encoder.items() if key != "encoderblock"}
  return {**rest, **{
      f"encoderblock_{i}": tree.unflatten(
          {name: leaf[i] for name, leaf in stacked.items()})
      for i in range(depths.pop())}}
