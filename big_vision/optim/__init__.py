"""Optimizers from configs: the chain, schedules, masks by regex.

An update is (big_vision's units, see `make`)

  params <- params - schedule(t) * (
      lr * lr_mult * tx(clip(g)) + wd * wd_mult * params)

so weight decay is not multiplied by lr: AdamW with decay w corresponds to
wd = w * lr.
"""

from collections.abc import Callable, Mapping
import operator
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from big_vision import config as config_lib
from big_vision import durations
from big_vision import tree

_DECAYED = ((".*/kernel$", 1.0),)


def make(
    config: Mapping[str, Any], params, *, total_steps: int, batch_size: int,
    data_size: int) -> tuple[optax.GradientTransformation, dict[str, Callable]]:
  """The optimizer that a config describes.

  In order: `grad_clip_norm` (global norm over what is trained); `optax_name`
  with the arguments `optax`; times `lr`; times `lr_mults`; plus `wd` times
  `wd_mults` times the parameter; times the schedule of the parameter's group;
  times -1. Regexes match whole names, the first match wins. `wd_mults` default
  to 1 for ".*/kernel" and 0 for the rest. A group whose schedule is None is
  frozen: its update is exactly 0, decay included, it has no optimizer state and
  no part in the clip norm.

  Args:
    config: reads optax_name, optax, lr, lr_mults, wd, wd_mults, schedule,
      grad_clip_norm.
    params: a tree of arrays or jax.ShapeDtypeStruct.
    total_steps, batch_size, data_size: of the run, for durations.

  Returns:
    (tx, {name: step -> multiplier}). The names are "global_schedule", or
    "global_schedule0", ... if there are several.

  Raises:
    ConfigError: an unknown name or argument, a parameter without a schedule, a
      regex that is the first match of nothing.
  """
  names = [name for name, _ in tree.flatten_with_names(params)]
  groups = _schedule_groups(config)
  patterns = [pattern for pattern, _ in groups]
  matches = _match_all(names, patterns, "schedule")
  uncovered = [name for name in names if matches[name] is None]
  if uncovered:
    raise config_lib.ConfigError(
        f"config.schedule covers no {uncovered}; add ('.*', ...) at its end.")
  trained = trainable_mask(config, params)

  chain = []
  if (clip := config.get("grad_clip_norm")) is not None:
    chain.append(optax.masked(optax.clip_by_global_norm(clip), trained))
  chain.append(optax.masked(_make_core(config), trained))
  chain.append(optax.scale(config["lr"]))
  for mask, mult in _masks(config.get("lr_mults"), params, "lr_mults"):
    if mult <= 0:
      raise config_lib.ConfigError(
          f"config.lr_mults has {mult}; to freeze parameters, give them the "
          "schedule None.")
    chain.append(optax.masked(optax.scale(mult), mask))
  if (decay := config.get("wd")):
    mults = config.get("wd_mults")
    strict = mults is not None
    for mask, mult in _masks(mults if strict else _DECAYED, params, "wd_mults",
                             strict=strict):
      chain.append(optax.add_decayed_weights(decay * mult, mask))

  sched_fns = {}
  for i, (_, schedule) in enumerate(groups):
    mask = tree.map_with_names(lambda name, _: matches[name] == i, params)
    if schedule is None:
      chain.append(optax.masked(optax.set_to_zero(), mask))
      continue
    fn = create_schedule(
        total_steps=total_steps, batch_size=batch_size, data_size=data_size,
        **schedule)
    chain.append(optax.masked(optax.scale_by_schedule(fn), mask))
    sched_fns[f"global_schedule{i}"] = fn
  if len(sched_fns) == 1:
    sched_fns = {"global_schedule": fn for fn in sched_fns.values()}
  chain.append(optax.scale(-1.0))
  return optax.chain(*chain), sched_fns


