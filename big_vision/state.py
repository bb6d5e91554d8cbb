"""The state of a run: its shape, its making, its step.

The state is a dict that the task fills. The loop adds "step", an int32 that
counts finished updates. "frozen" is kept beside it: an argument of the step
that is never donated, changed or saved.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp

from big_vision import sharding
from big_vision import tree
from big_vision.task import Info, State, Task


class NonFiniteError(RuntimeError):
  """The loss or a norm is NaN or infinite; this state is not to be kept."""


def _init(task: Task, info: Info, rng, given) -> State:
  """The state before the first step, traced."""
  # Zeros of the whole batch cost nothing: only parameters leave this function,
  # so the compiler removes all that is computed from it.
  batch = {key: jnp.zeros(spec.shape, spec.dtype)
           for key, spec in info.batch_spec.items()}
  state = dict(task.init(rng, batch, given))
  for name in ("step", "frozen"):
    if name in state:
      raise ValueError(f"The task's init made {name!r}, which is the loop's.")
  state["step"] = jnp.zeros((), jnp.int32)
  # A weakly typed leaf becomes strong after one update, and a changed type
  # compiles the step a second time.
  return jax.tree.map(
      lambda x: jax.lax.convert_element_type(x, x.dtype), state)


def infer_shapes(task: Task, info: Info, rng) -> State:
  """The state as jax.ShapeDtypeStruct, without computing anything."""
  return jax.eval_shape(functools.partial(_init, task, info), rng, {})


def with_shardings(shapes, shardings):
  """ShapeDtypeStructs that know where they live, as restoring needs them."""
  return jax.tree.map(
      lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
      shapes, shardings)


def make(task: Task, info: Info, rng, shapes, shardings) -> State:
  """Loads what the task loads, initializes the rest, all in its shards."""
  given = task.load(shapes)
  given = sharding.put(given, tree.select(shardings, given))
  init = jax.jit(functools.partial(_init, task, info), out_shardings=shardings)
  return init(rng, given)


def infer_frozen(frozen, strategy, mesh):
  """The shardings of a task's frozen arrays: like those of parameters.

  Rules that only speak of the state's leaves are no mistake here.
  """
  matches = tree.first_match(
      [name for name, _ in tree.flatten_with_names(frozen)],
      [pattern for pattern, _ in strategy])
  return sharding.infer(
      frozen, [rule for i, rule in enumerate(strategy)
               if i in matches.values()], mesh)


def put_frozen(task: Task, strategy, mesh):
  """The task's frozen arrays on the devices."""
  frozen = task.frozen()
  return sharding.put(frozen, infer_frozen(frozen, strategy, mesh))


def check_changed(old: Mapping, changed: Mapping):
  """Raises ValueError, naming the leaf, if an update changes a type."""
  unknown = sorted(set(changed) - set(old))
  if unknown:
    raise ValueError(
        f"The update returned {unknown}, which init did not make; the state "
        f"has {sorted(old)}.")
  for entry, value in changed.items():
    was = dict(tree.flatten_with_names({entry: old[entry]}))
    now = dict(tree.flatten_with_names({entry: value}))
    if set(was) != set(now):
      raise ValueError(
          f"The update changed the structure of {entry!r}: it lost "
          f"{sorted(set(was) - set(now))} and got "
          f"{sorted(set(now) - set(was))}.")
    for name in was:
      old_type, new_type = jax.typeof(was[name]), jax.typeof(now[name])
      if (old_type.shape, old_type.dtype) != (new_type.shape, new_type.dtype):
        raise ValueError(
            f"The update changed {name} from {old_type.str_short()} to "
            f"{new_type.str_short()}.")


def make_update(task: Task, rng, shardings, mesh) -> Callable[..., Any]:
  """Compiles the task's update into the step of the loop.

  Returns:
    A function (state, frozen, batch, static) -> (state, measurements, ok). The
    state is donated; `static` is a tuple of (name, hashable). Where the loss or
    the norm of the gradients is not finite, the state is the old one, "step"
    included. `ok` is False then, and where any other `l2_*` is not finite.
  """
  def step_fn(state, frozen, batch, static):
    rng_step = jax.random.fold_in(rng, state["step"])
    changed, measurements = task.update(
        {**state, "frozen": frozen}, batch, rng_step, **dict(static))
    check_changed(state, changed)
    finite = {name: jnp.isfinite(measurements[name])
              for name in monitored(measurements)}
    # What is known before the update decides. Norms of the new state are known
    # when it is all written; deciding by them would read and write it again.
    apply = jnp.logical_and(
        finite["training_loss"], finite.get("l2_grads", True))
    changed["step"] = state["step"] + 1
    changed = jax.tree.map(
        lambda new, old: jnp.where(apply, new, old), changed,
        {name: state[name] for name in changed})
    ok = jnp.all(jnp.stack(list(finite.values())))
    return {**state, **changed}, measurements, ok

  replicated = sharding.replicated(mesh)
  return jax.jit(
      step_fn, static_argnums=3, donate_argnums=0,
      out_shardings=(shardings, replicated, replicated))


def monitored(measurements: Mapping) -> list[str]:
  """Names of the measurements that must be finite.

  Raises:
    ValueError: there is no "training_loss", or a measurement is not 0-d.
  """
  if "training_loss" not in measurements:
    raise ValueError(
        "An update must measure 'training_loss'; it measured "
        f"{sorted(measurements)}.")
  for name, value in measurements.items():
    if jnp.shape(value):
      raise ValueError(
          f"The measurement {name!r} has shape {jnp.shape(value)}; it must be "
          "a single number.")
  return ["training_loss"] + sorted(
      name for name in measurements if name.startswith("l2_"))


def check_finite(step: int, measurements: Mapping, ok):
  """Raises NonFiniteError, naming step and measurement, unless `ok`."""
  if bool(ok):
    return
  values = {name: float(measurements[name]) for name in monitored(measurements)}
  bad = {name: value for name, value in values.items()
         if not jnp.isfinite(value)}
  raise NonFiniteError(
      f"Step {step}: {', '.join(f'{k} is {v}' for k, v in bad.items())}. "
      f"Nothing of this step is kept; all of them: {values}. Common remedies "
      "are a lower config.lr, config.grad_clip_norm=1.0, a longer warm-up, "
      "class numbers below config.num_classes and tokens of the vocabulary; "
      "config.max_rollbacks lets a run go around such data.")
