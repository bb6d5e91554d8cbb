"""VQGAN, stage 2: trains a transformer on the codes of a finished stage 1.

Source: arXiv:2012.09841, Section 3.2.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from big_vision import config as config_lib
from big_vision import ranges
from big_vision.proj.vqgan import autoencoder as autoencoder_lib
from big_vision.proj.vqgan import gpt
from big_vision.proj.vqgan import stage1
from big_vision.task import Info, Task
from big_vision.trainers import learner as learner_lib


def make_task(config: config_lib.Config, info: Info) -> Task:
  """Learns the distribution of an image's codes, given its class if there is.

  The batch has "image", float32[b, h, w, c] in [-1, 1], and, if
  `config.model.num_classes` is set, "label", int[b]. The state has "params",
  "opt" and, with `config.ema_decay`, "ema". Frozen is the autoencoder, read
  from the newest checkpoint of `config.stage1`. Images are encoded within the
  step, by the autoencoder in evaluation mode.

  Args:
    config: Reads stage1 (a workdir), model, pkeep and the keys of
      `learner.make`. pkeep in [0, 1] is the share of codes that the transformer
      sees in training; the others are replaced by random ones.
    info: Sizes of the run and the shapes of its batches.

  Raises:
    ConfigError: A value is invalid, there is no such run of stage 1, or the
      batch has no label for a model with classes.
  """
  image_spec = info.batch_spec["image"]
  autoencoder, variables = stage1.load(
      config.stage1, image_spec.shape[-1], "config.stage1")
  codec = _Codec(autoencoder=autoencoder, variables=variables)
  window = tuple(
      size // autoencoder.factor for size in image_spec.shape[1:3])
  model = config_lib.call(
      gpt.Model, config.get("model", {}), "config.model",
      num_codes=autoencoder.num_codes, num_places=int(np.prod(window)))
  if model.num_classes and "label" not in info.batch_spec:
    raise config_lib.ConfigError(
        f"config.model.num_classes is {model.num_classes}, but the batch has "
        f"no 'label'; it has {sorted(info.batch_spec)}.")
  pkeep = config_lib.get_checked(config, "pkeep", ranges.Fraction, 1.0)
  params_spec = jax.eval_shape(lambda: _init_params(model, jax.random.key(0)))
  learner = learner_lib.make(config, params_spec, info)

  def init(rng, batch, given):
    del batch, given  # Parameters do not depend on images; nothing is loaded.
    params = _init_params(model, rng)
    return {"params": params, "opt": learner.init(params)}

  def encode(state, batch):
    """The batch as the transformer reads it: codes int32[b, n], label."""
    encoded = {"codes": codec.encode(state["frozen"], batch["image"])}
    return encoded | ({"label": batch["label"]} if model.num_classes else {})

  def loss_fn(params, encoded, rng):
    loss = _nll(model, params, encoded, pkeep=pkeep, rng=rng).mean()
    return loss, ({"training_bits_per_code": loss / np.log(2)}, {})

  def update(state, batch, rng):
    return learner.step(
        jax.value_and_grad(loss_fn, has_aux=True),
        state["params"], state["opt"], encode(state, batch), rng)

  def nll(state, batch, *, rng=None):
    """{"nll" float32[b, n] in nats, "codes" int32[b, n], "num_codes"}."""
    del rng  # Deterministic.
    encoded = encode(state, batch)
    return {"nll": _nll(model, state["params"], encoded),
            "codes": encoded["codes"],
            "num_codes": jnp.full(len(encoded["codes"]), model.num_codes)}

  def loss(state, batch, *, rng=None):
    return {"loss": nll(state, batch, rng=rng)["nll"].mean(axis=1)}

  def sample(state, batch, *, rng=None, temperature=1.0, top_k=None, size=None):
    """Draws as many images as the batch has, {"image": float32[b, h, w, c]}.

    A model with classes draws an image of each of the batch's "label". `size`
    is (rows, columns) of codes, by default those of the training images. An
    image for which logits were not finite is NaN.
    """
    codes = _sample_codes(
        model, state["params"], rng, len(batch["image"]), window, size,
        label=batch["label"] if model.num_classes else None,
        temperature=temperature, top_k=top_k)
    image = codec.decode(state["frozen"], jnp.maximum(codes, 0))
    is_drawn = jnp.all(codes >= 0, axis=(1, 2))[:, None, None, None]
    return {"image": jnp.where(is_drawn, image, jnp.nan)}

  return learner.finish(Task(
      init=init, update=update,
      predict_fns={"nll": nll, "loss": loss, "sample": sample},
      frozen=lambda: dict(codec.variables)))


class _Codec(NamedTuple):
  """The autoencoder of a finished stage 1.

  Attributes:
    autoencoder: Flax module.
    variables: Its variables, {collection: tree}; `Task.frozen`.
  """
  autoencoder: autoencoder_lib.Model
  variables: Mapping[str, Any]

  def encode(self, frozen, image):
    """Returns codes int32[b, n] of images float32[b, h, w, c] in [-1, 1]."""
    _, out = self.autoencoder.apply(
        frozen, image, method=self.autoencoder.encode)
    return out["codes"].reshape(len(image), -1)

  def decode(self, frozen, codes):
    """Returns images float32[b, h, w, c] of codes int32[b, rows, columns]."""
    return self.autoencoder.apply(
        frozen, codes, method=self.autoencoder.decode_codes)


def _init_params(model: gpt.Model, rng):
  """Returns the transformer's parameters; the size of a batch is irrelevant."""
  codes = jnp.zeros((1, model.num_places), jnp.int32)
  return model.init(rng, codes, label=jnp.zeros(1, jnp.int32))["params"]


def _nll(model: gpt.Model, params, encoded, *, pkeep: float = 1.0, rng=None):
  """Computes the negative log-likelihood of each code, given those before it.

  Args:
    model: Transformer module.
    params: Its parameters.
    encoded: {"codes": int32[b, n]} and, for a model with classes, "label",
      int[b].
    pkeep: Share of the codes that the transformer sees in training; the others
      are replaced by uniform random ones. All codes are predicted.
    rng: Key for dropout and `pkeep` in training; None in evaluation, where all
      codes are seen.

  Returns:
    float32[b, n], nats.
  """
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


def _sample_codes(
    model: gpt.Model, params, rng, batch_size: int, window: tuple[int, int],
    size: tuple[int, int] | None, **kw):
  """Draws grids of codes.

  Args:
    model: Transformer module.
    params: Its parameters.
    rng: Key that all draws depend on.
    batch_size: Number of grids.
    window: (rows, columns) of codes of a training image.
    size: (rows, columns) of codes to draw; None for `window`.
    **kw: `label`, `temperature` and `top_k` of `gpt.sample`.

  Returns:
    int32[b, rows, columns]; -1 where logits are not finite.

  Raises:
    ValueError: `rng` is None.
  """
  if rng is None:
    raise ValueError(
        "'sample' draws codes and got rng=None; pass a jax.random.key.")
  if size is None:
    codes = gpt.sample(model, params, rng, batch_size, **kw)
    return codes.reshape(batch_size, *window)
  return gpt.sample_sliding(
      model, params, rng, batch_size, window, tuple(size), **kw)
