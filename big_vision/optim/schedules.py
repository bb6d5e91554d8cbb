"""Learning-rate schedules: functions from the step to a multiplier."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from big_vision import config as config_lib
from big_vision import durations
from big_vision import ranges


def create_schedule(
    *, total_steps: int, batch_size: int | None = None,
    data_size: int | None = None, where: str = "config.schedule",
    decay_type: str = "stair", mult: float = 1.0,
    scale_with_batchsize: bool = False, **kw) -> Callable[[Any], Any]:
  """Makes a function from the step t to a multiplier of the learning rate.

  The first update has t = 0. With the warm-up w, the progress
  p = clip((t - w) / (T - w), 0, 1) and b = `mult`:

    cosine      end + (b - end) * (1 + cos(pi p)) / 2; keys: end=0
    linear, polynomial
                end + (b - end) * (1 - p) ** power; keys: power=1, end=0
                (`linear_end` is an alias of end)
    rsqrt       b / sqrt(1 + (t + shift - w) / timescale) after the warm-up;
                keys: timescale=10_000, shift=0, in any duration unit
    exponential b * rate ** ((t - w) / timescale) after the warm-up; keys:
                rate=0.1, timescale in any duration unit (default: all steps)
    stair       b * mults[number of `steps` that are <= t]; keys: steps, mults

  each times min(1, t / w) and min(1, (T - t) / cooldown). `end` is not
  multiplied by b, as in google-research/big_vision: the learning rate ends at
  lr * end.

  Args:
    total_steps: Number of steps of the run, T.
    batch_size: Number of examples in a step, for durations in examples and
      epochs.
    data_size: Number of examples in an epoch, for durations in epochs.
    where: Path of the schedule in the config, for messages.
    decay_type: Name of a schedule in the list above.
    mult: Multiplier after the warm-up, b.
    scale_with_batchsize: Whether to multiply b by batch_size / 256.
    **kw: `{warmup,cooldown}_{steps,epochs,examples,percent}` and the keys
      above.

  Returns:
    A function from an int or int32[] to float32[].

  Raises:
    ConfigError: The type or a key does not exist, or a value is invalid.
  """
  if decay_type not in _DECAYS:
    raise config_lib.ConfigError(
        f"Unknown decay_type {decay_type!r}"
        f"{config_lib.nearest(decay_type, _DECAYS)}; use one of "
        f"{sorted(_DECAYS)}.")
  config_lib.check(mult, f"{where}.mult", ranges.Positive)
  config_lib.check(
      scale_with_batchsize, f"{where}.scale_with_batchsize", bool)
  measures = dict(batch_size=batch_size, data_size=data_size,
                  total_steps=total_steps)

  def take(prefix, default, zero=True):
    steps = durations.get_steps(
        prefix, kw, default=default, zero=zero, where=where, **measures)
    for unit in ("steps", "epochs", "examples", "percent"):
      kw.pop(f"{prefix}_{unit}", None)
    return steps

  # `timescale` and `shift` without a unit are in steps.
  lengths = {"rsqrt": (("timescale", 10_000), ("shift", 0)),
             "exponential": (("timescale", max(1, total_steps)),)}
  for key, default in lengths.get(decay_type, ()):
    default = config_lib.check(
        kw.pop(key, default), f"{where}.{key}", ranges.NotNegative)
    kw[key] = take(key, default, zero=key != "timescale")
  warmup, cooldown = take("warmup", 0), take("cooldown", 0)
  if scale_with_batchsize:
    mult = mult * batch_size / 256
  if warmup >= total_steps > 0:
    raise config_lib.ConfigError(
        f"The warm-up takes {warmup} of {total_steps} steps, so nothing of the "
        "run is left; it must be shorter. Train longer (config.total_steps or "
        "total_epochs), use smaller batches (config.input.batch_size), or warm "
        "up for less time.")
  decay = config_lib.call(
      _DECAYS[decay_type], kw, where, base=mult)

  def schedule(step):
    t = jnp.asarray(step, jnp.float32)
    progress = jnp.clip((t - warmup) / max(1, total_steps - warmup), 0.0, 1.0)
    value = decay(t, t - warmup, progress)
    if warmup:
      value *= jnp.minimum(1.0, t / warmup)
    if cooldown:
      value *= jnp.minimum(1.0, (total_steps - t) / cooldown)
    return value
  return schedule


def _cosine(base, end: ranges.NotNegative = 0.0):
  return lambda t, since_warmup, p: (
      end + (base - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * p)))


def _polynomial(
    base, power: ranges.Positive = 1.0, end: ranges.NotNegative = 0.0,
    linear_end: ranges.NotNegative | None = None):
  end = end if linear_end is None else linear_end
  return lambda t, since_warmup, p: end + (base - end) * (1.0 - p) ** power


def _rsqrt(base, timescale: ranges.Positive, shift: ranges.NotNegative):
  return lambda t, since_warmup, p: base / jnp.sqrt(
      1.0 + (jnp.maximum(since_warmup, 0.0) + shift) / timescale)


def _exponential(
    base, timescale: ranges.Positive, rate: ranges.Positive = 0.1):
  return lambda t, since_warmup, p: base * rate ** (
      jnp.maximum(since_warmup, 0.0) / timescale)


def _stair(
    base, steps: Sequence[ranges.CountOrZero] = (),
    mults: Sequence[ranges.NotNegative] = ()):
  if len(steps) != len(mults) or list(steps) != sorted(steps):
    raise config_lib.ConfigError(
        f"A stair needs ascending steps and as many mults; got {list(steps)} "
        f"and {list(mults)}.")
  edges = np.asarray(steps, np.float32)
  values = np.asarray([1.0, *mults], np.float32)
  return lambda t, since_warmup, p: base * jnp.asarray(values)[
      jnp.searchsorted(jnp.asarray(edges), t, side="right")]


_DECAYS = {"cosine": _cosine, "exponential": _exponential,
           "linear": _polynomial, "polynomial": _polynomial,
           "rsqrt": _rsqrt, "stair": _stair}
