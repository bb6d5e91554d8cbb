"""Names of preprocessing ops, and what all ops share.

An op is registered as a factory. `resize(224)` in a preprocessing string calls
`factory(224)`, which checks its arguments and returns the function that works
on examples, which are dicts of tensors:

  deterministic: fn(data) -> data
  random:        fn(data, seed) -> data, with `seed` int32[2] for the
                 `tf.random.stateless_*` functions and nothing else.

Functions run inside `tf.data` graphs, so they are written with TensorFlow
functions, and they do not change the dict they are given.
"""

from collections.abc import Callable, Mapping
import functools
import inspect
from typing import Any, NamedTuple

import tensorflow as tf

from big_vision import config as config_lib


class Op(NamedTuple):
  """What is registered under a name."""
  factory: Callable[..., Callable]
  random: bool


_OPS: dict[str, Op] = {}


def register(name: str, random: bool = False) -> Callable:
  """Decorates an op's factory: registers it as `name`.

  Args:
    name: Name of the op in preprocessing strings; an identifier.
    random: whether the op's function takes a seed.

  Raises:
    ValueError: the name is taken, or could not be written in a string.
  """
  def decorator(factory):
    if not name.isidentifier():
      raise ValueError(f"An op cannot be called {name!r}: not an identifier.")
    if name in _OPS:
      old = _OPS[name].factory
      raise ValueError(
          f"The op {name!r} of {factory.__module__}.{factory.__qualname__} "
          f"exists already: {old.__module__}.{old.__qualname__}.")
    _OPS[name] = Op(factory, random)
    return factory
  return decorator


def lookup(name: str) -> Op:
  """The op registered as `name`; ConfigError with the nearest name if none."""
  if name not in _OPS:
    raise config_lib.ConfigError(
        f"There is no op {name!r}{config_lib.nearest(name, _OPS)}. "
        f"There are {names()}.")
  return _OPS[name]


def names() -> list[str]:
  """All registered names, sorted."""
  return sorted(_OPS)


def value_of(data: Mapping[str, Any], key: str):
  """`data[key]`, or a ValueError that says which keys there are."""
  if key not in data:
    raise ValueError(
        f"The example has no {key!r}{config_lib.nearest(key, data)}. "
        f"It has {sorted(data)}.")
  return data[key]


def checked(value, condition, *message):
  """`value`, but an InvalidArgumentError while running unless `condition`.

  Args:
    value: a tensor. What is computed from it waits for the check.
    condition: bool[].
    *message: strings and tensors, which the error shows.
  """
  check = tf.debugging.Assert(condition, message)
  with tf.control_dependencies([] if check is None else [check]):
    return tf.identity(value)


def in_key_out_key(
    indefault: str | None = "image", outdefault: str | None = "image",
    ragged: bool = False) -> Callable:
  """Decorates a factory whose function works on one value, not on the dict.

  The function becomes one of the dict: it reads one entry, writes one entry
  and keeps the others. The factory gains the arguments `key` (reads and writes
  it), `inkey` and `outkey` (read, write that one; they go before `key`).

  Args:
    indefault: the entry read where neither `inkey` nor `key` is given. None:
      one of the two must be given.
    outdefault: The entry written where neither `outkey` nor `key` is given.
    ragged: whether the function takes a `tf.RaggedTensor`; if not, one is
      refused with a ValueError while tracing.
  """
  def decorator(factory):
    @functools.wraps(factory)
    def with_keys(*args, key=None, inkey=None, outkey=None, **kwargs):
      source = inkey or key or indefault
      target = outkey or key or outdefault
      if source is None or target is None:
        raise ValueError("needs key=, or inkey= and outkey=")
      fn = factory(*args, **kwargs)

      def on_example(data, *seed):
        value = value_of(data, source)
        if isinstance(value, tf.RaggedTensor) and not ragged:
          raise ValueError(
              f"{source!r} is a RaggedTensor of shape {value.shape}; a dense "
              "tensor is needed: see pad_to_shape.")
        return {**data, target: fn(value, *seed)}
      return on_example

    # So that whoever reports wrong arguments sees the new ones, too.
    signature = inspect.signature(factory)
    with_keys.__signature__ = signature.replace(parameters=[
        *signature.parameters.values(),
        *(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
          for name in ("key", "inkey", "outkey"))])
    return with_keys
  return decorator
