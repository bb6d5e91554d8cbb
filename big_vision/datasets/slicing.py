"""Parts of a source, given in examples or as fractions."""

from big_vision import config as config_lib


def slice_bounds(
    start: int | float | None, stop: int | float | None, size: int, where: str
) -> tuple[int, int]:
  """Returns the bounds of the part `[start:stop]` of `size` examples.

  Args:
    start: First example. An int counts examples, negative ones from the end,
      as in Python; a float is a fraction in [0, 1], rounded down; None is the
      beginning.
    stop: Example to stop before, given like `start`; None is the end.
    size: Number of examples.
    where: Name of the sliced data, for messages.

  Returns:
    The first index and the index after the last one.

  Raises:
    ConfigError: A bound is not a number, a fraction is outside [0, 1], or the
      part is empty.
  """
  bounds = []
  for name, value, default in (("start", start, 0), ("stop", stop, size)):
    if value is None:
      value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      raise config_lib.ConfigError(
          f"{where}: {name} is {value!r}; it must be a number of examples "
          "(int) or a fraction of them (float).")
    if isinstance(value, float):
      if not 0 <= value <= 1:
        raise config_lib.ConfigError(
            f"{where}: {name} is {value}; a fraction is in [0, 1]. Use an int "
            "to count examples.")
      value = int(value * size)
    bounds.append(value)
  first, last, _ = slice(*bounds).indices(size)
  if first >= last:
    raise config_lib.ConfigError(
        f"{where} has {size} examples, none of them in start={start!r}, "
        f"stop={stop!r}.")
  return first, last
