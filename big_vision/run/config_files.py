"""Loads config files, and explains in a line what is wrong with them."""

import importlib.machinery
import importlib.util
import inspect
import os
import sys
import types
from typing import Any

from absl import flags
from ml_collections import config_flags
import ml_collections

from big_vision import config as config_lib


class LoadingFailed(Exception):
  """Carries an error of a config file through absl.

  absl would turn a ValueError, such as ConfigError, into text.

  Args:
    error: Error that was raised.
    path: Path of the config file.

  Attributes:
    error: Error that was raised.
  """

  def __init__(self, error: Exception, path: str):
    super().__init__(str(error))
    self.error, self._path = error, path

  def trace(self) -> types.TracebackType:
    """Returns the traceback from the config file on."""
    trace = self.error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename != self._path:
      trace = trace.tb_next
    return trace or self.error.__traceback__


def load_module(path: str) -> types.ModuleType:
  """Imports a config file.

  Raises:
    ConfigError: There is no such file, or it is not Python. Errors of the code
      in it pass unchanged.
  """
  if not os.path.isfile(path):
    raise config_lib.ConfigError(f"There is no config file {path!r}.")
  loader = importlib.machinery.SourceFileLoader("config_file", path)
  spec = importlib.util.spec_from_file_location(
      loader.name, path, loader=loader)
  module = importlib.util.module_from_spec(spec)
  sys.modules[loader.name] = module  # Dataclasses look up their module here.
  try:
    loader.exec_module(module)
  except SyntaxError as error:
    place = f"{error.filename or path} line {error.lineno or 1}"
    text = f"\n  {error.text.strip()}" if error.text else ""
    raise config_lib.ConfigError(
        f"{place} is not valid Python: {error.msg}{text}") from error
  except PermissionError as error:
    if error.filename != path:
      raise
    raise config_lib.ConfigError(f"{path} cannot be read: {error}.") from error
  return module


def load(text: str) -> ml_collections.ConfigDict:
  """Returns the config of "FILE.py" or "FILE.py:arg=value,...".

  Raises:
    ConfigError: See `load_module`; or the file does not define a suitable
      `get_config`. Errors that it raises pass unchanged.
  """
  path, *args = text.split(":", 1)
  module = load_module(path)
  get_config = getattr(module, "get_config", None)
  if not callable(get_config):
    raise config_lib.ConfigError(
        f"{path} does not define get_config(), which returns the config.")
  try:
    inspect.signature(get_config).bind(*args)
  except TypeError as error:
    raise config_lib.ConfigError(
        f"{path} takes no arguments, but {text!r} gives it some." if args else
        f"{path} needs arguments: write {path}:arg=value,...") from error
  config = get_config(*args)
  if not isinstance(config, ml_collections.ConfigDict):
    raise config_lib.ConfigError(
        f"get_config() of {path} returned {type(config).__name__}; it must "
        "return an ml_collections.ConfigDict.")
  return config


class _Parser(flags.ArgumentParser):
  """Parses the value of --config."""

  def parse(self, argument: str) -> Any:
    try:
      config = load(argument)
    except Exception as error:  # pylint: disable=broad-exception-caught
      raise LoadingFailed(error, argument.split(":", 1)[0]) from error
    config.lock()
    return config

  def flag_type(self) -> str:
    return "config file"


def define_flag(help_text: str):
  """Defines --config, and --config.KEY=VALUE for every key of its value."""
  config_flags.DEFINE_config_file("config", None, help_text)
  flags.FLAGS["config"].parser = _Parser()
