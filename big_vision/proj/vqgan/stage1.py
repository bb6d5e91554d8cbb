"""VQGAN, stage 1: an autoencoder with codes, trained against a discriminator.

Source: arXiv:2012.09841; the README lists differences from the released code.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from big_vision import config as config_lib
from big_vision import durations
from big_vision import ranges
from big_vision import task as task_lib
from big_vision.proj.vqgan import adversarial
from big_vision.proj.vqgan import autoencoder
from big_vision.proj.vqgan import discriminator
from big_vision.proj.vqgan import perceptual
from big_vision.proj.vqgan import quantizers
from big_vision.run import pretrained
from big_vision.task import Info, Task
from big_vision.trainers import learner as learner_lib


def make_task(config: config_lib.Config, info: Info) -> Task:
  """Learns to compress images to codes.

  The batch has "image", float32[b, h, w, c] in [-1, 1]. The state has the
  autoencoder's "params" and "opt"; with `config.gan` the discriminator's, as
  "disc"; with an `ema` quantizer its "codebook"; with `config.ema_decay` "ema".
  The network of `config.perceptual` is frozen.

  The autoencoder minimizes

    mean |x - x^| + perceptual.weight * perceptual distance
    + losses of the quantizer + gan.weight * adaptive weight * -mean D(x^),

  the last term from step `gan.start` on. Before that step, the compiled program
  has no discriminator, and the discriminator's parameters do not change. Both
  networks learn from the same images. With `config.grad_accum_steps` each part
  of a batch has its own adaptive weight; everything else is as for the whole
  batch.

  Args:
    config: Reads model; gan = dict(start_{steps,...}, weight, loss, model,
      optimizer), where the optimizer has the keys of `optim.make`; perceptual
      = dict(weight, <the keys of perceptual.make>); and the keys of
      `learner.make`.
    info: Sizes of the run and the shapes of its batches.

  Raises:
    ConfigError: A value is invalid, or a file or run does not exist.
  """
  model = config_lib.call(
      autoencoder.Model, config.get("model", {}), "config.model",
      channels=info.batch_spec["image"].shape[-1])
  variables_spec = _infer_variables(model, info)
  learner = learner_lib.make(config, variables_spec.pop("params"), info)
  collections = tuple(variables_spec)
  reconstruction_loss = _make_reconstruction_loss(config.get("perceptual"))
  adversary = _make_adversary(config.get("gan"), info)

  def init(rng, batch, given):
    del given  # Nothing is loaded.
    rng, rng_disc = jax.random.split(rng)
    state = dict(model.init(rng, batch["image"]))
    state["opt"] = learner.init(state["params"])
    if adversary is not None:
      state["disc"] = adversary.init(rng_disc, batch["image"])
    return state

  def update(state, batch, rng, *, adversarial_now=False):
    rng, rng_revive = jax.random.split(rng)
    params = {"autoencoder": state["params"]}
    if adversarial_now:
      params["disc"] = state["disc"]["params"]
    value_and_grad = functools.partial(
        _value_and_grad, model=model, reconstruction_loss=reconstruction_loss,
        adversary=adversary if adversarial_now else None,
        others={name: state[name] for name in collections},
        frozen=state["frozen"])
    (loss, (measurements, changed)), grads = learner.transform(value_and_grad)(
        params, batch, rng)

    stepped, norms = learner.optimizer.apply(
        grads["autoencoder"], state["params"], state["opt"])
    changed = {**changed, **stepped}
    if quantizers.CODEBOOK in collections:
      changed[quantizers.CODEBOOK] = {"quantize": quantizers.revive(
          changed[quantizers.CODEBOOK]["quantize"], rng_revive)}
    if adversarial_now:
      changed["disc"], disc_norms = adversary.optimizer.apply(
          grads["disc"], state["disc"]["params"], state["disc"]["opt"])
      # Of both networks, so that neither takes a step that is not finite.
      norms["l2_grads"] = jnp.hypot(norms["l2_grads"], disc_norms["l2_grads"])
    return changed, {
        "training_loss": loss,
        **{f"training_{name}": value for name, value in measurements.items()},
        **norms}

  task = Task(
      init=init, update=update, frozen=reconstruction_loss.load,
      predict_fns=_make_predict_fns(
          model, collections, reconstruction_loss, adversary))
  if adversary is not None:
    task = task._replace(
        sched_fns={f"disc/{name}": fn
                   for name, fn in adversary.optimizer.sched_fns.items()},
        static=adversary.static, phases=adversary.phases)
  return learner.finish(task)


def _make_predict_fns(
    model: autoencoder.Model, collections: Sequence[str],
    reconstruction_loss: "_ReconstructionLoss", adversary: "_Adversary | None"
) -> dict[str, Callable]:
  """Makes `Task.predict_fns`; "judge" exists only if there is an adversary."""
  def reconstruct(state, batch, *, rng=None):
    """{"image" float32[b, h, w, c], "codes" int32[b, ...], "num_codes"}."""
    del rng  # Deterministic.
    variables = {name: state[name] for name in ("params", *collections)}
    image, out = model.apply(variables, batch["image"])
    return {"image": image, "codes": out["codes"],
            "num_codes": jnp.full(len(image), model.num_codes)}

  def loss(state, batch, *, rng=None):
    """{"l1", "perceptual_<network>"}: float32[b], without weights."""
    return reconstruction_loss.terms(
        state["frozen"], batch["image"],
        reconstruct(state, batch, rng=rng)["image"])

  def judge(state, batch, *, rng=None):
    """{"real", "fake"}: float32[b, h, w], logits of patches."""
    return {name: adversary.discriminate(state["disc"]["params"], image)
            for name, image in (
                ("real", batch["image"]),
                ("fake", reconstruct(state, batch, rng=rng)["image"]))}

  predict_fns = {"reconstruct": reconstruct, "loss": loss}
  return predict_fns if adversary is None else predict_fns | {"judge": judge}


def _infer_variables(module, info: Info) -> dict[str, Any]:
  """Returns the shapes of a module's variables, {collection: tree}."""
  return dict(jax.eval_shape(
      lambda batch: module.init(jax.random.key(0), batch["image"]),
      dict(info.batch_spec)))


