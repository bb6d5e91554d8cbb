"""Mixup and CutMix: batches mixed on the device.

Partners are neighbours in the batch (2i and 2i + 1). Unlike a roll of the
batch, that needs no communication between devices, and unlike a roll within
each device's part, the result does not depend on how many devices there are.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from big_vision import config as config_lib


def make(mixup: Mapping | None = None, cutmix: Mapping | None = None
         ) -> Callable[[Mapping, jax.Array], dict] | None:
  """A function (batch, rng) -> batch that mixes "image" and "labels".

  Args:
    mixup: {"p": alpha}; one weight a step, from Beta(alpha, alpha).
    cutmix: {"p": alpha}; one box a step, its area from Beta(alpha, alpha).
      Where both are given, each step tosses a coin.

  Returns:
    The function, or None where there is nothing to do. Labels are mixed as the
    pixels are, so they must be one-hot or multi-hot float[b, k].

  Raises:
    ConfigError: unknown keys, or p <= 0. While tracing: an odd batch, no image,
      labels that cannot be mixed.
  """
  ops = []
  if mixup is not None:
    ops.append(config_lib.call(_mixup, mixup, "config.mixup"))
  if cutmix is not None:
    ops.append(config_lib.call(_cutmix, cutmix, "config.cutmix"))
  if not ops:
    return None

  def mix(batch, rng):
    if "image" not in batch:
      raise config_lib.ConfigError(
          f"Mixing is for images; the batch has {sorted(batch)}.")
    labels = batch["labels"]
    if labels.ndim != 2 or not jnp.issubdtype(labels.dtype, jnp.floating):
      raise config_lib.ConfigError(
          "Mixing wants labels float[b, k], they are "
          f"{labels.dtype}{list(labels.shape)}; the preprocessing op "
          "\"onehot\" makes such of class numbers.")
    b = batch["image"].shape[0]
    if b % 2:
      raise config_lib.ConfigError(
          f"Mixing pairs neighbours, so it needs an even batch; it is {b}.")
    rng_coin, rng_mix = jax.random.split(rng)
    pixels = {"image": batch["image"], "labels": labels}
    if len(ops) == 1:
      mixed = ops[0](pixels, rng_mix)
    else:
      mixed = jax.lax.cond(
          jax.random.bernoulli(rng_coin), *ops, pixels, rng_mix)
    return {**batch, **mixed}
  return mix


def _partner(x):
  """Neighbours swapped along the first axis: 1, 0, 3, 2, ..."""
  return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def _blend(weight, x):
  """weight * x + (1 - weight) * partner, in x's dtype."""
  return (weight * x + (1 - weight) * _partner(x)).astype(x.dtype)


def _check_alpha(p: float, where: str):
  if not p > 0:
    raise config_lib.ConfigError(
        f"{where}.p is {p}; the Beta distribution needs p > 0.")


def _mixup(p: float):
  """mixup, arXiv:1710.09412; the larger weight stays on the image itself."""
  _check_alpha(p, "config.mixup")

  def apply(batch, rng):
    weight = jax.random.beta(rng, p, p)
    weight = jnp.maximum(weight, 1 - weight)
    return jax.tree.map(lambda x: _blend(weight, x), batch)
  return apply


def _cutmix(p: float):
  """CutMix, arXiv:1905.04899; labels follow the area that was really cut."""
  _check_alpha(p, "config.cutmix")

  def apply(batch, rng):
    rng_area, rng_y, rng_x = jax.random.split(rng, 3)
    h, w = batch["image"].shape[1:3]
    side = jnp.sqrt(1 - jax.random.beta(rng_area, p, p))

    def span(size, rng_center):
      center = jax.random.uniform(rng_center, maxval=size)
      low = jnp.clip(jnp.round(center - side * size / 2), 0, size)
      high = jnp.clip(jnp.round(center + side * size / 2), 0, size)
      position = jnp.arange(size)
      return (low <= position) & (position < high)

    inside = span(h, rng_y)[:, None] & span(w, rng_x)[None, :]
    image = batch["image"]
    image = jnp.where(inside[None, :, :, None], _partner(image), image)
    return {"image": image,
            "labels": _blend(1 - inside.mean(), batch["labels"])}
  return apply
