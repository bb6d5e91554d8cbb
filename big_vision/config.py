"""Configs: arguments of config files, strict reading, durations, storing.

A config file returns an `ml_collections.ConfigDict`. The program reads it as a
`Config`, which remembers every key that was asked for, so that a key nobody
read (a typo, an option that does not exist) stops the run before it costs.
"""

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
import difflib
import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
import traceback
import types
from typing import Any

from absl import flags
import ml_collections

_UNITS = ("steps", "epochs", "examples", "percent")
_SECRET = re.compile(r"(^|_)(token|secret|password|api_key)$", re.IGNORECASE)


class ConfigError(ValueError):
  """The config asks for something that does not exist or cannot be."""


def nearest(word: str, options: Iterable[str]) -> str:
  """" (did you mean 'x'?)" for the option most like `word`, else ""."""
  matches = difflib.get_close_matches(str(word), map(str, options), n=1)
  return f" (did you mean {matches[0]!r}?)" if matches else ""


def parse_flags(argv: Sequence[str]) -> list[str]:
  """For `app.run(main, flags_parser=parse_flags)`: strict, and for people.

  What the command line gets wrong ends the process with exit code 2 and a
  message: a flag that does not exist, `--config.a.b=value` with a path that the
  config does not have or a value of another type. What a config file itself
  raises keeps its traceback.

  Returns:
    The arguments that are no flags, the program's name first.
  """
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    message = str(error)
  except ConfigError as error:
    message = str(error)
  except Exception as error:  # pylint: disable=broad-exception-caught
    ours = (os.path.dirname(ml_collections.__file__),
            os.path.dirname(os.path.dirname(flags.__file__)), __file__)
    if any(not frame.filename.startswith(ours)
           for frame in traceback.extract_tb(error.__traceback__)):
      raise
    message = (f"The command line sets what the config does not have: {error}"
               if isinstance(error, (AttributeError, KeyError)) else
               f"The command line cannot be used: {error}")
  print(message, file=sys.stderr, flush=True)
  sys.exit(2)


def call(fn: Callable, kwargs: Mapping[str, Any], where: str, **given):
  """Calls `fn(**given, **kwargs)`, where `kwargs` come from the config.

  Args:
    fn: any callable whose signature Python can tell.
    kwargs: the config's part; unknown and missing names are reported.
    where: the config's path of `kwargs`, for messages ("config.model").
    **given: what the program adds; a clash with `kwargs` is an error.

  Raises:
    ConfigError: a name `fn` does not take, or one it needs and did not get.
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
    raise ConfigError(f"{where} lacks {missing}; it got {sorted(kwargs)}.")
  return fn(**given, **kwargs)


class Config(Mapping):
  """A read-only config that remembers what was asked for.

  Values are read as `config.lr`, `config["lr"]`, `config.get("lr", 0.1)`;
  nested dicts are `Config`s too. `dict(config)` and `**config` count as
  reading: the receiver must then check the names (see `call`).
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
          f"{self._path}.{key} is needed and not there"
          f"{nearest(key, self._values)}. There are {sorted(self._values)}.")
    return self._values[key]

  def get(self, key, default=None):
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
    """A plain nested dict; does not count as reading."""
    return {
        key: value.to_dict() if isinstance(value, Config) else value
        for key, value in self._values.items()}

  def unread(self) -> list[tuple[str, list[str]]]:
    """(path, names that were asked for in its place) of every unread key."""
    found = []
    for key, value in self._values.items():
      if key not in self._asked:
        unknown = sorted(self._asked - set(self._values))
        found.append((f"{self._path}.{key}", unknown))
      elif isinstance(value, Config):
        found.extend(value.unread())
    return found

  def check_all_read(self):
    """Raises ConfigError if there is a key that nobody asked for."""
    unread = self.unread()
    if unread:
      lines = [
          f"  {path}{nearest(path.rsplit('.', 1)[-1], asked)}"
          for path, asked in unread]
      raise ConfigError(
          "Nothing reads these keys of the config:\n" + "\n".join(lines) +
          "\nCorrect or remove them: a key without effect is a mistake.")


def parse_arg(arg: str | None, **defaults) -> ml_collections.ConfigDict:
  """Arguments of a config file: `--config file.py:lr=0.1,runlocal`.

  Args:
    arg: what follows the colon; `name=value` pairs separated by commas. A name
      alone means True. Commas inside brackets or quotes belong to the value.
    **defaults: every accepted name with its default. The value takes the
      default's type; a default of None takes what the text looks like.

  Raises:
    ConfigError: an unknown name, or a value that is not of the default's type.
  """
  values = ml_collections.ConfigDict(defaults, type_safe=False)
  for piece in _split_outside_quotes(arg or ""):
    name, equals, text = (part.strip() for part in piece.partition("="))
    if name not in defaults:
      raise ConfigError(
          f"The config has no argument {name!r}{nearest(name, defaults)}. "
          f"It accepts {sorted(defaults)}.")
    values[name] = _parse_value(
        name, text if equals else "True", defaults[name])
  return values


def _split_outside_quotes(text: str) -> list[str]:
  """Splits at commas that are in neither brackets nor quotes."""
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
  """The value of `text`, of the type of `default`."""
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
    raise ConfigError(
        f"The argument {name}={text} is not of type "
        f"{type(default).__name__}, as its default {default!r} is.")
  return value


