"""Defines the ranges of the numbers that a config may hold.

A range is stated once, where the number is read. A function that takes its
arguments from the config annotates them, and `config.call` checks them:

  def open_source(num_examples: ranges.Count = 100): ...

A key that is read by name states its range there:

  config_lib.get_checked(config, "ema_decay", ranges.Decay)
"""

from collections.abc import Mapping, Sequence
import math
import types
import typing
from typing import Annotated, Any, Literal, NamedTuple


class Range(NamedTuple):
  """The numbers between two limits.

  Attributes:
    low: Lower limit; minus infinity for none.
    high: Upper limit; infinity for none.
    has_low: Whether `low` itself is in the range.
    has_high: Whether `high` itself is in the range.
  """
  low: float = -math.inf
  high: float = math.inf
  has_low: bool = False
  has_high: bool = False

  def __contains__(self, value) -> bool:
    """Returns whether a number is in the range; NaN and infinity never are."""
    return math.isfinite(value) and (
        self.low < value < self.high
        or self.has_low and value == self.low
        or self.has_high and value == self.high)

  def __str__(self):
    if math.isfinite(self.low) and math.isfinite(self.high):
      return (f" in {'[' if self.has_low else '('}{self.low:.10g}, "
              f"{self.high:.10g}{']' if self.has_high else ')'}")
    if math.isfinite(self.low):
      return f" {'of at least' if self.has_low else 'above'} {self.low:.10g}"
    return ""


Count = Annotated[int, Range(low=1, has_low=True)]
CountOrZero = Annotated[int, Range(low=0, has_low=True)]
Integer = Annotated[int, Range()]
Seed = Annotated[int, Range(low=0, has_low=True, high=2 ** 31)]
Number = Annotated[float, Range()]
Positive = Annotated[float, Range(low=0)]
NotNegative = Annotated[float, Range(low=0, has_low=True)]
Fraction = Annotated[float, Range(low=0, has_low=True, high=1, has_high=True)]
# 1 would keep the old value, or drop everything.
Decay = Annotated[float, Range(low=0, has_low=True, high=1)]


def accepts(value: Any, annotation: Any) -> bool:
  """Returns whether `value` is among the values that an annotation describes.

  Numbers, booleans, strings and sequences or mappings of them are told apart;
  an annotation of any other kind accepts everything. An integer counts as a
  float, but a boolean is not a number, nor a number a boolean.
  """
  origin = typing.get_origin(annotation)
  arguments = typing.get_args(annotation)
  if origin is Annotated:
    limits = next((x for x in annotation.__metadata__ if isinstance(x, Range)),
                  None)
    return accepts(value, arguments[0]) and (limits is None or value in limits)
  if origin in (typing.Union, types.UnionType):
    return any(accepts(value, option) for option in arguments)
  if origin is Literal:
    return value in arguments
  if annotation is types.NoneType:
    return value is None
  if annotation in (int, float):
    return (isinstance(value, (annotation, int)) and math.isfinite(value)
            and not isinstance(value, bool))
  if annotation in (bool, str):
    return isinstance(value, annotation)
  if origin is tuple and ... not in arguments:
    return (isinstance(value, (list, tuple)) and len(value) == len(arguments)
            and all(map(accepts, value, arguments)))
  if origin in (tuple, list, Sequence):
    return (isinstance(value, (list, tuple))
            and all(accepts(item, arguments[0]) for item in value))
  if origin in (dict, Mapping):
    return (isinstance(value, Mapping)
            and all(accepts(item, arguments[1]) for item in value.values()))
  return True


def describe(annotation: Any) -> str:
  """Describes the values that `accepts` accepts: "an integer of at least 1"."""
  origin = typing.get_origin(annotation)
  arguments = typing.get_args(annotation)
  names = {int: "an integer", float: "a number", bool: "True or False",
           str: "a string", types.NoneType: "None"}
  if origin is Annotated:
    return describe(arguments[0]) + "".join(
        str(x) for x in annotation.__metadata__ if isinstance(x, Range))
  if origin in (typing.Union, types.UnionType):
    return " or ".join(map(describe, arguments))
  if origin is Literal:
    return f"one of {list(arguments)}"
  if origin is tuple and ... not in arguments:
    return f"a list of {', '.join(map(describe, arguments))}"
  if origin in (tuple, list, Sequence):
    return f"a list, each {describe(arguments[0])}"
  if origin in (dict, Mapping):
    return f"a dict, each value {describe(arguments[1])}"
  return names.get(annotation, "a value of another kind")
