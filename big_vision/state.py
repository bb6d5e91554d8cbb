"""Makes the state of a run and compiles the step that changes it.

The state is a dict that the task fills. The loop adds "step", an int32 that
counts finished updates. "frozen" is a separate argument of the step, which is
never donated, changed or saved.
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
  """The loss or a norm is NaN or infinite, so the state must not be saved."""


def _init(task: Task, info: Info, rng, given) -> State:
  """Returns the state before the first step; called only while tracing."""
  # A whole batch of zeros costs nothing: only parameters leave this function,
  # so the compiler removes everything that is computed from the batch.
  batch = {key: jnp.zeros(spec.shape, spec.dtype)
           for key, spec in info.batch_spec.items()}
  state = dict(task.init(rng, batch, given))
  for name in ("step", "frozen"):
    if name in state:
      raise ValueError(
          f"The task's init made {name!r}, an entry that the loop adds itself.")
  state["step"] = jnp.zeros((), jnp.int32)
  # A weakly typed leaf would become strongly typed in the first update, and the
  # changed type would compile the step a second time.
  return jax.tree.map(
      lambda x: jax.lax.convert_element_type(x, x.dtype), state)


def infer_shapes(task: Task, info: Info, rng) -> State:
  """Returns the state as jax.ShapeDtypeStruct, without computing anything."""
  return jax.eval_shape(functools.partial(_init, task, info), rng, {})


def with_shardings(shapes, shardings):
  """Adds shardings to a tree of jax.ShapeDtypeStruct, for restoring."""
  return jax.tree.map(
      lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
      shapes, shardings)


def make(task: Task, info: Info, rng, shapes, shardings) -> State:
  """Makes the state before the first step, with every array sharded.

  Args:
    task: Task of the run; its `load` runs first, its `init` makes the rest.
    info: Sizes of the run.
    rng: Key for the initial parameters.
    shapes: The state as jax.ShapeDtypeStruct.
    shardings: The state's shardings.
  """
  given = task.load(shapes)
  given = sharding.put(given, tree.select(shardings, given))
  init = jax.jit(functools.partial(_init, task, info), out_shardings=shardings)
  return init(rng, given)


def infer_frozen(frozen, strategy, mesh):
  """Infers the shardings of a task's frozen arrays, as for parameters.

  Rules may match nothing here, because they may be meant for other entries.

  Args:
    frozen: Tree of arrays, see `Task.frozen`.
    strategy: Pairs of a regex and a sharding strategy, see `sharding.infer`.
    mesh: Devices of the run.
  """
  matches = tree.first_match(
      [name for name, _ in tree.flatten_with_names(frozen)],
      [pattern for pattern, _ in strategy])
  return sharding.infer(
      frozen, [rule for i, rule in enumerate(strategy)
               if i in matches.values()], mesh)


def put_frozen(task: Task, strategy, mesh):
  """Puts the task's frozen arrays on the devices; see `infer_frozen`."""
  frozen = task.frozen()
  return sharding.put(frozen, infer_frozen(frozen, strategy, mesh))


def check_changed(old: Mapping, changed: Mapping):
  """Checks that an update keeps the structure, shapes and dtypes of the state.

  Args:
    old: The state.
    changed: Entries of the state that an update returned.

  Raises:
    ValueError: An entry is new, or a leaf was added, lost or has another type;
      the error names it.
  """
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

  Args:
    task: Task of the run.
    rng: Key that is folded with the number of each step.
    shardings: The state's shardings.
    mesh: Devices of the run.

  Returns:
    A function (state, frozen, batch, static) -> (state, measurements, ok). The
    state is donated; `static` is a tuple of (name, hashable). If the loss or
    the norm of the gradients is not finite, the state stays as it was, "step"
    included. `ok` is False then, and also if any other `l2_*` is not finite.
  """
  def step_fn(state, frozen, batch, static):
    rng_step = jax.random.fold_in(rng, state["step"])
    changed, measurements = task.update(
        {**state, "frozen": frozen}, batch, rng_step, **dict(static))
    check_changed(state, changed)
    finite = {name: jnp.isfinite(measurements[name])
              for name in checked_names(measurements)}
    # Only values known before the update decide whether it is applied. Norms of
    # the new state are known only once all of it is written; a decision that
    # waits for them would read and write it a second time.
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


def checked_names(measurements: Mapping) -> list[str]:
  """Returns the names of the measurements that must be finite.

  Args:
    measurements: {name: number[]} of an update.

  Raises:
    ValueError: "training_loss" is missing, or a measurement is not 0-d.
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
  """Raises NonFiniteError with the step and its measurements unless `ok`."""
  if bool(ok):
    return
  values = {name: float(measurements[name])
            for name in checked_names(measurements)}
  bad = {name: value for name, value in values.items()
         if not jnp.isfinite(value)}
  raise NonFiniteError(
      f"Step {step}: {', '.join(f'{k} is {v}' for k, v in bad.items())}. "
      f"This step is discarded; its values were {values}. Common remedies are "
      "a lower config.lr, config.grad_clip_norm=1.0, a longer warm-up, class "
      "numbers below config.num_classes and tokens within the vocabulary; "
      "config.max_rollbacks lets a run skip such data.")
