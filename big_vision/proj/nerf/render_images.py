"""Renders whole images from rays, in chunks, on all devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from big_vision.evaluators import harness
from big_vision.proj.nerf import cameras

_RENDERED = ("rgb", "opacity", "distance")


def make_renderer(
    predict_fn: Callable, camera: cameras.Camera, loader: harness.Loader
) -> Callable:
  """Makes a function (state, pose, lens, view number) -> image.

  Args:
    predict_fn: (state, rays, rng=) -> {name: float32[b, ...]} with "rgb",
      "opacity" and "distance", not jitted.
    camera: Camera of the images.
    loader: Compiles; its batch size is the number of rays in a chunk.

  Returns:
    The function. It takes a pose, float32[3, 4], a lens, float32[8], and the
    number of the view, which determines random draws. Its image is a dict of
    NumPy arrays: "rgb" float32[h, w, 3], "opacity" and "distance"
    float32[h, w], the same on every process and, if the predict function does
    not draw, for every size of chunk.
  """
  h, w = camera.height, camera.width
  render_chunk = loader.jit(
      _render_chunk, predict_fn=predict_fn, camera=camera, seed=loader.seed,
      batch_size=loader.batch_size, batch_sharding=loader.batch_sharding)

  def render(state, pose, lens, number):
    chunks = jax.device_get([
        render_chunk(state, pose, lens, np.int32(number), np.int32(first))
        for first in range(0, h * w, loader.batch_size)])
    return {
        name: np.concatenate([chunk[name] for chunk in chunks])[:h * w].reshape(
            h, w, *chunks[0][name].shape[1:])
        for name in _RENDERED}
  return render


def _render_chunk(
    state, pose, lens, number, first, *, predict_fn, camera, seed, batch_size,
    batch_sharding):
  """Renders the pixels from `first` on; those past the last one repeat it."""
  pixel = jnp.minimum(
      first + jnp.arange(batch_size), camera.height * camera.width - 1)
  pixel = jax.lax.with_sharding_constraint(pixel, batch_sharding)
  rng = jax.random.fold_in(harness.make_rng(seed, number), first)
  rendered = predict_fn(
      state, cameras.pixel_rays(camera, pose, lens, pixel), rng=rng)
  return {name: rendered[name] for name in _RENDERED}


def to_uint8(image) -> np.ndarray:
  """Converts float[...] in [0, 1] to uint8; values outside are clipped."""
  return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
