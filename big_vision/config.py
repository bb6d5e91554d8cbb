"""Reads configs strictly, compares them and stores them.

A config file returns an `ml_collections.ConfigDict`. The program reads it as a
`Config`, which remembers every key that was read. A key that nothing reads (a
typo, an option that does not exist) stops the run before it costs anything.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import difflib
import inspect
import json
import re
from typing import Any

import ml_collections

from big_vision import ranges

_SECRET = re.compile(r"(^|_)(token|secret|password|api_key)$", re.IGNORECASE)


class ConfigError(ValueError):
  """The config or the command line is invalid."""


def nearest(word: str, options: Iterable[str]) -> str:
  """Returns " (did you mean 'x'?)" for the option most like `word`, or ""."""
  matches = difflib.get_close_matches(str(word), map(str, options), n=1)
  return f" (did you mean {matches[0]!r}?)" if matches else ""


def call(fn: Callable, kwargs: Mapping[str, Any], where: str, **given):
  """Calls `fn(**given, **kwargs)`, where `kwargs` come from the config.

  Args:
    fn: Callable whose signature `inspect` can read.
    kwargs: Arguments from the config.
    where: Path of `kwargs` in the config, for messages ("config.model").
    **given: Arguments from the program; `kwargs` must not repeat them.

  Returns:
    The result of the call.

  Raises:
    ConfigError: `kwargs` has a name that `fn` does not accept or that the
      program sets, or lacks one that `fn` needs; the error lists what `fn`
      accepts. Or a value is not one that the annotation of its parameter
      describes, see `check`.
  """
  parameters = inspect.signature(fn).parameters
  accepted = [
      name for name, p in parameters.items()
      if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
      and name not in given and name not in ("parent", "name")]
  open_ended = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
  for name in kwargs:
    if name in given:
      raise ConfigError(f"{where}.{name} is set by the program; remove it.")
    if not open_ended and name not in accepted:
      raise ConfigError(
          f"{where}.{name} does not exist{nearest(name, accepted)}. "
          f"It accepts {sorted(accepted)}.")
  missing = [
      name for name in accepted
      if parameters[name].default is inspect.Parameter.empty
      and name not in kwargs]
  if missing:
    raise ConfigError(
        f"{where} lacks {missing}; it has {sorted(kwargs)}.")
  check_arguments(fn, (), kwargs, where)
  return fn(**given, **kwargs)


def check_arguments(
    fn: Callable, args: Sequence[Any], kwargs: Mapping[str, Any], where: str):
  """Checks arguments against the annotations of a function's parameters.

  None is allowed where it is the default.

  Args:
    fn: Callable whose signature `inspect` can read.
    args: Positional arguments.
    kwargs: Keyword arguments; others may be missing.
    where: Path of the arguments in the config, for messages.

  Raises:
    TypeError: The function does not take these arguments.
    ConfigError: A value is not one that the annotation describes.
  """
  signature = inspect.signature(fn)
  for name, value in signature.bind_partial(*args, **kwargs).arguments.items():
    parameter = signature.parameters[name]
    if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
      if value is not None or parameter.default is not None:
        check(value, f"{where}.{name}", parameter.annotation)


def check(value: Any, where: str, allowed: Any):
  """Checks the type of a value and the range of a number.

  Args:
    value: Value of a config.
    where: Path of the value, for the message.
    allowed: Annotation that describes the allowed values: `ranges.Count`,
      `str | None`, ...

  Returns:
    The value.

  Raises:
    ConfigError: The value is not allowed.
  """
  if not ranges.accepts(value, allowed):
    raise ConfigError(
        f"{where} is {value!r}; it must be {ranges.describe(allowed)}.")
  return value


def get_checked(
    config: Mapping[str, Any], key: str, allowed: Any, default: Any = None, *,
    where: str | None = None):
  """Returns a checked value, or `default` if the key is absent or None.

  Args:
    config: The whole config or a part of it.
    key: Key to read.
    allowed: Annotation that describes the allowed values, see `check`.
    default: Value to return, unchecked, for a missing key or None.
    where: Path of `config` in the whole config, see `key_path`.

  Raises:
    ConfigError: The value is not allowed.
  """
  value = config.get(key)
  if value is None:
    return default
  return check(value, key_path(config, key, where), allowed)


def key_path(
    config: Mapping[str, Any], key: str, where: str | None = None) -> str:
  """Returns the path of a key in the whole config, for messages.

  Args:
    config: The whole config or a part of it.
    key: Key in `config`.
    where: Path of `config`; None for that which a `Config` knows, and "config"
      for any other mapping.
  """
  if where is None:
    where = config._path if isinstance(config, Config) else "config"
  return f"{where}.{key}"


class Config(Mapping):
  """A read-only config that remembers which keys were read.

  Values are read as `config.lr`, `config["lr"]` or `config.get("lr", 0.1)`;
  nested dicts are `Config`s too. `dict(config)` and `**config` mark every key
  as read, so the receiver must check the names itself (see `call`).

  Args:
    values: Values by key, as a dict or a ConfigDict.
    path: Path of these values in the whole config, for messages.
  """

  def __init__(self, values: Mapping[str, Any], path: str = "config"):
    if isinstance(values, ml_collections.ConfigDict):
      values = values.to_dict()
    self._path = path
    self._asked = set()
    self._values = {}
    for key, value in values.items():
      if isinstance(value, Mapping):
        value = Config(value, f"{path}.{key}")
      self._values[key] = value

  def __getitem__(self, key):
    self._asked.add(key)
    if key not in self._values:
      raise ConfigError(
          f"{self._path}.{key} is missing{nearest(key, self._values)}. "
          f"{self._path} has {sorted(self._values)}.")
    return self._values[key]

  def get(self, key, default=None):
    """Returns a value, or `default` if the key is absent or its value None."""
    self._asked.add(key)
    value = self._values.get(key, default)
    return default if value is None else value

  def __contains__(self, key):
    self._asked.add(key)
    return key in self._values

  def __getattr__(self, key):
    if key.startswith("_"):
      raise AttributeError(key)
    return self[key]

  def __iter__(self):
    return iter(self._values)

  def __len__(self):
    return len(self._values)

  def __repr__(self):
    return f"Config({self.to_dict()!r})"

  def to_dict(self) -> dict[str, Any]:
    """Returns a plain nested dict; this does not count as reading."""
    return {
        key: value.to_dict() if isinstance(value, Config) else value
        for key, value in self._values.items()}

  def unread(self) -> list[tuple[str, list[str]]]:
    """Lists the unread keys, with the names that each may be a misspelling of.

    Returns:
      [(path of the key, names that were looked up beside it)].
    """
    found = []
    for key, value in self._values.items():
      if key not in self._asked:
        found.append((f"{self._path}.{key}", sorted(self._asked)))
      elif isinstance(value, Config):
        found.extend(value.unread())
    return found

  def check_all_read(self):
    """Raises ConfigError if there is a key that nothing has read."""
    unread = self.unread()
    if unread:
      lines = [
          f"  {path}{nearest(path.rsplit('.', 1)[-1], asked)}"
          for path, asked in unread]
      raise ConfigError(
          "Nothing reads these keys of the config:\n" + "\n".join(lines) +
          "\nCorrect or remove them: a key without effect is a mistake.")


def to_json(config: Config) -> str:
  """Returns the config as JSON; passwords, tokens and other secrets are hidden.

  Raises:
    ConfigError: JSON cannot hold a value (a function, an array); the error
      names its path.
  """
  def plain(value, path):
    if isinstance(value, Mapping):
      return {key: "<hidden>" if _SECRET.search(key) else
              plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
      return [plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
      return value
    raise ConfigError(
        f"{path} is a {type(value).__name__}; a config holds only numbers, "
        "strings, booleans, lists and dicts, so that it can be stored and "
        "compared.")
  return json.dumps(plain(config.to_dict(), "config"), indent=2, sort_keys=True)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Flattens a nested dict to {"a.b": value}; empty dicts are values."""
  flat = {}
  for key, value in values.items():
    if isinstance(value, Mapping) and value:
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Returns one line for every key in which two configs differ."""
  old, new = flatten(old), flatten(new)
  absent = object()
  def show(value):
    return "absent" if value is absent else repr(value)
  return [
      f"{key}: {show(old.get(key, absent))} -> {show(new.get(key, absent))}"
      for key in sorted(set(old) | set(new))
      if old.get(key, absent) != new.get(key, absent)]


def resolve(values: ml_collections.ConfigDict) -> Config:
  """Converts what a config file returned to the form in which it is stored.

  A resumed run reads the stored file. So that a new run sees the same values,
  its config is converted to JSON and back (tuples become lists).
  """
  return Config(json.loads(to_json(Config(values))))