def trainable_mask(config: Mapping[str, Any], params):
  """A tree of bools: whether the parameter's schedule is not None."""
  groups = _schedule_groups(config)
  matches = tree.first_match(
      [name for name, _ in tree.flatten_with_names(params)],
      [pattern for pattern, _ in groups])
  return tree.map_with_names(
      lambda name, _: matches[name] is None or (
          groups[matches[name]][1] is not None), params)


def create_schedule(
    *, total_steps: int, batch_size: int | None = None,
    data_size: int | None = None, decay_type: str = "stair", mult: float = 1.0,
    scale_with_batchsize: bool = False, **kw) -> Callable[[Any], Any]:
  """A function from the step (0 is the first update's) to a multiplier.

  With warm-up w and p = clip((t - w) / (T - w), 0, 1), b = `mult`:

    cosine      end + (b - end) * (1 + cos(pi p)) / 2; keys: end=0
    linear, polynomial
                end + (b - end) * (1 - p) ** power; keys: power=1, end=0
                (`linear_end` is an alias of end)
    rsqrt       b / sqrt(1 + (t + shift - w) / timescale) after the warm-up;
                keys: timescale=10_000, shift=0, in any duration unit
    exponential b * rate ** ((t - w) / timescale) after the warm-up; keys:
                rate=0.1, timescale in any duration unit (default: all steps)
    stair       b * mults[number of `steps` that are <= t]; keys: steps, mults

  all times min(1, t / w) and min(1, (T - t) / cooldown). `end` is relative to
  1, as the reference has it: the learning rate ends at lr * end.

  Args:
    total_steps: T.
    batch_size, data_size: for durations in examples and epochs.
    decay_type: see above.
    mult: b.
    scale_with_batchsize: multiplies b by batch_size / 256.
    **kw: `{warmup,cooldown}_{steps,epochs,examples,percent}` and the keys
      above.

  Raises:
    ConfigError: an unknown type or key.
  """
  if decay_type not in _DECAYS:
    raise config_lib.ConfigError(
        f"Unknown decay_type {decay_type!r}"
        f"{config_lib.nearest(decay_type, _DECAYS)}; use one of "
        f"{sorted(_DECAYS)}.")
  measures = dict(batch_size=batch_size, data_size=data_size,
                  total_steps=total_steps)

  def take(prefix, default):
    steps = durations.get_steps(prefix, kw, default=default, **measures)
    for unit in ("steps", "epochs", "examples", "percent"):
      kw.pop(f"{prefix}_{unit}", None)
    return steps

  # Bare `timescale` and `shift` are steps.
  lengths = {"rsqrt": (("timescale", 10_000), ("shift", 0)),
             "exponential": (("timescale", max(1, total_steps)),)}
  for key, default in lengths.get(decay_type, ()):
    kw[key] = take(key, kw.pop(key, default))
  warmup, cooldown = take("warmup", 0), take("cooldown", 0)
  if scale_with_batchsize:
    mult = mult * batch_size / 256
  if warmup >= total_steps > 0:
    raise config_lib.ConfigError(
        f"The warm-up takes {warmup} of {total_steps} steps: nothing is left.")
  decay = config_lib.call(
      _DECAYS[decay_type], kw, f"schedule of type {decay_type!r}", base=mult)

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


def _cosine(base, end=0.0):
  return lambda t, since_warmup, p: (
      end + (base - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * p)))


def _polynomial(base, power=1.0, end=0.0, linear_end=None):
  end = end if linear_end is None else linear_end
  return lambda t, since_warmup, p: end + (base - end) * (1.0 - p) ** power


def _rsqrt(base, timescale, shift):
  return lambda t, since_warmup, p: base / jnp.sqrt(
      1.0 + (jnp.maximum(since_warmup, 0.0) + shift) / timescale)


def _exponential(base, timescale, rate=0.1):
  return lambda t, since_warmup, p: base * rate ** (
      jnp.maximum(since_warmup, 0.0) / timescale)


def _stair(base, steps=(), mults=()):
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