def duration(
    prefix: str, config: Mapping[str, Any], *, batch_size: int | None = None,
    data_size: int | None = None, total_steps: int | None = None,
    default: int | None = None) -> int | None:
  """Steps that `{prefix}_{steps,epochs,examples,percent}` stands for.

  Args:
    prefix: "total", "log_training", "warmup", ...
    config: where the keys are looked up; None and negative mean "not set".
    batch_size: examples a step, for examples and epochs.
    data_size: examples an epoch, for epochs.
    total_steps: for percent, which is a fraction in [0, 1] of the run.
    default: what to return where no key is set.

  Returns:
    The number of steps, rounded, at least 1 unless the key says 0.

  Raises:
    ConfigError: two units at once, a wrong type, or a unit that cannot be
      converted because its measure is not known.
  """
  found = {}
  for unit in _UNITS:
    value = config.get(f"{prefix}_{unit}")
    if value is None:
      continue
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      raise ConfigError(
          f"{prefix}_{unit} is {value!r}; it must be a number of {unit}.")
    if value >= 0:
      found[unit] = value
  if not found:
    return default
  if len(found) > 1:
    raise ConfigError(
        f"{prefix} is given in {sorted(found)}; keep one of "
        f"{[f'{prefix}_{unit}' for unit in sorted(found)]}.")
  (unit, value), = found.items()
  needs = {
      "steps": (), "examples": (batch_size,), "percent": (total_steps,),
      "epochs": (batch_size, data_size)}[unit]
  if any(need is None for need in needs):
    unknown = {
        "examples": "batch size", "percent": "total number of steps",
        "epochs": "size of the data or of the batch"}[unit]
    raise ConfigError(
        f"{prefix}_{unit} cannot be used here: the {unknown} is not known.")
  if unit == "percent" and value > 1:
    raise ConfigError(
        f"{prefix}_percent is {value}; it is a fraction in [0, 1].")
  steps = {
      "steps": lambda: value,
      "examples": lambda: value / batch_size,
      "epochs": lambda: value * data_size / batch_size,
      "percent": lambda: value * total_steps}[unit]()
  return max(1, round(steps)) if value else 0


def to_json(config: Config) -> str:
  """The resolved config as JSON, with values named like secrets hidden.

  Raises:
    ConfigError: a value that JSON cannot hold (a function, an array); names
      its path.
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
        f"{path} is a {type(value).__name__}; a config holds numbers, strings, "
        "booleans, lists and dicts only, so that it can be stored and "
        "compared.")
  return json.dumps(plain(config.to_dict(), "config"), indent=2, sort_keys=True)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"a.b": value} of a nested dict; an empty dict is a value."""
  flat = {}
  for key, value in values.items():
    if isinstance(value, Mapping) and value:
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """One line for every key in which two configs differ."""
  old, new = flatten(old), flatten(new)
  absent = object()
  def show(value):
    return "absent" if value is absent else repr(value)
  return [
      f"{key}: {show(old.get(key, absent))} -> {show(new.get(key, absent))}"
      for key in sorted(set(old) | set(new))
      if old.get(key, absent) != new.get(key, absent)]


def import_by_name(package: str, name: str, what: str) -> types.ModuleType:
  """The module that a config names, below `package`.

  Args:
    package: "big_vision.models", ...
    name: "vit", "proj.image_text.two_towers", ...
    what: "model", "evaluator", ...: for the message.

  Raises:
    ConfigError: there is no such module; names those that exist.
  """
  full_name = f"{package}.{name}"
  try:
    return importlib.import_module(full_name)
  except ModuleNotFoundError as error:
    if error.name is None or not f"{full_name}.".startswith(f"{error.name}."):
      raise  # Something that the module itself imports is missing.
  root = importlib.import_module(package)
  names = [module.name.removeprefix(f"{package}.") for module in
           pkgutil.walk_packages(root.__path__, f"{package}.")
           if not module.ispkg]
  raise ConfigError(
      f"Unknown {what} {name!r}{nearest(name, names)}; there are {names}.")


def resolve(values: ml_collections.ConfigDict) -> Config:
  """What a config file returned, in the form in which it is stored.

  Going through JSON makes a fresh run and a resumed one, which reads the stored
  file, see the same values (tuples become lists).
  """
  return Config(json.loads(to_json(Config(values))))


def check_workdir(workdir: str, config: Config, allow_change: bool = False):
  """Refuses to continue another config's run.

  Raises:
    ConfigError: `workdir` has the run of a config that differs; shows how.
  """
  stored = load_workdir(workdir)
  if stored is None or allow_change:
    return
  lines = difference(stored.to_dict(), config.to_dict())
  if lines:
    raise ConfigError(
        f"{workdir} holds a run of another config. It differs in\n  " +
        "\n  ".join(lines) + "\nUse another --workdir, or continue that run "
        "with this config by --allow_config_change.")


def store_in_workdir(workdir: str, config: Config):
  """Writes `config` to `workdir`/config.json, all of it or nothing."""
  path = os.path.join(workdir, "config.json")
  with open(f"{path}.tmp", "w", encoding="utf-8") as file:
    file.write(to_json(config) + "\n")
  os.replace(f"{path}.tmp", path)


def load_workdir(workdir: str) -> Config | None:
  """The config that a run stored in `workdir`, None if there is none."""
  path = os.path.join(workdir, "config.json")
  if not os.path.exists(path):
    return None
  with open(path, encoding="utf-8") as file:
    try:
      return Config(json.load(file))
    except json.JSONDecodeError as error:
      raise ConfigError(f"{path} is not JSON: {error}.") from error
