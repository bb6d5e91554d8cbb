"""Registers preprocessing ops by name, and holds the pieces that they share.

An op is registered as a factory. `resize(224)` in a preprocessing string calls
`factory(224)`, which checks its arguments and returns a function of an example,
a dict of tensors:

  deterministic: fn(data) -> data
  random:        fn(data, seed) -> data, where `seed`, int32[2], is used for
                 `tf.random.stateless_*` functions only.

These functions run inside `tf.data` graphs, so they use TensorFlow functions.
They must not change the dict they are given.
"""

from collections.abc import Callable, Mapping
import functools
import inspect
from typing import Any, NamedTuple

import tensorflow as tf

from big_vision import config as config_lib


class Op(NamedTuple):
  """A registered op.

  Attributes:
    factory: Function of the op's arguments that returns the op's function.
    random: Whether the op's function takes a seed.
  """
  factory: Callable[..., Callable]
  random: bool


_OPS: dict[str, Op] = {}


def register(name: str, random: bool = False) -> Callable:
  """Returns a decorator that registers an op's factory as `name`.

  Args:
    name: Name of the op in preprocessing strings; an identifier.
    random: Whether the op's function takes a seed.

  Raises:
    ValueError: The decorator finds that the name is taken or not an identifier.
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
  """Returns the op registered as `name`.

  Raises:
    ConfigError: No such op exists; the error names the nearest one.
  """
  if name not in _OPS:
    raise config_lib.ConfigError(
        f"Unknown op {name!r}{config_lib.nearest(name, _OPS)}. "
        f"There are {names()}.")
  return _OPS[name]


def names() -> list[str]:
  """Returns all registered names, sorted."""
  return sorted(_OPS)


def value_of(data: Mapping[str, Any], key: str):
  """Returns `data[key]`, or raises a ValueError that lists the keys."""
  if key not in data:
    raise ValueError(
        f"The example has no {key!r}{config_lib.nearest(key, data)}. "
        f"It has {sorted(data)}.")
  return data[key]


def checked(value, condition, *message):
  """Returns `value`; unless `condition`, reading it is an error.

  The error is an InvalidArgumentError, raised when the graph runs. Everything
  that is computed from the result waits for the check.

  Args:
    value: Tensor to return.
    condition: bool[].
    *message: Strings and tensors that the error shows.
  """
  check = tf.debugging.Assert(condition, message)
  with tf.control_dependencies([] if check is None else [check]):
    return tf.identity(value)


def in_key_out_key(
    indefault: str | None = "image", outdefault: str | None = "image",
    ragged: bool = False) -> Callable:
  """Returns a decorator for factories of functions of a single entry.

  The decorated factory makes a function of the whole example, which reads one
  entry, writes one entry and keeps the others. It takes three more arguments:
  `key`, the entry to read and write, and `inkey` and `outkey`, which name the
  two separately and take precedence over `key`.

  Args:
    indefault: Entry to read if neither `inkey` nor `key` is given; None if one
      of them must be given.
    outdefault: Entry to write if neither `outkey` nor `key` is given; None if
      one of them must be given.
    ragged: Whether the function takes a `tf.RaggedTensor`. If not, one is
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

    # Messages about wrong arguments show this signature.
    signature = inspect.signature(factory)
    with_keys.__signature__ = signature.replace(parameters=[
        *signature.parameters.values(),
        *(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
          for name in ("key", "inkey", "outkey"))])
    return with_keys
  return decorator
