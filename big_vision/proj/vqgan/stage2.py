"""VQGAN, stage 2: a transformer over the codes of a finished stage 1.

Source: arXiv:2012.09841, Section 3.2.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from big_vision import config as config_lib
from big_vision import optim
from big_vision import task as task_lib
from big_vision.proj.vqgan import gpt
from big_vision.proj.vqgan import stage1
from big_vision.task import Info, Task


def make_task(config: config_lib.Config, info: Info) -> Task:
  """Learns the distribution of codes, for each class or of all images.

  The batch has "image", float32[b, h, w, c] in [-1, 1], and, where
  `config.model.num_classes` is set, "label", int[b]. The state has "params",
  "opt" and, with `config.ema_decay`, "ema". Frozen is the autoencoder, whose
  newest parameters are read from `config.stage1`; codes are found within the
  step, by the autoencoder as it is in evaluation.

  Args:
    config: reads stage1 (a workdir), model, pkeep, grad_accum_steps, ema_decay
      and the keys of `optim.make`. With pkeep < 1, in training that share of
      the codes the transformer sees is kept, and others are drawn uniformly.
    info: what the loop knows.
  """
  image_spec = info.batch_spec["image"]
  autoencoder, variables = stage1.load(
      config.stage1, image_spec.shape[-1], "config.stage1")
  window = tuple(
      size // autoencoder.factor for size in image_spec.shape[1:3])
  model = config_lib.call(
      gpt.Model, config.get("model", {}), "config.model",
      num_codes=autoencoder.num_codes, num_places=int(np.prod(window)))
  if model.num_classes and "label" not in info.batch_spec:
    raise config_lib.ConfigError(
        f"config.model.num_classes is {model.num_classes}, but the batch has "
        f"no 'label'; it has {sorted(info.batch_spec)}.")
  pkeep = config.get("pkeep", 1.0)
  if not 0 <= pkeep <= 1:
    raise config_lib.ConfigError(f"config.pkeep is {pkeep}, not in [0, 1].")

  def init_params(rng, batch_size):
    codes = jnp.zeros((batch_size, model.num_places), jnp.int32)
    return model.init(rng, codes, label=jnp.zeros(batch_size, jnp.int32))[
        "params"]

  params_spec = jax.eval_shape(lambda: init_params(jax.random.key(0), 1))
  tx, sched_fns = optim.make(
      config, params_spec, total_steps=info.total_steps,
      batch_size=info.batch_size, data_size=info.data_size)

  def init(rng, batch, given):
    del batch, given  # Nothing is loaded.
    params = init_params(rng, 1)
    return {"params": params, "opt": tx.init(params)}

  def encode(state, batch):
    """The batch as the transformer sees it: codes int32[b, n], label."""
    _, out = autoencoder.apply(
        state["frozen"], batch["image"], method=autoencoder.encode)
    codes = out["codes"].reshape(len(out["codes"]), -1)
    return {"codes": codes, **(
        {"label": batch["label"]} if model.num_classes else {})}

  def nll(params, encoded, rng=None):
    """float32[b, n], nats; `rng` in training."""
    seen, rngs = encoded["codes"], {}
    if rng is not None:
      rng_dropout, rng_keep, rng_codes = jax.random.split(rng, 3)
      rngs["dropout"] = rng_dropout
      if pkeep < 1:
        seen = jnp.where(
            jax.random.bernoulli(rng_keep, pkeep, seen.shape), seen,
            jax.random.randint(rng_codes, seen.shape, 0, model.num_codes))
    logits = model.apply({"params": params}, seen, encoded.get("label"),
                         train=rng is not None, rngs=rngs)
    return optax.softmax_cross_entropy_with_integer_labels(
        logits, encoded["codes"])

  value_and_grad = task_lib.accumulate(
      jax.value_and_grad(lambda params, encoded, rng: (
          nll(params, encoded, rng).mean(), ()), has_aux=True),
      config.get("grad_accum_steps", 1))

  def update(state, batch, rng):
    (loss, _), grads = value_and_grad(
        state["params"], encode(state, batch), rng)
    updates, opt = tx.update(grads, state["opt"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "opt": opt}, {
        "training_loss": loss, "training_bits_per_code": loss / np.log(2),
        "l2_grads": optax.tree.norm(grads),
        "l2_params": optax.tree.norm(params),
        "l2_updates": optax.tree.norm(updates)}

  def predict_nll(state, batch, *, rng=None):
    """{"nll" float32[b, n] in nats, "codes" int32[b, n], "num_codes"}."""
    del rng  # Deterministic.
    encoded = encode(state, batch)
    return {"nll": nll(state["params"], encoded), "codes": encoded["codes"],
            "num_codes": jnp.full(len(encoded["codes"]), model.num_codes)}

  def loss(state, batch, *, rng=None):
    del rng  # Deterministic.
    return {"loss": nll(state["params"], encode(state, batch)).mean(axis=1)}

  def sample(state, batch, *, rng=None, temperature=1.0, top_k=None, size=None):
    """Draws as many images as the batch has, {"image": float32[b, h, w, c]}.

    A model with classes draws an image of each of the batch's "label". `size`
    is (rows, columns) of codes, by default those of the training images.
    """
    if rng is None:
      raise ValueError(
          "'sample' draws codes and got rng=None; pass a jax.random.key.")
    batch_size = len(batch["image"])
    label = batch["label"] if model.num_classes else None
    args = (model, state["params"], rng, batch_size)
    how = dict(label=label, temperature=temperature, top_k=top_k)
    if size is None:
      codes = gpt.sample(*args, **how).reshape(batch_size, *window)
    else:
      codes = gpt.sample_sliding(*args, window, tuple(size), **how)
    return {"image": autoencoder.apply(
        state["frozen"], codes, method=autoencoder.decode_codes)}

  task = Task(
      init, update, {"nll": predict_nll, "loss": loss, "sample": sample},
      sched_fns=sched_fns, frozen=lambda: dict(variables))
  if (decay := config.get("ema_decay")) is not None:
    task = task_lib.with_ema(task, decay)
  return task