class _ReconstructionLoss(NamedTuple):
  """L1 and, with a network, perceptual distance between images.

  Attributes:
    network: Network of the perceptual distance, or None.
    weight: Weight of the perceptual distance; that of L1 is 1.
  """
  network: perceptual.Network | None
  weight: float

  def load(self) -> dict[str, Any]:
    """Returns `Task.frozen`, the variables that `terms` reads."""
    if self.network is None:
      return {}
    return {"perceptual": self.network.load()}

  def terms(self, frozen, image, reconstruction) -> dict[str, Any]:
    """Returns {name: float32[b]}, the terms without weights."""
    found = {"l1": jnp.mean(jnp.abs(image - reconstruction), axis=(1, 2, 3))}
    if self.network is not None:
      found[f"perceptual_{self.network.name}"] = self.network.distance(
          frozen["perceptual"], image, reconstruction)
    return found

  def mean(self, frozen, image, reconstruction) -> tuple[Any, dict[str, Any]]:
    """Returns the weighted sum of the terms' means, and these means."""
    found = jax.tree.map(
        jnp.mean, self.terms(frozen, image, reconstruction))
    l1, *distances = found.values()
    return l1 + self.weight * sum(distances), found


def _make_reconstruction_loss(
    options: Mapping[str, Any] | None) -> _ReconstructionLoss:
  """Makes the loss that `config.perceptual` describes."""
  options = dict(options or {})
  if not options:
    return _ReconstructionLoss(network=None, weight=0.0)
  weight = config_lib.check(
      options.pop("weight", 1.0), "config.perceptual.weight",
      ranges.NotNegative)
  return _ReconstructionLoss(
      network=perceptual.make(options, "config.perceptual"), weight=weight)


class _Adversary(NamedTuple):
  """A discriminator and its part in the training.

  Attributes:
    model: Discriminator module.
    optimizer: Optimizer of its parameters.
    loss_fn: Loss of the discriminator, (logits of real images, logits of
      generated images) -> float32[].
    weight: Weight of the generator's loss beside the adaptive one.
    start_step: Number of updates before the discriminator takes part.
  """
  model: discriminator.Model
  optimizer: learner_lib.Optimizer
  loss_fn: Callable
  weight: float
  start_step: int

  def init(self, rng, image) -> dict[str, Any]:
    """Returns the discriminator's entry of the state."""
    params = self.model.init(rng, image)["params"]
    return {"params": params, "opt": self.optimizer.init(params)}

  def static(self, step: int) -> dict[str, bool]:
    """See `Task.static`."""
    return {"adversarial_now": step >= self.start_step}

  def phases(self, total_steps: int) -> tuple[task_lib.Phase, ...]:
    """See `Task.phases`."""
    return task_lib.phases_at([self.start_step], self.static, total_steps)

  def discriminate(self, params, image):
    """Returns logits float32[b, h, w], one for each patch of the images."""
    return self.model.apply({"params": params}, image)

  def value_and_grad(self, params, real, fake):
    """Returns ((loss, accuracy), gradients) of the discriminator."""
    def loss_and_accuracy(params):
      # Two passes, so that no statistic mixes real and generated images.
      on_real = self.discriminate(params, real)
      on_fake = self.discriminate(params, fake)
      accuracy = (jnp.mean(on_real > 0) + jnp.mean(on_fake < 0)) / 2
      return self.loss_fn(on_real, on_fake), accuracy
    return jax.value_and_grad(loss_and_accuracy, has_aux=True)(params)

  def generator_value_and_grad(self, params, fake):
    """Returns (loss, gradient for the images) of the generator."""
    return jax.value_and_grad(lambda image: adversarial.generator_loss(
        self.discriminate(params, image)))(fake)


