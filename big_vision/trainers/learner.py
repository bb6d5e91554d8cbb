"""The gradient step that trainers share: optimizer, accumulation, norms, EMA.

A trainer defines its loss and leaves the rest of the step to a `Learner`:

  learner = learner_lib.make(config, params_spec, info)

  def init(rng, batch, given):
    ...
    return {"params": params, "opt": learner.init(params)}

  def update(state, batch, rng):
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    return learner.step(
        value_and_grad, state["params"], state["opt"], batch, rng)

  return learner.finish(Task(init=init, update=update, predict_fns=...))

A trainer with several networks gives each its own `Optimizer`, and calls
`learner.transform` and `optimizer.apply`, the two halves of `learner.step`.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from big_vision import config as config_lib
from big_vision import gradients
from big_vision import optim
from big_vision import ranges
from big_vision import task as task_lib
from big_vision.task import Info, Task


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """The optimizer of one tree of parameters.

  Attributes:
    tx: Transformation of gradients into updates.
    trainable: Tree of bools with the structure of the parameters; those with
      False never change.
    sched_fns: {name: step -> multiplier}, the schedules, for logging.
  """
  tx: optax.GradientTransformation
  trainable: Any
  sched_fns: Mapping[str, Callable[[Any], Any]]

  def init(self, params):
    """Returns the optimizer's state before its first step."""
    return self.tx.init(params)

  def apply(self, grads, params, opt) -> tuple[dict[str, Any], dict[str, Any]]:
    """Takes a step.

    Args:
      grads: Gradients of the loss; those of frozen parameters are ignored.
      params: Parameters before the step.
      opt: Optimizer's state before the step.

    Returns:
      changed: {"params", "opt"} after the step.
      measurements: {"l2_grads", "l2_params", "l2_updates"}: global norms of the
        trainable parameters' gradients, of all parameters after the step, and
        of their change.
    """
    grads = jax.tree.map(lambda grad, is_trainable: (
        grad if is_trainable else jnp.zeros_like(grad)), grads, self.trainable)
    updates, opt = self.tx.update(grads, opt, params)
    params = optax.apply_updates(params, updates)
    return {"params": params, "opt": opt}, {
        "l2_grads": optax.tree.norm(grads),
        "l2_params": optax.tree.norm(params),
        "l2_updates": optax.tree.norm(updates)}


@dataclasses.dataclass(frozen=True)
class Learner:
  """A config's gradient step.

  Attributes:
    optimizer: Optimizer of the task's "params".
    transform: Transformer of value_and_grad functions, see `gradients`.
    ema_decay: Decay of the parameters' moving average per step; None keeps no
      average.
  """
  optimizer: Optimizer
  transform: Callable[[gradients.ValueAndGrad], gradients.ValueAndGrad]
  ema_decay: float | None

  def init(self, params):
    """Returns the optimizer's state before the first step."""
    return self.optimizer.init(params)

  def step(self, value_and_grad: gradients.ValueAndGrad, params, opt, batch,
           rng) -> tuple[dict[str, Any], dict[str, Any]]:
    """Differentiates a loss and takes a step.

    Args:
      value_and_grad: (params, batch, rng) -> ((loss, aux), grads), where `aux`
        is (measurements, changed): values to log, {name: float[]}, and the
        entries of the state that the forward pass changed.
      params: Parameters before the step.
      opt: Optimizer's state before the step.
      batch: Training batch.
      rng: Key of this step.

    Returns:
      changed: {"params", "opt"} after the step, and the entries in `aux`.
      measurements: "training_loss", those in `aux`, and the norms of
        `Optimizer.apply`.
    """
    (loss, (measurements, changed)), grads = self.transform(value_and_grad)(
        params, batch, rng)
    stepped, norms = self.optimizer.apply(grads, params, opt)
    return ({**changed, **stepped},
            {"training_loss": loss, **measurements, **norms})

  def finish(self, task: Task) -> Task:
    """Adds the logged schedules and, if there is a decay, the average."""
    task = task._replace(
        sched_fns={**self.optimizer.sched_fns, **task.sched_fns})
    if self.ema_decay is None:
      return task
    return task_lib.with_ema(task, self.ema_decay)


def make(config: Mapping[str, Any], params_spec, info: Info, *,
         mean_over: str = "examples") -> Learner:
  """Makes the learner that a config describes.

  Args:
    config: Reads grad_accum_steps, ema_decay and the keys of `optim.make`.
    params_spec: Parameters as arrays or jax.ShapeDtypeStruct.
    info: Sizes of the run.
    mean_over: Unit that the loss averages over, see `gradients.from_config`.

  Raises:
    ConfigError: A value is invalid, or the loss does not allow accumulation.
  """
  return Learner(
      optimizer=make_optimizer(config, params_spec, info),
      transform=gradients.from_config(config, mean_over=mean_over),
      ema_decay=config_lib.get_checked(config, "ema_decay", ranges.Decay))


def make_optimizer(
    config: Mapping[str, Any], params_spec, info: Info) -> Optimizer:
  """Makes the optimizer that a config describes.

  Args:
    config: Reads the keys of `optim.make` and nothing else.
    params_spec: Parameters as arrays or jax.ShapeDtypeStruct.
    info: Sizes of the run.

  Raises:
    ConfigError: A value is invalid.
  """
  tx, sched_fns = optim.make(
      config, params_spec, total_steps=info.total_steps,
      batch_size=info.batch_size, data_size=info.data_size)
  return Optimizer(
      tx=tx, trainable=optim.trainable_mask(config, params_spec),
      sched_fns=sched_fns)
