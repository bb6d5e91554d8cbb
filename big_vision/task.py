"""Task: the record of pure functions between the loop and a method.

The loop (`train.py`) knows no method; a method (a file with a `make_task`)
knows no loop. Everything they share is here. The shape is that of optax's
`GradientTransformation`: a named tuple of functions, changed by functions that
take one and return one (`with_ema`, `with_batch_fn`).
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Info:
  """What the loop knows before there is a task.

  Attributes:
    total_steps: steps of the whole run.
    batch_size: examples of a training batch, over all devices.
    data_size: examples of an epoch.
    batch_spec: {key: jax.ShapeDtypeStruct}, global shapes of a training batch.
    mesh: jax.sharding.Mesh of the run.
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
    static: What `Task.static` returns for each of its steps.
  """
  first_step: int
  static: dict[str, Any]


class Task(NamedTuple):
  """What a method states. All functions are pure unless marked "host".

  Attributes:
    init: (rng, batch, given) -> state. `batch` is a batch of zeros, `given` the
      partial state that `load` returned; only what it lacks is initialized. The
      state is a dict the loop never looks into, but for "step" (the loop adds
      it).
    update: (state, batch, rng, **static) -> (changed, measurements). `changed`
      has the entries of the state that changed, `measurements` 0-d arrays, one
      of them "training_loss". `rng` is already folded with the step. The state
      holds "step" (int32) and "frozen" too.
    predict_fns: {name: (state, batch, *, rng=None, **kw) -> anything};
      evaluators, tools and exports ask for them by name. `rng` is a jax key or
      None: functions that draw take their randomness from it alone and raise
      ValueError without it, all others ignore it.
    sched_fns: {name: (step) -> float}; only logged.
    load: host; (shapes) -> partial state, for the warm start of a fresh run.
      `shapes` is the state as jax.ShapeDtypeStruct.
    frozen: host; () -> pytree that is never changed and never saved: teachers,
      perceptual networks, cameras. Update and predict see `state["frozen"]`.
    static: host; (step) -> {name: hashable}: compile-time choices of a step.
    phases: host; (total_steps) -> sequence of `Phase`, in order, the first at
      step 0: the distinct values of `static`, so that planning, FLOP counts and
      MFU see every program of the run.
  """
  init: Callable[..., State]
  update: Callable[..., tuple[State, dict[str, Any]]]
  predict_fns: Mapping[str, Callable[..., Any]]
  sched_fns: Mapping[str, Callable[[Any], Any]] = {}
  load: Callable[[State], State] = lambda shapes: {}
  frozen: Callable[[], Any] = lambda: {}
  static: Callable[[int], dict[str, Any]] = lambda step: {}
  phases: Callable[[int], Sequence[Phase]] = lambda total_steps: (Phase(0, {}),)


def with_ema(task: Task, decay: float) -> Task:
  """Adds an exponential moving average of the parameters, `state["ema"]`.

  It starts at the initial (or loaded) parameters, so it needs no debiasing:
  `ema <- decay * ema + (1 - decay) * params` after every update. Every predict
  function `f` gets a twin `f_ema` that sees the average as "params".

  Args:
    task: any task whose state has "params".
    decay: in [0, 1).

  Raises:
    ValueError: `decay` is not in [0, 1).
  """
  if not 0 <= decay < 1:
    raise ValueError(f"The EMA's decay is {decay}; it must be in [0, 1).")

  def init(rng, batch, given):
    given = dict(given)
    ema = given.pop("ema", None)
    state = task.init(rng, batch, given)
    # A copy: both entries are donated, so they cannot share a buffer.
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
  """Changes the training batch on the device, as mixup does.

  Args:
    task: any task.
    batch_fn: (batch, rng) -> batch, pure; not applied in evaluation.
  """
  def update(state, batch, rng, **static):
    rng_batch, rng = jax.random.split(rng)
    return task.update(state, batch_fn(batch, rng_batch), rng, **static)
  return task._replace(update=update)


def accumulate(value_and_grad: Callable, steps: int) -> Callable:
  """Splits the batch into `steps` parts and averages values and gradients.

  Exact for losses that are means over the batch; memory for activations falls
  by `steps`. Parts take every `steps`-th example, so that each stays spread
  over all devices.

  Args:
    value_and_grad: (params, batch, rng) -> ((value, aux), grads); `aux` are
      arrays that may be averaged.
    steps: number of parts; 1 returns `value_and_grad` itself.

  Returns:
    A function of the same signature, the averages in float32 or wider.

  Raises:
    ValueError: while tracing, if the batch does not divide.
  """
  if steps == 1:
    return value_and_grad

  def accumulated(params, batch, rng):
    def split(x):
      b, *rest = x.shape
      if b % steps:
        raise ValueError(
            f"A batch of {b} does not split into grad_accum_steps={steps}; "
            f"the nearest that do are {b // steps * steps} and "
            f"{-(-b // steps) * steps}.")
      return x.reshape(b // steps, steps, *rest).swapaxes(0, 1)

    parts = jax.tree.map(split, batch)
    rngs = jax.random.split(rng, steps)
    shapes = jax.eval_shape(
        value_and_grad, params, jax.tree.map(lambda x: x[0], parts), rngs[0])
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)),
        shapes)

    def body(total, part):
      result = value_and_grad(params, *part)
      return jax.tree.map(jnp.add, total, result), None

    total, _ = jax.lax.scan(body, zeros, (parts, rngs))
    return jax.tree.map(
        lambda t, s: (t / steps).astype(s.dtype), total, shapes)

  return accumulated
