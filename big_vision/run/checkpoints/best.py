"""Keeps the checkpoint with the best value of a metric."""

from collections.abc import Mapping
import numbers
from typing import Any

import numpy as np

from big_vision import config as config_lib
from big_vision.run.checkpoints import manager
from big_vision.run.checkpoints import reading


class Best:
  """Keeps the checkpoint with the best value of a metric; a context manager.

  Args:
    directory: Directory for this checkpoint alone.
    metric: Name of a metric of an evaluator or of training; None to keep
      nothing.
    mode: "max" or "min", the direction in which the metric improves.

  Raises:
    ValueError: `mode` is something else.
  """

  def __init__(self, directory: str, metric: str | None = None,
               mode: str = "max"):
    if mode not in ("max", "min"):
      raise ValueError(f"keep_best.mode is {mode!r}; use 'max' or 'min'.")
    self._metric, self._sign = metric, 1 if mode == "max" else -1
    self._checkpoints = None
    self._best = -np.inf
    if metric is not None:
      self._checkpoints = manager.Checkpoints(directory, keep_last=1)
      for step in self._checkpoints.steps():
        self._best = max(
            self._best, self._sign * reading.read_meta(directory, step)["best"])

  @property
  def metric(self) -> str | None:
    """Name of the metric; None if nothing is kept."""
    return self._metric

  def update(self, step: int, state, values: Mapping[str, Any],
             expected: bool = False):
    """Saves `state` if `values` has the metric and it is the best so far.

    Of equally good checkpoints the earlier is kept.

    Args:
      step: Number of finished steps.
      state: Tree of arrays.
      values: Metrics by name.
      expected: Whether `values` must have the metric.

    Raises:
      ConfigError: The metric is expected but missing, or is not a number.
    """
    if self._metric not in values:
      if expected:
        raise config_lib.ConfigError(
            f"config.keep_best.metric is {self._metric!r}, which was not "
            f"measured{config_lib.nearest(self._metric, values)}. There are "
            f"{sorted(values)}.")
      return
    if not isinstance(values[self._metric], numbers.Real):
      raise config_lib.ConfigError(
          f"config.keep_best.metric is {self._metric!r}, which is not a number "
          "but a picture.")
    if self._sign * values[self._metric] > self._best:
      self._best = self._sign * values[self._metric]
      # A resumed run repeats steps and may find the best one among them, which
      # is then not newer than the one that is stored.
      self._checkpoints.save(
          step, state, {"best": values[self._metric]}, after_newer=True)

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    if self._checkpoints is not None:
      self._checkpoints.__exit__(*exception)
