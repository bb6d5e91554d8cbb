"""Converts durations in steps, epochs, examples or percent to steps."""

from collections.abc import Mapping
import math
from typing import Annotated, Any

from big_vision import config as config_lib
from big_vision import ranges

_UNITS = ("steps", "epochs", "examples", "percent")
# Steps are counted by an int32.
_MAX_STEPS = 2 ** 31 - 1


def get_steps(
    prefix: str, config: Mapping[str, Any], *, batch_size: int | None = None,
    data_size: int | None = None, total_steps: int | None = None,
    default: int | None = None, zero: bool = True,
    where: str | None = None) -> int | None:
  """Converts `{prefix}_{steps,epochs,examples,percent}` to a number of steps.

  Args:
    prefix: Name of the duration: "total", "log_training", "warmup", ...
    config: Mapping with the keys; None means "not set".
    batch_size: Number of examples in a step; needed for examples and epochs.
    data_size: Number of examples in an epoch; needed for epochs.
    total_steps: Number of steps in the run; needed for percent, which is a
      fraction in [0, 1] of it.
    default: Value to return if no key is set.
    zero: Whether the duration may be 0.
    where: Path of `config` in the whole config, for messages; None for that of
      a `Config`.

  Returns:
    The number of steps, rounded; at least 1 unless the key is 0.

  Raises:
    ConfigError: Two units are given, a value has the wrong type or is out of
      range, or a unit cannot be converted because the size it depends on is
      unknown.
  """
  def path(unit):
    return config_lib.key_path(config, f"{prefix}_{unit}", where)

  found = {}
  for unit in _UNITS:
    value = config.get(f"{prefix}_{unit}")
    if value is not None:
      limits = ranges.Range(
          low=0, has_low=zero, has_high=True,
          high=1 if unit == "percent" else math.inf)
      found[unit] = config_lib.check(
          value, path(unit), Annotated[float, limits])
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
        f"{path(unit)} cannot be used here: the {unknown} is not known.")
  steps = {
      "steps": lambda: value,
      "examples": lambda: value / batch_size,
      "epochs": lambda: value * data_size / batch_size,
      "percent": lambda: value * total_steps}[unit]()
  if steps > _MAX_STEPS:
    raise config_lib.ConfigError(
        f"{path(unit)} is {value}, which is {steps:,.0f} steps; it must be at "
        f"most {_MAX_STEPS:,} steps.")
  return max(1, round(steps)) if value else 0
