"""Makes the optimizer of a config: masks by regex, weight decay, schedules.

An update is (in the units of google-research/big_vision)

  params <- params - schedule(t) * (
      lr * lr_mult * tx(clip(g)) + wd * wd_mult * params)

so weight decay is not multiplied by lr: AdamW with decay w corresponds to
wd = w * lr.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import inspect
import operator
from typing import Any

import optax

from big_vision import config as config_lib
from big_vision import ranges
from big_vision import tree
from big_vision.optim import adafactor
from big_vision.optim import schedules

_OWN = {"big_vision.scale_by_adafactor": adafactor.scale_by_adafactor,
        "big_vision.momentum_hp": adafactor.momentum_hp,
        "big_vision.sgd": optax.identity}
_DECAYED = ((".*/kernel$", 1.0),)
# Arguments of optax's functions that keep a part of an old value.
_DECAYS = ("b1", "b2", "b3", "decay", "rho")


def make(
    config: Mapping[str, Any], params, *, total_steps: int, batch_size: int,
    data_size: int) -> tuple[optax.GradientTransformation, dict[str, Callable]]:
  """Makes the optimizer that a config describes.

  Gradients are, in this order: clipped by `grad_clip_norm`, the global norm of
  all trainable parameters (0 does not clip); transformed by `optax_name` with
  the arguments `optax`; multiplied by `lr` and by `lr_mults`; increased by `wd`
  times `wd_mults` times the parameter; multiplied by the schedule of the
  parameter's group and by -1. Regexes match whole names, and the first match
  counts. `wd_mults` defaults to 1 for ".*/kernel" and 0 for all others. A group
  whose schedule is None is frozen: its updates are exactly 0, without weight
  decay, it has no optimizer state, and its gradients do not count in the global
  norm.

  Args:
    config: Reads optax_name, optax, lr, lr_mults, wd, wd_mults, schedule,
      grad_clip_norm.
    params: Tree of arrays or jax.ShapeDtypeStruct.
    total_steps: Number of steps of the run.
    batch_size: Number of examples in a step, for durations.
    data_size: Number of examples in an epoch, for durations.

  Returns:
    tx: The transformation of gradients into updates.
    sched_fns: {name: step -> multiplier}. The names are "global_schedule", or
      "global_schedule0", ... if there are several.

  Raises:
    ConfigError: A name or an argument does not exist, a parameter has no
      schedule, or a regex is not the first match of any parameter.
  """
  names = [name for name, _ in tree.flatten_with_names(params)]
  groups = _schedule_groups(config)
  patterns = [pattern for pattern, _ in groups]
  matches = _match_all(names, patterns, "schedule")
  uncovered = [name for name in names if matches[name] is None]
  if uncovered:
    raise config_lib.ConfigError(
        f"config.schedule does not match {uncovered}; add ('.*', ...) at its "
        "end.")
  trained = trainable_mask(config, params)

  chain = []
  get = functools.partial(config_lib.get_checked, config)
  if clip := get("grad_clip_norm", ranges.NotNegative):
    chain.append(optax.masked(optax.clip_by_global_norm(clip), trained))
  chain.append(optax.masked(_make_core(config), trained))
  chain.append(optax.scale(config_lib.check(
      config["lr"], config_lib.key_path(config, "lr"), ranges.Positive)))
  lr_mults = get("lr_mults", Sequence[tuple[str, ranges.NotNegative]])
  for mask, mult in _masks(lr_mults, params, "lr_mults"):
    if not mult:
      raise config_lib.ConfigError(
          f"config.lr_mults has {mult}; it must be a number above 0. To freeze "
          "parameters, give them the schedule None.")
    chain.append(optax.masked(optax.scale(mult), mask))
  if decay := get("wd", ranges.NotNegative):
    mults = get("wd_mults", Sequence[tuple[str, ranges.NotNegative]])
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
    fn = schedules.create_schedule(
        total_steps=total_steps, batch_size=batch_size, data_size=data_size,
        where=config_lib.key_path(config, "schedule"), **schedule)
    chain.append(optax.masked(optax.scale_by_schedule(fn), mask))
    sched_fns[f"global_schedule{i}"] = fn
  if len(sched_fns) == 1:
    sched_fns = {"global_schedule": fn for fn in sched_fns.values()}
  chain.append(optax.scale(-1.0))
  return optax.chain(*chain), sched_fns


def trainable_mask(config: Mapping[str, Any], params):
  """Returns a tree of bools, False for parameters with the schedule None."""
  groups = _schedule_groups(config)
  matches = tree.first_match(
      [name for name, _ in tree.flatten_with_names(params)],
      [pattern for pattern, _ in groups])
  return tree.map_with_names(
      lambda name, _: matches[name] is None or (
          groups[matches[name]][1] is not None), params)


def _make_core(config) -> optax.GradientTransformation:
  """Makes the transformation `optax_name` with the arguments `optax`."""
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
          " It exists in optax, but as a complete optimizer it applies the "
          "learning rate and its sign. This chain applies them too, so "
          "together they would increase the loss.")
      raise config_lib.ConfigError(
          f"config.optax_name is {name!r}; it must be a `scale_by_*` of optax "
          f"or one of {sorted(_OWN)}"
          f"{config_lib.nearest(f'scale_by_{last}', known)}.{why}")
  options = config.get("optax", {})
  where = config_lib.key_path(config, "optax")
  if name not in _OWN:
    _check_optax(fn, options, where)
  return config_lib.call(fn, options, where)


def _check_optax(fn: Callable, options: Mapping[str, Any], where: str):
  """Checks numbers for a function of optax, whose annotations are wider.

  Raises:
    ConfigError: A decay is not in [0, 1), or another number is negative.
  """
  for name, parameter in inspect.signature(fn).parameters.items():
    default = parameter.default
    is_number = isinstance(default, (int, float)) and (
        not isinstance(default, bool))
    if name in options and (is_number or name in _DECAYS):
      config_lib.check(
          options[name], f"{where}.{name}",
          ranges.Decay if name in _DECAYS else ranges.NotNegative)


def _schedule_groups(config) -> list[tuple[str, Any]]:
  """Returns the config's pairs of a regex and a schedule or None."""
  schedule = config.get("schedule", {})
  if isinstance(schedule, Mapping):
    return [(".*", schedule)]
  return [(pattern, value) for pattern, value in schedule]


def _match_all(names, patterns, where) -> dict[str, int | None]:
  """Returns first matches; raises ConfigError for patterns without any."""
  matches = tree.first_match(names, patterns)
  for i, pattern in enumerate(patterns):
    if i not in matches.values():
      raise config_lib.ConfigError(
          f"config.{where}: {pattern!r} is not the first match of any "
          f"parameter. Parameters are named like {names[:3]}.")
  return matches


def _masks(mults, params, where, strict=True) -> list[tuple[Any, float]]:
  """Returns a (mask, multiplier) for each (regex, multiplier)."""
  mults = list(mults or ())
  names = [name for name, _ in tree.flatten_with_names(params)]
  patterns = [pattern for pattern, _ in mults]
  matches = (_match_all if strict else
             lambda n, p, _: tree.first_match(n, p))(names, patterns, where)
  return [(tree.map_with_names(lambda name, _, i=i: matches[name] == i, params),
           mult) for i, (_, mult) in enumerate(mults)]
