"""Converts durations in steps, epochs, examples or percent to steps."""

from collections.abc import Mapping
from typing import Any

from big_vision import config as config_lib

_UNITS = ("steps", "epochs", "examples", "percent")


def get_steps(
    prefix: str, config: Mapping[str, Any], *, batch_size: int | None = None,
    data_size: int | None = None, total_steps: int | None = None,
    default: int | None = None) -> int | None:
  """Converts `{prefix}_{steps,epochs,examples,percent}` to a number of steps.

  Args:
    prefix: Name of the duration: "total", "log_training", "warmup", ...
    config: Mapping with the keys; None and negative values mean "not set".
    batch_size: Number of examples in a step; needed for examples and epochs.
    data_size: Number of examples in an epoch; needed for epochs.
    total_steps: Number of steps in the run; needed for percent, which is a
      fraction in [0, 1] of it.
    default: Value to return if no key is set.

  Returns:
    The number of steps, rounded; at least 1 unless the key is 0.

  Raises:
    ConfigError: Two units are given, a value has the wrong type, or a unit
      cannot be converted because the size it depends on is unknown.
  """
  found = {}
  for unit in _UNITS:
    value = config.get(f"{prefix}_{unit}")
    if value is None:
      continue
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      raise config_lib.ConfigError(
          f"{prefix}_{unit} is {value!r}; it must be a number of {unit}.")
    if value >= 0:
      found[unit] = value
  if not found:
    return default
  if len(found) > 1:
    raise config_lib.ConfigError(
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
    raise config_lib.ConfigError(
        f"{prefix}_{unit} cannot be used here: the {unknown} is not known.")
  if unit == "percent" and value > 1:
    raise config_lib.ConfigError(
        f"{prefix}_percent is {value}; it is a fraction in [0, 1].")
  steps = {
      "steps": lambda: value,
      "examples": lambda: value / batch_size,
      "epochs": lambda: value * data_size / batch_size,
      "percent": lambda: value * total_steps}[unit]()
  return max(1, round(steps)) if value else 0
