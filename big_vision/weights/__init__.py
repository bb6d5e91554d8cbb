"""Reads published weights and fits them to a model.

Everything here happens on the host, in NumPy.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any

import jax.numpy as jnp

from big_vision import config as config_lib
from big_vision import tree
from big_vision.weights.blocks import stack_blocks
from big_vision.weights.blocks import unstack_blocks
from big_vision.weights.files import is_path
from big_vision.weights.files import read

__all__ = [
    "find", "fit", "is_path", "load", "read", "stack_blocks", "unstack_blocks"]


def fit(loaded: Mapping, init, dont_load: Sequence[str], source: str) -> dict:
  """Returns the loaded arrays in the structure of `init`, after checking them.

  Args:
    loaded: Nested dict of NumPy arrays.
    init: The model's parameters, as jax.ShapeDtypeStruct or arrays.
    dont_load: Regexes of names to leave out. Where one matches a whole name,
      the leaf of `init` stays, and `loaded` may or may not have one.
    source: Name of the file that `loaded` is from, for messages.

  Returns:
    The structure of `init` with NumPy arrays, cast to the model's dtypes, and
    the leaves of `init` itself for names in `dont_load`.

  Raises:
    ValueError: Names are only in the file or only in the model, shapes or kinds
      of numbers (integers for floats) differ, or a regex matches nothing. One
      message lists all such problems.
  """
  wanted = dict(tree.flatten_with_names(init))
  there = dict(tree.flatten_with_names(loaded))
  matches = tree.first_match(sorted({*wanted, *there}), dont_load)
  left_out = {name for name, match in matches.items() if match is not None}
  problems = [
      f"no parameter matches dont_load: {pattern!r}" for pattern in dont_load
      if not any(re.fullmatch(pattern, name) for name in matches)]
  # Two sorted lists, so that renamed parameters are easy to see.
  for what, ours, theirs in ((f"only in {source}", there, wanted),
                             ("only in the model", wanted, there)):
    problems += [f"{what}: {name} {_describe(ours[name])}"
                 for name in sorted(set(ours) - set(theirs) - left_out)]
  fitted = {}
  for name, leaf in wanted.items():
    if name in left_out:
      fitted[name] = leaf
    elif name in there:
      array = there[name]
      if array.shape != leaf.shape or not _same_kind(array.dtype, leaf.dtype):
        problems.append(
            f"{name} is {_describe(array)} in {source}, {_describe(leaf)} in "
            "the model")
      else:
        fitted[name] = array.astype(leaf.dtype, copy=False)
  if problems:
    raise ValueError(
        f"{source} does not fit the model. Leave names out of loading by "
        "regexes in dont_load, or change the model.\n  "
        + "\n  ".join(problems))
  return tree.unflatten(fitted)


def _same_kind(a, b):
  """Returns whether casting from a to b changes only the precision."""
  return a == b or (
      jnp.issubdtype(a, jnp.floating) and jnp.issubdtype(b, jnp.floating))


def _describe(leaf):
  return f"{leaf.dtype}{list(leaf.shape)}"


def load(init_params, init_file: str, model_cfg: Mapping[str, Any],
         dont_load: Sequence[str] = ()) -> dict:
  """Loads the parameters of a file and fits them to a model.

  Models without published weights or older parameter names use it directly.

  Args:
    init_params: The model's parameters, as jax.ShapeDtypeStruct or arrays.
    init_file: File of weights, see `read`.
    model_cfg: The model's arguments; not used here.
    dont_load: Regexes of the model's names to leave out, like "head/.*".

  Returns:
    The structure of `init_params`: NumPy arrays, and the given leaf wherever
    `dont_load` leaves a name out.

  Raises:
    ValueError: The file does not fit, see `fit`.
  """
  del model_cfg  # `init_params` has all that is needed.
  return fit(read(find(init_file, {})), init_params, dont_load, init_file)


def find(name: str, published: Mapping[str, str]) -> str:
  """Returns the file of a published checkpoint; a path is returned unchanged.

  Args:
    name: Key of `published`, or path of a file.
    published: {name: path} of published checkpoints.

  Raises:
    ValueError: `name` is neither; the error lists the published names.
  """
  if not is_path(name) and name not in published:
    raise ValueError(
        f"{name!r} is neither an .npz or .safetensors file nor the name of a "
        f"published checkpoint{config_lib.nearest(name, published)}. Published "
        f"checkpoints are {sorted(published)}.")
  return published.get(name, name)
