"""Supervised classification, the task of a config that names no trainer."""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from big_vision import config as config_lib
from big_vision import durations
from big_vision import losses
from big_vision import mixing
from big_vision import modules
from big_vision import optim
from big_vision import task as task_lib
from big_vision import tree
from big_vision.layers import attention
from big_vision.layers import common
from big_vision.task import Info, Task


def make_task(config: config_lib.Config, info: Info) -> Task:
  """Supervised classification of images, of texts, or of each of their tokens.

  The batch has what the model reads, by default "image", float32[b, h, w, c],
  and "labels", float32[b, k] or, where each has one class, int[b]. A model that
  answers for every token, logits [b, n, k], wants labels [b, n, k] or int[b, n]
  and "mask", number[b, n], of which tokens count; an example's loss and
  accuracy are the means over those.

  The state has "params", "opt" and, with `config.ema_decay`, "ema"; beside them
  the model's other collections, under their names: what a forward pass changes
  ("batch_stats") and the random "features" of attention, which are drawn anew
  every `config.redraw_steps`, or never. Nothing is frozen but what the config's
  `schedule` freezes.

  A model may give losses of its own, `out["losses"]`, and measurements,
  `out["measurements"]`, both {name: float32[], the mean over the batch}. The
  config weights each of the losses, `aux_losses = {name: weight}`, and what is
  minimized, and logged as training_loss, is `loss` plus weight times value.
  All of them are logged as training_<name>, without their weights. Evaluators
  of "loss" see `loss` alone.

  Args:
    config: reads model_name, model, num_classes, model_inputs (keys of the
      batch, in the order of the model's arguments; by default ("image",)),
      model_init, model_load, loss, aux_losses, init_head_bias, mixup, cutmix,
      grad_accum_steps, ema_decay, redraw_{steps,examples,epochs,percent} and
      the keys of `optim.make`.
    info: what the loop knows.

  Raises:
    ConfigError: what the config names does not exist, or the batch does not
      have it in the form above; some of it when the step is traced.
  """
  models = modules.find("model", config.model_name)
  model = config_lib.call(models.Model, config.get("model", {}),
                          "config.model", num_classes=config.num_classes)
  loss_fn = losses.get_loss(config.get("loss", "sigmoid_xent"))
  aux_weights = dict(config.get("aux_losses", {}))
  input_keys = tuple(config.get("model_inputs", ("image",)))

  def read(batch):
    """What the model is called with."""
    if missing := [key for key in input_keys if key not in batch]:
      raise config_lib.ConfigError(
          f"config.model_inputs has {missing}, which the batch has not; it has "
          f"{sorted(batch)}. Does the preprocessing keep them?")
    return [batch[key] for key in input_keys]

  def init_variables(rng, batch):
    variables = dict(model.init(rng, *read(batch)))
    if (bias := config.get("init_head_bias")) is not None:
      head = variables["params"]["head"]
      head["bias"] = jnp.full_like(head["bias"], bias)
    return variables

  batch_spec = dict(info.batch_spec)
  # The key is made in the trace: a mesh that is only planned computes nothing.
  variables_spec = jax.eval_shape(
      lambda batch: init_variables(jax.random.key(0), batch), batch_spec)
  params_spec = variables_spec.pop("params")
  tx, sched_fns = optim.make(
      config, params_spec, total_steps=info.total_steps,
      batch_size=info.batch_size, data_size=info.data_size)
  trains = optim.trainable_mask(config, params_spec)

  collections = tuple(variables_spec)
  # A forward pass reads random features; what else there is, it may change.
  mutable = [name for name in collections if name != attention.FEATURES]
  redraw_steps = durations.get_steps(
      "redraw", config, batch_size=info.batch_size, data_size=info.data_size,
      total_steps=info.total_steps)
  if redraw_steps and attention.FEATURES not in collections:
    raise config_lib.ConfigError(
        f"config.redraw_steps is {redraw_steps}, but {config.model_name!r} as "
        "configured has no random features; an attention 'favor' has.")

  def init(rng, batch, given):
    state = tree.merge(init_variables(rng, batch), given)
    return {**state, "opt": tx.init(state["params"])}

  source = config.get("model_init")
  load_options = dict(config.get("model_load", {}))

  def load(shapes):
    if source is None:
      return {}
    params = config_lib.call(
        models.load, load_options, "config.model_load",
        init_params=shapes["params"], init_file=source,
        model_cfg=config.get("model", {}))
    return {"params": tree.keep(
        params, lambda leaf: not isinstance(leaf, jax.ShapeDtypeStruct))}

  def score(logits, batch):
    """Loss and accuracy, float32[b] each."""
    labels = dense_labels(batch["labels"], logits.shape)
    top1 = jnp.take_along_axis(
        labels, jnp.argmax(logits, axis=-1, keepdims=True), axis=-1)[..., 0]
    loss = loss_fn(logits=logits, labels=labels)
    if loss.ndim == 1:
      return loss, top1
    if "mask" not in batch:
      raise config_lib.ConfigError(
          f"The model answers for every token, logits {list(logits.shape)}; "
          "which of them count is to be in the batch as \"mask\", "
          f"{list(loss.shape)}. It has {sorted(batch)}: keep it in config.input"
          ".pp.")
    counts = common.check_mask(batch["mask"], loss.shape)
    return tuple(common.mean_of_tokens(x, counts) for x in (loss, top1))

  def loss_and_changes(params, batch, rng, others):
    (logits, out), changed = model.apply(
        {"params": params, **others}, *read(batch), train=True,
        rngs={"dropout": rng}, mutable=mutable)
    loss, top1 = score(logits, batch)
    aux_loss, measurements = weigh_auxiliary(out, aux_weights)
    return loss.mean() + aux_loss, (
        {**measurements, "training_prec@1": top1.mean()}, changed)

  grad_accum_steps = config.get("grad_accum_steps", 1)

  def update(state, batch, rng):
    others = {name: state[name] for name in collections}
    if redraw_steps:
      others[attention.FEATURES] = attention.redraw(
          others[attention.FEATURES], rng, state["step"], redraw_steps)
    value_and_grad = task_lib.accumulate(
        jax.value_and_grad(
            functools.partial(loss_and_changes, others=others), has_aux=True),
        grad_accum_steps)
    (loss, (measurements, changed)), grads = value_and_grad(
        state["params"], batch, rng)
    updates, opt = tx.update(grads, state["opt"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    grads = jax.tree.map(lambda g, m: g if m else jnp.zeros_like(g),
                         grads, trains)
    return {**others, **changed, "params": params, "opt": opt}, {
        "training_loss": loss, **measurements,
        "l2_grads": optax.tree.norm(grads),
        "l2_params": optax.tree.norm(params),
        "l2_updates": optax.tree.norm(updates)}

  def predict(state, batch, *, rng=None):
    del rng  # Deterministic.
    variables = {name: state[name] for name in ("params", *collections)}
    return model.apply(variables, *read(batch))

  def loss(state, batch, *, rng=None):
    del rng  # Deterministic.
    logits, _ = predict(state, batch)
    return {"loss": score(logits, batch)[0]}

  task = Task(init, update, {"predict": predict, "loss": loss},
              sched_fns=sched_fns, load=load)
  mix = mixing.make(config.get("mixup"), config.get("cutmix"))
  if mix is not None:
    task = task_lib.with_batch_fn(task, mix)
  if (decay := config.get("ema_decay")) is not None:
    task = task_lib.with_ema(task, decay)
  return task


def dense_labels(labels, shape):
  """Labels as a loss takes them: of the logits' shape, [..., k].

  Args:
    labels: number[..., k], or int[...], the class of each. A negative one is
      all zeros; k and above are NaN, as there is no such class: the run stops.
    shape: of the logits.

  Raises:
    ConfigError: they are neither.
  """
  if labels.shape == shape:
    return labels
  if labels.shape == shape[:-1] and jnp.issubdtype(labels.dtype, jnp.integer):
    return jnp.where(labels[..., None] < shape[-1],
                     jax.nn.one_hot(labels, shape[-1]), jnp.nan)
  raise config_lib.ConfigError(
      f"The labels are {labels.dtype}{list(labels.shape)} and the model's "
      f"logits {list(shape)}; labels must be {list(shape)}, or integers "
      f"{list(shape[:-1])}.")


def weigh_auxiliary(
    out: Mapping[str, Any],
    weights: Mapping[str, float]) -> tuple[Any, dict[str, Any]]:
  """What a model's own losses add to the loss, and what to log of them.

  Args:
    out: of a model; its "losses" and "measurements", if there are any, are
      {name: number[]}.
    weights: of every loss, by name. The model's losses are known when it is
      traced, not before, and so are the errors here.

  Returns:
    loss: float32[], the sum of weight times value; a weight of 0 leaves the
      value out altogether, whatever it is.
    measurements: {"training_<name>": float32[]} of losses and measurements.

  Raises:
    ConfigError: a weight without a loss, or a loss without a weight.
    ValueError: a value that is not a single number, a name that is taken.
  """
  given = out.get("losses", {})
  for name in weights:
    if name not in given:
      raise config_lib.ConfigError(
          f"config.aux_losses weights {name!r}, which the model as configured "
          f"does not give{config_lib.nearest(name, given)}. It gives "
          f"{sorted(given)}.")
  if missing := sorted(set(given) - set(weights)):
    raise config_lib.ConfigError(
        f"The model gives the losses {missing}, which config.aux_losses does "
        f"not weight; it has {sorted(weights)}. A weight of 0 leaves one out.")
  logged = {}
  for name, value in [*given.items(), *out.get("measurements", {}).items()]:
    if jnp.shape(value):
      raise ValueError(
          f"The model's {name!r} must be a single number, the mean over the "
          f"batch; it has shape {jnp.shape(value)}.")
    if name in ("loss", "prec@1") or f"training_{name}" in logged:
      raise ValueError(
          f"The model's {name!r} would be logged as 'training_{name}', where "
          "there is something else; give it another name.")
    logged[f"training_{name}"] = jnp.asarray(value, jnp.float32)
  loss = sum((weight * logged[f"training_{name}"]
              for name, weight in weights.items() if weight), jnp.float32(0))
  return loss, logged
