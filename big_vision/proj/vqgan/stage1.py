"""VQGAN, stage 1: an autoencoder with codes, and a discriminator against it.

Source: arXiv:2012.09841. What differs from the released code: see README.md.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from big_vision import config as config_lib
from big_vision import durations
from big_vision import optim
from big_vision import task as task_lib
from big_vision.proj.vqgan import adversarial
from big_vision.proj.vqgan import autoencoder
from big_vision.proj.vqgan import discriminator
from big_vision.proj.vqgan import perceptual
from big_vision.proj.vqgan import quantizers
from big_vision.run import pretrained
from big_vision.task import Info, Task


def make_task(config: config_lib.Config, info: Info) -> Task:
  """Learns to compress images to codes.

  The batch has "image", float32[b, h, w, c] in [-1, 1]. The state has the
  autoencoder's "params" and "opt"; with `config.gan` the discriminator's, as
  "disc"; of an `ema` quantizer its "codebook"; with `config.ema_decay` "ema".
  Frozen is the network of `config.perceptual`.

  What the autoencoder minimizes is

    mean |x - x^| + perceptual.weight * perceptual distance
    + losses of the quantizer + gan.weight * adaptive weight * -mean D(x^),

  the last of these from the step `gan.start` on. Before it there is no
  discriminator in the program, and it does not move. Both take their step from
  the same images. With `config.grad_accum_steps` the adaptive weight is that of
  each part; all else is that of the whole batch.

  Args:
    config: reads model; gan = dict(start_{steps,...}, weight, loss, model,
      optimizer), where the optimizer has the keys of `optim.make`; perceptual
      = dict(weight, <the keys of perceptual.make>); grad_accum_steps, ema_decay
      and the keys of `optim.make`.
    info: what the loop knows.
  """
  model = config_lib.call(
      autoencoder.Model, config.get("model", {}), "config.model",
      channels=info.batch_spec["image"].shape[-1])
  measures = dict(total_steps=info.total_steps, batch_size=info.batch_size,
                  data_size=info.data_size)
  batch_spec = dict(info.batch_spec)

  def spec(module):
    return jax.eval_shape(lambda batch: module.init(
        jax.random.key(0), batch["image"]), batch_spec)

  variables_spec = spec(model)
  tx, sched_fns = optim.make(config, variables_spec.pop("params"), **measures)
  collections = tuple(variables_spec)

  look, look_weight = None, 0.0
  if (options := dict(config.get("perceptual", {}))):
    look_weight = options.pop("weight", 1.0)
    look = perceptual.make(options, "config.perceptual")

  gan = config.get("gan")
  if gan is not None:
    disc = config_lib.call(
        discriminator.Model, gan.get("model", {}), "config.gan.model")
    disc_tx, disc_sched_fns = optim.make(
        gan.optimizer, spec(disc)["params"], **measures)
    sched_fns |= {f"disc/{name}": fn for name, fn in disc_sched_fns.items()}
    gan_weight = gan.get("weight", 0.8)
    gan_start = durations.get_steps("start", gan, default=0, **measures)
    losses = adversarial.DISCRIMINATOR_LOSSES
    if (loss_name := gan.get("loss", "hinge")) not in losses:
      raise config_lib.ConfigError(
          f"config.gan.loss is {loss_name!r}; use one of {sorted(losses)}.")
    disc_loss_fn = losses[loss_name]

  def init(rng, batch, given):
    del given  # Nothing is loaded.
    rng, rng_disc = jax.random.split(rng)
    state = dict(model.init(rng, batch["image"]))
    state["opt"] = tx.init(state["params"])
    if gan is not None:
      params = disc.init(rng_disc, batch["image"])["params"]
      state["disc"] = {"params": params, "opt": disc_tx.init(params)}
    return state

  def discriminate(disc_params, image):
    return disc.apply({"params": disc_params}, image)

  def reconstruction_losses(frozen, image, reconstruction):
    """{name: float32[b]}, without weights."""
    found = {"l1": jnp.mean(jnp.abs(image - reconstruction), axis=(1, 2, 3))}
    if look is not None:
      found[f"perceptual_{look.name}"] = look.distance(
          frozen["perceptual"], image, reconstruction)
    return found

  def both_grads(params, batch, rng, *, others, frozen, adversarial_now):
    """Of autoencoder and discriminator, from one pass through the former."""
    image = batch["image"]

    def generate(params):
      (reconstruction, out), changed = model.apply(
          {"params": params, **others}, image, train=True,
          rngs={"dropout": rng}, mutable=list(collections))
      codes_loss = sum(out["losses"].values(), jnp.float32(0))
      return (reconstruction, codes_loss), (out, changed)

    def reconstruction_loss(reconstruction):
      found = jax.tree.map(
          jnp.mean, reconstruction_losses(frozen, image, reconstruction))
      l1, *look_losses = found.values()
      return l1 + look_weight * sum(look_losses), found

    (reconstruction, codes_loss), pull_back, (out, changed) = jax.vjp(
        generate, params["autoencoder"], has_aux=True)
    (loss, found), to_image = jax.value_and_grad(
        reconstruction_loss, has_aux=True)(reconstruction)
    loss += codes_loss
    measurements = {**found, **out["losses"]}
    grads = {}

    if adversarial_now:
      generator_loss, to_image_gan = jax.value_and_grad(
          lambda x: adversarial.generator_loss(
              discriminate(params["disc"], x)))(reconstruction)
      _, pull_back_last = jax.vjp(
          lambda last: autoencoder.last_layer(last, out["head_input"]),
          {"conv_out": params["autoencoder"]["conv_out"]})
      weight = gan_weight * adversarial.adaptive_weight(*(
          pull_back_last(x)[0]["conv_out"]["kernel"]
          for x in (to_image, to_image_gan)))
      loss += weight * generator_loss
      to_image += weight * to_image_gan

      def disc_loss(disc_params):
        # Two passes: no statistic mixes real with generated images.
        real = discriminate(disc_params, image)
        fake = discriminate(disc_params, reconstruction)
        accuracy = (jnp.mean(real > 0) + jnp.mean(fake < 0)) / 2
        return disc_loss_fn(real, fake), accuracy

      (value, accuracy), grads["disc"] = jax.value_and_grad(
          disc_loss, has_aux=True)(params["disc"])
      measurements |= {
          "generator": generator_loss, "adaptive_weight": weight,
          "discriminator": value, "discriminator_accuracy": accuracy}

    grads["autoencoder"], = pull_back((to_image, jnp.ones_like(codes_loss)))
    return (loss, (measurements, changed)), grads

  grad_accum_steps = config.get("grad_accum_steps", 1)

  def update(state, batch, rng, *, adversarial_now=False):
    others = {name: state[name] for name in collections}
    params = {"autoencoder": state["params"]}
    if adversarial_now:
      params["disc"] = state["disc"]["params"]
    rng, rng_revive = jax.random.split(rng)

    def value_and_grad(params, batch, rng):
      return both_grads(params, batch, rng, others=others,
                        frozen=state["frozen"], adversarial_now=adversarial_now)
    (loss, (measurements, changed)), grads = task_lib.accumulate(
        value_and_grad, grad_accum_steps)(params, batch, rng)

    updates, opt = tx.update(grads["autoencoder"], state["opt"],
                             state["params"])
    changed = {**changed, "opt": opt,
               "params": optax.apply_updates(state["params"], updates)}
    if quantizers.CODEBOOK in collections:
      changed[quantizers.CODEBOOK] = {"quantize": quantizers.revive(
          changed[quantizers.CODEBOOK]["quantize"], rng_revive)}
    if adversarial_now:
      disc_updates, opt = disc_tx.update(
          grads["disc"], state["disc"]["opt"], params["disc"])
      changed["disc"] = {
          "opt": opt, "params": optax.apply_updates(
              params["disc"], disc_updates)}
    return changed, {
        "training_loss": loss,
        **{f"training_{name}": value for name, value in measurements.items()},
        "l2_grads": optax.tree.norm(grads),
        "l2_params": optax.tree.norm(changed["params"]),
        "l2_updates": optax.tree.norm(updates)}

  def reconstruct(state, batch, *, rng=None):
    """{"image" float32[b, h, w, c], "codes" int32[b, ...], "num_codes"}."""
    del rng  # Deterministic.
    variables = {name: state[name] for name in ("params", *collections)}
    image, out = model.apply(variables, batch["image"])
    return {"image": image, "codes": out["codes"],
            "num_codes": jnp.full(len(image), model.num_codes)}

  def loss(state, batch, *, rng=None):
    del rng  # Deterministic.
    return reconstruction_losses(
        state["frozen"], batch["image"], reconstruct(state, batch)["image"])

  def judge(state, batch, *, rng=None):
    """{"real", "fake"}: float32[b, h, w], logits of patches."""
    del rng  # Deterministic.
    return {name: discriminate(state["disc"]["params"], image)
            for name, image in (
                ("real", batch["image"]),
                ("fake", reconstruct(state, batch)["image"]))}

  predict_fns = {"reconstruct": reconstruct, "loss": loss}
  static = lambda step: {}
  phases = lambda total_steps: (task_lib.Phase(0, {}),)
  if gan is not None:
    predict_fns["judge"] = judge
    static = lambda step: {"adversarial_now": step >= gan_start}
    phases = lambda total_steps: tuple(
        task_lib.Phase(step, static(step)) for step in sorted({0, gan_start})
        if step < total_steps)
  task = Task(
      init, update, predict_fns, sched_fns=sched_fns, static=static,
      phases=phases,
      frozen=lambda: {"perceptual": look.load()} if look is not None else {})
  if (decay := config.get("ema_decay")) is not None:
    task = task_lib.with_ema(task, decay)
  return task


def load(workdir: str, channels: int, where: str
         ) -> tuple[autoencoder.Model, Mapping[str, Any]]:
  """The autoencoder of a finished stage 1, and its variables.

  Args:
    workdir: of that run.
    channels: of the images it is to be used for.
    where: the config's path that named the workdir, for messages.

  Raises:
    ConfigError: there is no such run; it is of another trainer, or of images
      with other channels.
  """
  config, variables = pretrained.read(
      workdir, ("params", quantizers.CODEBOOK), where)
  if (trainer := config.get("trainer")) != "proj.vqgan.stage1":
    raise config_lib.ConfigError(
        f"{where}={workdir!r} is a run of the trainer {trainer!r}; one of "
        "'proj.vqgan.stage1' is wanted.")
  trained = variables["params"]["conv_out"]["bias"].shape[0]
  if trained != channels:
    raise config_lib.ConfigError(
        f"{where}={workdir!r} is of images with {trained} channels; these have "
        f"{channels}.")
  model = config_lib.call(
      autoencoder.Model, config.get("model", {}), "config.model",
      channels=channels)
  return model, variables
