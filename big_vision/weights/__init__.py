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
  """Returns the loaded array for every leaf of `init`, after checking all.

  Args:
    loaded: nested dict of NumPy arrays.
    init: the model's parameters, as jax.ShapeDtypeStruct or arrays.
    dont_load: regexes; a name (as in `init`) that one matches as a whole is
      not taken from `loaded`, whether or not it is there.
    source: name of the file that `loaded` is from, for messages.

  Returns:
    The structure of `init` with NumPy arrays, cast to the model's dtype; where
    `dont_load` says so, with the leaf of `init` itself.

  Raises:
    ValueError: names are on one side only, shapes or kinds of numbers
      (integers for floats) differ, or a regex matches nothing. One message
      lists all such problems.
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
  """Whether casting from a to b changes at most the precision."""
  return a == b or (
      jnp.issubdtype(a, jnp.floating) and jnp.issubdtype(b, jnp.floating))


def _describe(leaf):
  return f"{leaf.dtype}{list(leaf.shape)}"


def load(init_params, init_file: str, model_cfg: Mapping[str, Any],
         dont_load: Sequence[str] = ()) -> dict:
  """Loads the parameters of a file and fits them to a model.

  This is the `load` of models without published weights or older names.

  Args:
    init_params: the model's parameters, as jax.ShapeDtypeStruct or arrays.
    init_file: file of weights, see `read`.
    model_cfg: the model's arguments; not used here.
    dont_load: regexes of the model's names to leave out, like "head/.*".

  Returns:
    The structure of `init_params`: NumPy arrays, and the given leaf wherever
    `dont_load` leaves a name out.

  Raises:
    ValueError: the file does not fit, see `fit`.
  """
  del model_cfg  # `init_params` has all that is needed.
  return fit(read(find(init_file, {})), init_params, dont_load, init_file)


def find(name: str, published: Mapping[str, str]) -> str:
  """Returns the file of a published checkpoint; a path is returned unchanged.

  Args:
    name: key of `published`, or path of a file.
    published: {name: path} of published checkpoints.

  Raises:
    ValueError: `name` is neither; lists the published names.
  """
  if not is_path(name) and name not in published:
    raise ValueError(
        f"{name!r} is neither an .npz or .safetensors file nor the name of a "
        f"published checkpoint{config_lib.nearest(name, published)}. Published "
        f"are {sorted(published)}.")
  return published.get(name, name)
