"""Finds numbers of a config whose range nothing checks; for tests."""

import contextlib

from big_vision import config as config_lib
import pytest


@contextlib.contextmanager
def recorded():
  """Yields a list of the paths whose values are checked against a range."""
  check, paths = config_lib.check, []

  def recording(value, where, allowed):
    if "Range(" in repr(allowed):
      paths.append(where)
    return check(value, where, allowed)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(config_lib, "check", recording)
    yield paths


def assert_all_numbers_are_checked(config: config_lib.Config, paths):
  """Asserts that `paths` has every key of a config that holds numbers.

  Options of sources are checked under the name of the source, as in
  "data(name='bv:copy').max_length"; arguments of predict functions when these
  are traced.
  """
  of_sources = {path.rpartition(".")[2] for path in paths
                if path.startswith("data(")}
  missing = [
      key for key, value in config_lib.flatten(config.to_dict()).items()
      if _holds_number(value) and ".pred_kw." not in key
      and not any(f"config.{key}.".startswith(f"{path}.") for path in paths)
      and not (".data." in key and key.rpartition(".")[2] in of_sources)]
  assert not missing, missing


def _holds_number(value) -> bool:
  if isinstance(value, list):
    return any(map(_holds_number, value))
  return isinstance(value, (int, float)) and not isinstance(value, bool)
