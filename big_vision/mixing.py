"""Mixup and CutMix, which mix the examples of a batch on the device.

Examples 2i and 2i + 1 of a batch are mixed with each other. Unlike rolling the
batch, this needs no communication between devices, and unlike rolling each
device's part, the result does not depend on the number of devices.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from big_vision import config as config_lib
from big_vision import ranges


def make(mixup: Mapping | None = None, cutmix: Mapping | None = None
         ) -> Callable[[Mapping, jax.Array], dict] | None:
  """Makes a function that mixes the images and labels of a batch.

  Args:
    mixup: {"p": alpha}; every step draws one weight from Beta(alpha, alpha).
    cutmix: {"p": alpha}; every step draws one box, its area from
      Beta(alpha, alpha). If both are given, every step picks one of the two at
      random.

  Returns:
    A function (batch, rng) -> batch, or None if neither argument is given. The
    batch must have an even number of examples, "image", float[b, h, w, c], and
    "labels", float[b, k], one-hot or multi-hot, which are mixed like the
    pixels.

  Raises:
    ConfigError: A key does not exist, or p is not positive. While tracing: the
      batch has an odd size, no image, or labels of another type or shape.
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
          "config.mixup and config.cutmix mix images; the batch has "
          f"{sorted(batch)}.")
    labels = batch["labels"]
    if labels.ndim != 2 or not jnp.issubdtype(labels.dtype, jnp.floating):
      raise config_lib.ConfigError(
          "config.mixup and config.cutmix need labels float[b, k]; these are "
          f"{labels.dtype}{list(labels.shape)}. The preprocessing op "
          "\"onehot\" converts class numbers.")
    b = batch["image"].shape[0]
    if b % 2:
      raise config_lib.ConfigError(
          "config.mixup and config.cutmix mix pairs of examples and need an "
          f"even batch size; it is {b}.")
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
  """Swaps neighbours along the first axis: 1, 0, 3, 2, ..."""
  return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def _blend(weight, x):
  """Returns weight * x + (1 - weight) * partner in the dtype of x."""
  return (weight * x + (1 - weight) * _partner(x)).astype(x.dtype)


def _mixup(p: ranges.Positive):
  """Makes mixup, with the larger weight on the image itself.

  Source: arXiv:1710.09412.
  """
  def apply(batch, rng):
    weight = jax.random.beta(rng, p, p)
    weight = jnp.maximum(weight, 1 - weight)
    return jax.tree.map(lambda x: _blend(weight, x), batch)
  return apply


def _cutmix(p: ranges.Positive):
  """Makes CutMix, with labels weighted by the area within the image.

  Source: arXiv:1905.04899.
  """
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
