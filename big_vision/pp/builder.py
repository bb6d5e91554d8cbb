"""Turns a preprocessing string into a function.

"decode|inception_crop(224)|flip_lr|value_range(-1, 1)|keep('image', 'labels')"
applies these ops one after the other. `op_string` describes the syntax and
`registry` how ops are defined.
"""

from collections.abc import Callable, Sequence
import inspect
from typing import Any

import tensorflow as tf

from big_vision import config as config_lib
from big_vision import modules as modules_lib
from big_vision import op_string
from big_vision.pp import registry

# Modules of big_vision/pp whose ops every string can use.
DEFAULT_MODULES = (
    "ops_values", "ops_labels", "ops_entries", "ops_decode", "ops_resize",
    "ops_crop", "ops_color", "randaug")


def make_preprocess(
    pp: str, modules: Sequence[str] = ()) -> Callable[[dict], dict]:
  """Makes the function that a preprocessing string describes.

  All randomness comes from the example's entry `_seed`, int32[2], which is
  folded with the position of each random op in the string. Hence an example
  with the same seed always gives the same result, whatever ran before, and two
  ops draw independently even if they have the same name.

  Args:
    pp: Ops joined by `|`; "" does nothing.
    modules: Names of more modules of ops, which are imported in addition to
      DEFAULT_MODULES; see `modules.find`.

  Returns:
    A function (data) -> data of dicts of tensors, eager or in a `tf.data`
    graph. Arrays are converted to tensors, the dict it is given stays as it is,
    and its result has no `_seed`. It raises a ValueError that names the op if
    the example does not suit an op, for instance if a random op finds no
    `_seed`.

  Raises:
    ConfigError: A module or op does not exist, or an op does not accept its
      arguments.
  """
  if not isinstance(pp, str):
    raise config_lib.ConfigError(
        f"A preprocessing string is needed; it got {pp!r}.")
  for module in (*DEFAULT_MODULES, *modules):
    modules_lib.find("pp module", module)
  parsed = op_string.parse(pp)
  ops = []
  for place, op in enumerate(parsed):
    # Not with !r, which escapes the quotes that are in both of them.
    where = f"op {place + 1} of {len(parsed)}, '{op.text}', of '{pp}'"
    fn, random = _make_op(op, where)
    ops.append((where, f"pp{place}_{op.name}", fn, random))

  # AutoGraph would replace the types of our errors, and there is nothing for it
  # to convert.
  @tf.autograph.experimental.do_not_convert
  def preprocess(data):
    data = _to_tensors(data)
    seed = data.pop("_seed", None)
    for place, (where, scope, fn, random) in enumerate(ops):
      # The scope puts the op's name into errors raised when the graph runs.
      with tf.name_scope(scope):
        try:
          data = fn(data, _fold(seed, place)) if random else fn(data)
        except (ValueError, TypeError) as error:
          # ValueError itself: AutoGraph replaces types that it does not know.
          raise ValueError(f"In {where}: {error}") from error
    return data
  return preprocess


def _make_op(op, where):
  """Checks the arguments of a parsed op and makes its function.

  Args:
    op: Parsed op.
    where: Description of the op and its place, for messages.

  Returns:
    The op's function, and whether it takes a seed.
  """
  try:
    factory, random = registry.lookup(op.name)
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f"In {where}: {error}") from error
  signature = inspect.signature(factory)
  parameters = [
      p.replace(annotation=p.empty) for p in signature.parameters.values()]
  try:
    for name in op.kwargs:
      if name not in signature.parameters:
        raise TypeError(
            f"the op has no argument {name!r}"
            f"{config_lib.nearest(name, signature.parameters)}")
    signature.bind(*op.args, **op.kwargs)
  except TypeError as error:
    raise config_lib.ConfigError(
        f"In {where}: {error}. "
        f"Its signature is {op.name}{inspect.Signature(parameters)}."
    ) from error
  try:
    return factory(*op.args, **op.kwargs), random
  except (ValueError, TypeError, OSError) as error:
    raise config_lib.ConfigError(f"In {where}: {error}") from error


def _to_tensors(data: dict[str, Any]):
  """Copies `data` and its nested dicts; converts all leaves to tensors."""
  return {
      key: _to_tensors(value) if isinstance(value, dict)
      else value if tf.is_tensor(value) else tf.convert_to_tensor(value)
      for key, value in data.items()}


def _fold(seed, place):
  """Returns the seed of the op at position `place`, int32[2]."""
  if seed is None:
    raise ValueError(
        "the op is random, and the example has no '_seed' (int32[2]). "
        "Evaluation data has none, so it cannot use random ops.")
  if not seed.dtype.is_integer or not seed.shape.is_compatible_with([2]):
    raise ValueError(
        f"'_seed' must be int32[2]; it is {seed.dtype.name}{seed.shape}.")
  seed = tf.ensure_shape(tf.cast(seed, tf.int32), [2])
  return tf.random.experimental.stateless_fold_in(seed, place)