def scale_by_adafactor(
    min_dim_size_to_factor: int = 32, decay_rate: float = 0.8,
    decay_offset: int = 0, beta2_cap: float = 0.999,
    clipping_threshold: float | None = None, momentum: float | None = 0.9,
    dtype_momentum: str = "bfloat16", eps: float = 1e-30
) -> optax.GradientTransformation:
  """Adafactor as used to scale ViTs: no parameter scaling, capped beta2.

  The second moment of matrices is factored into rows and columns; its decay is
  min(beta2_cap, 1 - (t + 1) ** -decay_rate).

  Source: arXiv:2106.04560, section 3.4, after arXiv:1804.04235.
  """
  def beta2(step, rate):
    return jnp.minimum(
        beta2_cap, 1.0 - (jnp.asarray(step, jnp.float32) + 1.0) ** -rate)
  chain = [optax.scale_by_factored_rms(
      factored=True, decay_rate=decay_rate, step_offset=decay_offset,
      min_dim_size_to_factor=min_dim_size_to_factor, epsilon=eps,
      decay_rate_fn=beta2)]
  if clipping_threshold:
    chain.append(optax.clip_by_block_rms(clipping_threshold))
  if momentum:
    chain.append(optax.ema(momentum, debias=False,
                           accumulator_dtype=dtype_momentum))
  return optax.chain(*chain)


def momentum_hp(
    momentum: float = 0.9, dtype: str = "bfloat16", nesterov: bool = False
) -> optax.GradientTransformation:
  """Heavy-ball momentum, accumulated at half precision by default."""
  return optax.trace(decay=momentum, accumulator_dtype=dtype, nesterov=nesterov)


_OWN = {"big_vision.scale_by_adafactor": scale_by_adafactor,
        "big_vision.momentum_hp": momentum_hp,
        "big_vision.sgd": optax.identity}


def _make_core(config) -> optax.GradientTransformation:
  """The transformation `optax_name`, with the arguments `optax`."""
  name = config["optax_name"]
  known = list(_OWN) + [n for n in dir(optax) if n.startswith("scale_by_")]
  if name in _OWN:
    fn = _OWN[name]
  else:
    bare = name.removeprefix("optax.")
    try:
      fn = operator.attrgetter(bare)(optax)
    except AttributeError:
      fn = None
    last = bare.rsplit(".", 1)[-1]
    if fn is None or not (last.startswith("scale_by_") or last in (
        "identity", "trace", "ema")):
      why = "" if fn is None else (
          " It exists in optax, but a full optimizer also applies the learning "
          "rate and its sign, which the chain here does too: it would climb.")
      raise config_lib.ConfigError(
          f"config.optax_name is {name!r}; it must be a `scale_by_*` of optax "
          f"or one of {sorted(_OWN)}"
          f"{config_lib.nearest(f'scale_by_{last}', known)}.{why}")
  return config_lib.call(fn, config.get("optax", {}), "config.optax")


def _schedule_groups(config) -> list[tuple[str, Any]]:
  """(regex, schedule or None) pairs of the config."""
  schedule = config.get("schedule", {})
  if isinstance(schedule, Mapping):
    return [(".*", schedule)]
  return [(pattern, value) for pattern, value in schedule]


def _match_all(names, patterns, where) -> dict[str, int | None]:
  """First matches; a pattern that is nobody's first match is an error."""
  matches = tree.first_match(names, patterns)
  for i, pattern in enumerate(patterns):
    if i not in matches.values():
      raise config_lib.ConfigError(
          f"config.{where}: {pattern!r} is the first match of no parameter; "
          f"they are named like {names[:3]}.")
  return matches


def _masks(mults, params, where, strict=True) -> list[tuple[Any, float]]:
  """(mask, multiplier) for every regex of a (regex, multiplier) list."""
  mults = list(mults or ())
  names = [name for name, _ in tree.flatten_with_names(params)]
  patterns = [pattern for pattern, _ in mults]
  matches = (_match_all if strict else
             lambda n, p, _: tree.first_match(n, p))(names, patterns, where)
  return [(tree.map_with_names(lambda name, _, i=i: matches[name] == i, params),
           mult) for i, (_, mult) in enumerate(mults)]
