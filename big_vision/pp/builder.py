"""Makes a function of a preprocessing string.

"decode|inception_crop(224)|flip_lr|value_range(-1, 1)|keep('image', 'labels')"
applies these ops, one after the other. See `op_string` for what can be
written, `registry` for what an op is.
"""

from collections.abc import Callable, Sequence
import inspect
from typing import Any

import tensorflow as tf

from big_vision import config as config_lib
from big_vision import modules as modules_lib
from big_vision import op_string
from big_vision.pp import registry

# The modules under big_vision/pp whose ops every string can use.
DEFAULT_MODULES = (
    "ops_general", "ops_decode", "ops_resize", "ops_crop", "ops_color",
    "randaug")


def make_preprocess(
    pp: str, modules: Sequence[str] = ()) -> Callable[[dict], dict]:
  """The function that a preprocessing string describes.

  All randomness comes from the example's entry `_seed`, int32[2]: each random
  op gets it folded with the op's place in the string. Hence the same example
  with the same seed always gives the same result, whatever else ran before,
  and two ops, be they of the same name, draw independently.

  Args:
    pp: ops joined by `|`; "" does nothing.
    modules: Names of more modules of ops, which are imported in addition to
      DEFAULT_MODULES; see `modules.find`.

  Returns:
    fn(data) -> data on dicts of tensors (arrays are converted), eager or in a
    `tf.data` graph. The dict given stays as it is. The result has no `_seed`.
    fn raises a ValueError that names the op if the example does not suit it,
    for instance has no `_seed` where a random op needs one.

  Raises:
    ConfigError: no such module or op, arguments that the op does not take.
  """
  if not isinstance(pp, str):
    raise config_lib.ConfigError(
        f"A preprocessing string is needed, {pp!r} is none.")
  for module in (*DEFAULT_MODULES, *modules):
    modules_lib.find("pp module", module)
  parsed = op_string.parse(pp)
  ops = []
  for place, op in enumerate(parsed):
    where = f"op {place + 1} of {len(parsed)}, {op.text!r}, of {pp!r}"
    fn, random = _make_op(op, where)
    ops.append((where, f"pp{place}_{op.name}", fn, random))

  # AutoGraph has nothing to convert here, and would wrap our errors.
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
  """(function, whether it is random) of a parsed op; checks its arguments."""
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
            f"it has no argument {name!r}"
            f"{config_lib.nearest(name, signature.parameters)}")
    signature.bind(*op.args, **op.kwargs)
  except TypeError as error:
    raise config_lib.ConfigError(
        f"In {where}: {error}. "
        f"It is {op.name}{inspect.Signature(parameters)}.") from error
  try:
    return factory(*op.args, **op.kwargs), random
  except (ValueError, TypeError, OSError) as error:
    raise config_lib.ConfigError(f"In {where}: {error}") from error


def _to_tensors(data: dict[str, Any]):
  """A copy of `data`, nested dicts too, in which all leaves are tensors."""
  return {
      key: _to_tensors(value) if isinstance(value, dict)
      else value if tf.is_tensor(value) else tf.convert_to_tensor(value)
      for key, value in data.items()}


def _fold(seed, place):
  """The seed of the op at `place`."""
  if seed is None:
    raise ValueError(
        "the op is random, and the example has no '_seed' (int32[2]): "
        "evaluation gives none.")
  if not seed.dtype.is_integer or not seed.shape.is_compatible_with([2]):
    raise ValueError(
        f"'_seed' must be int32[2], it is {seed.dtype.name}{seed.shape}.")
  seed = tf.ensure_shape(tf.cast(seed, tf.int32), [2])
  return tf.random.experimental.stateless_fold_in(seed, place)
