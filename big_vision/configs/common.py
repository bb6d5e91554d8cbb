"""Parses the arguments of config files."""

import ast

from big_vision import config as config_lib
import ml_collections


def parse_arg(arg: str | None, **defaults) -> ml_collections.ConfigDict:
  """Parses the arguments of a config file: `--config file.py:lr=0.1,runlocal`.

  Args:
    arg: Text after the colon: `name=value` pairs separated by commas. A name
      alone means True. Commas inside brackets or quotes belong to the value.
    **defaults: Every accepted name with its default. A value is converted to
      the type of its default; if the default is None, its type is inferred.

  Returns:
    The defaults, updated with what `arg` sets.

  Raises:
    ConfigError: A name is unknown, or a value does not have its default's type.
  """
  values = ml_collections.ConfigDict(defaults, type_safe=False)
  for piece in _split_outside_quotes(arg or ""):
    name, equals, text = (part.strip() for part in piece.partition("="))
    if name not in defaults:
      raise config_lib.ConfigError(
          f"The config has no argument {name!r}"
          f"{config_lib.nearest(name, defaults)}. It accepts "
          f"{sorted(defaults)}.")
    values[name] = _parse_value(
        name, text if equals else "True", defaults[name])
  return values


def _split_outside_quotes(text: str) -> list[str]:
  """Splits at commas that are outside brackets and quotes."""
  pieces, depth, quote = [""], 0, None
  for character in text:
    if quote:
      quote = None if character == quote else quote
    elif character in "'\"":
      quote = character
    else:
      depth += (character in "([{") - (character in ")]}")
    if character == "," and not depth and not quote:
      pieces.append("")
    else:
      pieces[-1] += character
  return [piece for piece in pieces if piece.strip()]


def _parse_value(name: str, text: str, default):
  """Converts `text` to the type of `default`."""
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = {"true": True, "false": False}.get(text.lower(), text)
  if default is None:
    return value
  if isinstance(default, str):
    return value if isinstance(value, str) else text
  if isinstance(default, float) and type(value) is int:
    return float(value)
  if type(value) is not type(default):
    raise config_lib.ConfigError(
        f"The argument {name}={text} is not of type "
        f"{type(default).__name__}, as its default {default!r} is.")
  return value
