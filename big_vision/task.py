"""Task: a record of pure functions that connects a method with the loop.

The loop (`train.py`) knows no method, and a method (a module with `make_task`)
does not know the loop. Everything they share is here. Like optax's
`GradientTransformation`, a task is a named tuple of functions, and functions
that take a task and return another one (`with_ema`, `with_batch_fn`) extend it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Info:
  """The sizes of a run, known before its task is made.

  Attributes:
    total_steps: Number of steps of the whole run.
    batch_size: Number of examples in a training batch, over all devices.
    data_size: Number of examples in an epoch.
    batch_spec: {key: jax.ShapeDtypeStruct}, global shapes of a training batch.
    mesh: Devices of the run.
  """
  total_steps: int
  batch_size: int
  data_size: int
  batch_spec: Mapping[str, jax.ShapeDtypeStruct]
  mesh: jax.sharding.Mesh


class Phase(NamedTuple):
  """A part of a run in which every step is compiled with the same choices.

  Attributes:
    first_step: Number of updates done before the phase begins.
    static: Value of `Task.static` at each of the phase's steps.
  """
  first_step: int
  static: dict[str, Any]


def phases_at(
    steps: Iterable[int], static: Callable[[int], dict[str, Any]],
    total_steps: int) -> tuple[Phase, ...]:
  """Returns the phases of a run whose choices change at known steps.

  Args:
    steps: Numbers of updates after which `static` may change, in any order.
      Those outside (0, total_steps) are ignored.
    static: `Task.static`.
    total_steps: Number of steps of the run.
  """
  starts = {0, *(step for step in steps if 0 < step < total_steps)}
  return tuple(Phase(first_step=step, static=static(step))
               for step in sorted(starts))


class Task(NamedTuple):
  """A method, as functions. They are pure, except those marked "host".

  Attributes:
    init: (rng, batch, given) -> state. `batch` is a batch of zeros and `given`
      the partial state that `load` returned; `init` makes the rest. The state
      is a dict whose entries only the method reads, except "step", which the
      loop adds.
    update: (state, batch, rng, **static) -> (changed, measurements). `changed`
      has the entries of the state that changed. `measurements` are 0-d arrays,
      one of them "training_loss". `rng` is already folded with the step. The
      state also has "step", int32[], and "frozen".
    predict_fns: {name: (state, batch, *, rng=None, **kw) -> anything};
      evaluators, tools and exports ask for them by name. `rng` is a jax key or
      None: functions that draw random numbers use no other key and raise
      ValueError if it is None; all others ignore it.
    sched_fns: {name: (step) -> float}, for logging only.
    load: Host; (shapes) -> partial state, the warm start of a new run. `shapes`
      is the state as jax.ShapeDtypeStruct.
    frozen: Host; () -> tree of arrays that never change and are never saved,
      such as teachers, perceptual networks and cameras. `update` and predict
      functions find it as `state["frozen"]`.
    static: Host; (step) -> {name: hashable}, the compile-time choices of the
      update that follows the first `step` updates. Each distinct value is
      compiled once.
    phases: Host; (total_steps) -> sequence of `Phase` in ascending order, the
      first at step 0, and a new one wherever `static` changes. Planning, FLOP
      counts and MFU learn from it which programs a run has; see `phases_at`.
  """
  init: Callable[..., State]
  update: Callable[..., tuple[State, dict[str, Any]]]
  predict_fns: Mapping[str, Callable[..., Any]]
  sched_fns: Mapping[str, Callable[[Any], Any]] = {}
  load: Callable[[State], State] = lambda shapes: {}
  frozen: Callable[[], Any] = lambda: {}
  static: Callable[[int], dict[str, Any]] = lambda step: {}
  phases: Callable[[int], Sequence[Phase]] = lambda total_steps: (
      Phase(first_step=0, static={}),)


def with_ema(task: Task, decay: float) -> Task:
  """Adds an exponential moving average of the parameters, `state["ema"]`.

  After every update, `ema <- decay * ema + (1 - decay) * params`. The average
  starts at the initial or loaded parameters, so it is not biased towards zero.
  Every predict function `f` gets a twin `f_ema` that sees the average as
  "params".

  Args:
    task: Any task whose state has "params".
    decay: Weight of the old average, in [0, 1).

  Raises:
    ValueError: `decay` is not in [0, 1).
  """
  if not 0 <= decay < 1:
    raise ValueError(f"The EMA's decay is {decay}; it must be in [0, 1).")

  def init(rng, batch, given):
    given = dict(given)
    ema = given.pop("ema", None)
    state = task.init(rng, batch, given)
    # Copy the parameters: both entries are donated, so they must not share
    # buffers.
    state["ema"] = (
        jax.tree.map(jnp.copy, state["params"]) if ema is None else ema)
    return state

  def update(state, batch, rng, **static):
    changed, measurements = task.update(state, batch, rng, **static)
    changed["ema"] = jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new.astype(old.dtype),
        state["ema"], changed["params"])
    return changed, measurements

  def on_ema(predict_fn):
    def predict(state, batch, *, rng=None, **kw):
      return predict_fn(
          {**state, "params": state["ema"]}, batch, rng=rng, **kw)
    return predict

  twins = {f"{name}_ema": on_ema(fn) for name, fn in task.predict_fns.items()}
  return task._replace(
      init=init, update=update, predict_fns={**task.predict_fns, **twins})


def with_batch_fn(
    task: Task, batch_fn: Callable[[Mapping, jax.Array], Mapping]) -> Task:
  """Applies a function to every training batch on the device, as mixup does.

  Args:
    task: Any task.
    batch_fn: (batch, rng) -> batch, pure; evaluation does not use it.
  """
  def update(state, batch, rng, **static):
    rng_batch, rng = jax.random.split(rng)
    return task.update(state, batch_fn(batch, rng_batch), rng, **static)
  return task._replace(update=update)
