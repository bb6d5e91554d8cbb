"""Supervised classification, the task of a config that names no trainer."""

import jax
import jax.numpy as jnp
import optax

from big_vision import config as config_lib
from big_vision import losses
from big_vision import mixing
from big_vision import optim
from big_vision import task as task_lib
from big_vision import tree
from big_vision.task import Info, Task


def make_task(config: config_lib.Config, info: Info) -> Task:
  """Supervised classification of images.

  The batch has "image", float32[b, h, w, c], and "labels", float32[b, k].
  The state has "params", "opt" and, with `config.ema_decay`, "ema". Nothing is
  frozen but what the config's `schedule` freezes.

  Args:
    config: reads model_name, model, num_classes, model_init, model_load, loss,
      init_head_bias, mixup, cutmix, grad_accum_steps, ema_decay and the keys of
      `optim.make`.
    info: what the loop knows.
  """
  models = config_lib.import_by_name(
      "big_vision.models", config.model_name, "model")
  model = config_lib.call(models.Model, config.get("model", {}),
                          "config.model", num_classes=config.num_classes)
  loss_fn = losses.get_loss(config.get("loss", "sigmoid_xent"))

  def init_params(rng, batch):
    params = model.init(rng, batch["image"])["params"]
    if (bias := config.get("init_head_bias")) is not None:
      params["head"]["bias"] = jnp.full_like(params["head"]["bias"], bias)
    return params

  batch_spec = dict(info.batch_spec)
  params_spec = jax.eval_shape(init_params, jax.random.key(0), batch_spec)
  tx, sched_fns = optim.make(
      config, params_spec, total_steps=info.total_steps,
      batch_size=info.batch_size, data_size=info.data_size)
  trains = optim.trainable_mask(config, params_spec)

  def init(rng, batch, given):
    params = tree.merge(init_params(rng, batch), given.get("params", {}))
    return {"params": params, "opt": tx.init(params)}

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

  def loss_and_accuracy(params, batch, rng):
    logits, _ = model.apply({"params": params}, batch["image"], train=True,
                            rngs={"dropout": rng})
    top1 = jnp.take_along_axis(
        batch["labels"], jnp.argmax(logits, axis=1)[:, None], axis=1)
    loss = loss_fn(logits=logits, labels=batch["labels"])
    return loss.mean(), {"training_prec@1": top1.mean()}

  value_and_grad = task_lib.accumulate(
      jax.value_and_grad(loss_and_accuracy, has_aux=True),
      config.get("grad_accum_steps", 1))

  def update(state, batch, rng):
    (loss, measurements), grads = value_and_grad(state["params"], batch, rng)
    updates, opt = tx.update(grads, state["opt"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    grads = jax.tree.map(lambda g, m: g if m else jnp.zeros_like(g),
                         grads, trains)
    return {"params": params, "opt": opt}, {
        "training_loss": loss, **measurements,
        "l2_grads": optax.tree.norm(grads),
        "l2_params": optax.tree.norm(params),
        "l2_updates": optax.tree.norm(updates)}

  def predict(state, batch):
    return model.apply({"params": state["params"]}, batch["image"])

  def loss(state, batch):
    logits, _ = predict(state, batch)
    return {"loss": loss_fn(logits=logits, labels=batch["labels"])}

  task = Task(init, update, {"predict": predict, "loss": loss},
              sched_fns=sched_fns, load=load)
  mix = mixing.make(config.get("mixup"), config.get("cutmix"))
  if mix is not None:
    task = task_lib.with_batch_fn(task, mix)
  if (decay := config.get("ema_decay")) is not None:
    task = task_lib.with_ema(task, decay)
  return task
