"""Parses the op strings of configs: "op|op(arg, name=arg)".

Preprocessing and sharding strategies are both written this way. Arguments are
Python literals; a `|` inside quotes or brackets belongs to the argument.
"""

import ast
from typing import Any, NamedTuple

from big_vision import config as config_lib


class Op(NamedTuple):
  """One op of a string.

  Attributes:
    name: Name of the op.
    args: Its positional arguments.
    kwargs: Its keyword arguments.
    text: The op as written.
  """
  name: str
  args: tuple
  kwargs: dict[str, Any]
  text: str


def parse(string: str) -> list[Op]:
  """Parses `string` into ops, in order; empty pieces are skipped.

  >>> parse("decode|resize((2, 3), method='area')")[1][:3]
  ('resize', ((2, 3),), {'method': 'area'})

  Raises:
    ConfigError: A piece is not `name` or `name(literals)`; the error shows the
      string and the piece.
  """
  return [_parse_op(piece.strip(), string)
          for piece in _split(string) if piece.strip()]


def _split(string: str) -> list[str]:
  """Splits at every `|` outside of quotes and brackets."""
  pieces, start, depth, quote, escaped = [], 0, 0, None, False
  for position, character in enumerate(string):
    if quote:
      if escaped:
        escaped = False
      elif character == "\\":
        escaped = True
      elif character == quote:
        quote = None
    elif character in "'\"":
      quote = character
    elif character in "([{":
      depth += 1
    elif character in ")]}":
      depth -= 1
    elif character == "|" and depth == 0:
      pieces.append(string[start:position])
      start = position + 1
  return pieces + [string[start:]]


def _parse_op(piece: str, string: str) -> Op:
  """Parses one piece of `string`."""
  def fail(reason):
    return config_lib.ConfigError(
        f"Cannot read '{piece}' in '{string}': {reason}. Write ops as "
        "`name` or `name(1, 'text', key=(2, 3))`, joined by `|`.")
  try:
    node = ast.parse(piece, mode="eval").body
  except SyntaxError as error:
    raise fail(error.msg) from error
  if isinstance(node, ast.Name):
    return Op(name=node.id, args=(), kwargs={}, text=piece)
  if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
    raise fail("it is not an op")
  try:
    args = tuple(ast.literal_eval(arg) for arg in node.args)
    kwargs = {k.arg: ast.literal_eval(k.value) for k in node.keywords}
  except (TypeError, ValueError) as error:  # {[]: 1} raises a TypeError.
    raise fail("its arguments are not Python literals") from error
  if None in kwargs:
    raise fail("`**` is not allowed")
  if len(kwargs) < len(node.keywords):
    raise fail("an argument is given twice")
  return Op(name=node.func.id, args=args, kwargs=kwargs, text=piece)
