"""Whole images out of rays, in chunks, on all devices."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import numpy as np

from big_vision.evaluators import harness
from big_vision.proj.nerf import cameras

_SHOWN = ("rgb", "opacity", "distance")


@functools.lru_cache(maxsize=8)  # Evaluators of one camera share a program.
def make_renderer(
    predict_fn: Callable, camera: cameras.Camera,
    batch_sharding: jax.sharding.NamedSharding, batch_size: int) -> Callable:
  """A function (state, pose float32[3, 4]) -> image.

  Args:
    predict_fn: (state, rays) -> {name: float32[b, ...]} with "rgb", "opacity"
      and "distance".
    camera: of the images.
    batch_sharding: how the rays of a chunk are spread over the devices.
    batch_size: rays of a chunk; that of the last one is filled with rays that
      are cut off again.

  Returns:
    The function; its image is a dict of NumPy arrays: "rgb" float32[h, w, 3],
    "opacity" and "distance" float32[h, w]. The same on every process, and
    whatever the chunks.
  """
  h, w = camera.height, camera.width

  @functools.partial(harness.jit, batch_sharding=batch_sharding)
  def render_chunk(state, pose, first):
    pixel = jnp.minimum(first + jnp.arange(batch_size), h * w - 1)
    pixel = jax.lax.with_sharding_constraint(pixel, batch_sharding)
    seen = predict_fn(state, cameras.pixel_rays(camera, pose, pixel))
    return {name: seen[name] for name in _SHOWN}

  def render(state, pose):
    chunks = jax.device_get([
        render_chunk(state, pose, np.int32(first))
        for first in range(0, h * w, batch_size)])
    return {
        name: np.concatenate([chunk[name] for chunk in chunks])[:h * w].reshape(
            h, w, *chunks[0][name].shape[1:])
        for name in _SHOWN}
  return render


def to_uint8(image) -> np.ndarray:
  """float[...] in [0, 1] to uint8; the rest is cut."""
  return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