def _make_adversary(
    config: config_lib.Config | None, info: Info) -> _Adversary | None:
  """Makes the discriminator that `config.gan` describes; None without one."""
  if config is None:
    return None
  model = config_lib.call(
      discriminator.Model, config.get("model", {}), "config.gan.model")
  losses = adversarial.DISCRIMINATOR_LOSSES
  if (loss_name := config.get("loss", "hinge")) not in losses:
    raise config_lib.ConfigError(
        f"config.gan.loss is {loss_name!r}; use one of {sorted(losses)}.")
  return _Adversary(
      model=model, loss_fn=losses[loss_name],
      weight=config_lib.get_checked(config, "weight", ranges.NotNegative, 0.8),
      optimizer=learner_lib.make_optimizer(
          config.optimizer, _infer_variables(model, info)["params"], info),
      start_step=durations.get_steps(
          "start", config, default=0, total_steps=info.total_steps,
          batch_size=info.batch_size, data_size=info.data_size))


def _value_and_grad(
    params, batch, rng, *, model: autoencoder.Model,
    reconstruction_loss: _ReconstructionLoss, adversary: _Adversary | None,
    others: Mapping[str, Any], frozen):
  """Differentiates the losses of both networks.

  Both see the images of one pass through the autoencoder. Backwards, losses
  are differentiated for the reconstruction only, and their weighted sum goes
  through the autoencoder once.

  Args:
    params: {"autoencoder", "disc"}, without "disc" if there is no adversary.
    batch: Training batch.
    rng: Key for dropout.
    model: Autoencoder module.
    reconstruction_loss: Loss between images and reconstructions.
    adversary: Discriminator, or None before it starts.
    others: Collections of the autoencoder other than its parameters.
    frozen: Frozen entry of the state.

  Returns:
    ((loss, (measurements, changed)), grads): the autoencoder's loss, values to
    log without the prefix "training_", the changed collections, and gradients
    with the structure of `params`.
  """
  image = batch["image"]

  def generate(params):
    (reconstruction, out), changed = model.apply(
        {"params": params, **others}, image, train=True,
        rngs={"dropout": rng}, mutable=list(others))
    codes_loss = sum(out["losses"].values(), jnp.float32(0))
    return (reconstruction, codes_loss), (out, changed)

  (reconstruction, codes_loss), pull_back, (out, changed) = jax.vjp(
      generate, params["autoencoder"], has_aux=True)
  (loss, found), to_image = jax.value_and_grad(
      lambda x: reconstruction_loss.mean(frozen, image, x), has_aux=True)(
          reconstruction)
  loss += codes_loss
  measurements = {**found, **out["losses"]}
  grads = {}

  if adversary is not None:
    generator_loss, to_image_gan = adversary.generator_value_and_grad(
        params["disc"], reconstruction)
    weight = adversary.weight * _adaptive_weight(
        params["autoencoder"], out["head_input"], to_image, to_image_gan)
    loss += weight * generator_loss
    to_image += weight * to_image_gan
    (disc_loss, accuracy), grads["disc"] = adversary.value_and_grad(
        params["disc"], image, reconstruction)
    measurements |= {
        "generator": generator_loss, "adaptive_weight": weight,
        "discriminator": disc_loss, "discriminator_accuracy": accuracy}

  grads["autoencoder"], = pull_back((to_image, jnp.ones_like(codes_loss)))
  return (loss, (measurements, changed)), grads


def _adaptive_weight(params, head_input, to_image, to_image_gan):
  """Returns `adversarial.adaptive_weight` from gradients for the images.

  Args:
    params: Parameters of the autoencoder.
    head_input: Input of the autoencoder's last layer.
    to_image: Gradient of the reconstruction loss for the reconstruction.
    to_image_gan: Gradient of the generator's loss for the reconstruction.
  """
  _, pull_back = jax.vjp(
      lambda last: autoencoder.last_layer(last, head_input),
      {"conv_out": params["conv_out"]})
  return adversarial.adaptive_weight(*(
      pull_back(x)[0]["conv_out"]["kernel"] for x in (to_image, to_image_gan)))


def load(workdir: str, channels: int, where: str
         ) -> tuple[autoencoder.Model, Mapping[str, Any]]:
  """Reads the autoencoder of a finished run of stage 1, and its variables.

  Args:
    workdir: Directory of the finished run.
    channels: Number of channels of the images that it will be used for.
    where: Path of the config key that named the workdir, for messages.

  Raises:
    ConfigError: There is no such run, it has another trainer, or its images
      have another number of channels.
  """
  config, variables = pretrained.read(
      workdir, ("params", quantizers.CODEBOOK), where)
  if (trainer := config.get("trainer")) != "proj.vqgan.stage1":
    raise config_lib.ConfigError(
        f"{where}={workdir!r} is a run of the trainer {trainer!r}; it must be "
        "one of 'proj.vqgan.stage1'.")
  trained = variables["params"]["conv_out"]["bias"].shape[0]
  if trained != channels:
    raise config_lib.ConfigError(
        f"{where}={workdir!r} was trained on images with {trained} channels; "
        f"these have {channels}.")
  model = config_lib.call(
      autoencoder.Model, config.get("model", {}), "config.model",
      channels=channels)
  return model, variables
