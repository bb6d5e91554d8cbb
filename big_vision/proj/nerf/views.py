"""How like photographs that were not trained on a scene is seen."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from big_vision import config as config_lib
from big_vision import image_quality
from big_vision.proj.nerf import images
from big_vision.proj.nerf import scenes


class Evaluator:
  """PSNR, SSIM and, where it is known, the error of distance; pictures.

  Yields "psnr", dB, of each image, then the mean over images; "ssim", at most
  1; "distance_error", the mean absolute error of how far away a pixel's light
  comes from, world units, over pixels that are known to see something. Of the
  first `num_pictures` views, "view<i>": truth, rendering, and distance from
  near (white) to far (black).

  Needs a predict function (state, {"origin", "direction"}) -> {"rgb",
  "opacity", "distance"}, as `proj/nerf/radiance_field` has.

  Args:
    predict_fn: un-jitted.
    batch_sharding: of the rays.
    batch_size: rays that are rendered at a time, over all devices.
    data: a scene.
    num_views: how many images to use, evenly spread; None for all.
    num_pictures: of how many of them to yield a picture.

  Raises:
    ConfigError: `data` is no scene, or has less views.
  """

  def __init__(
      self, predict_fn: Callable, *,
      batch_sharding: jax.sharding.NamedSharding, batch_size: int,
      data: Mapping[str, Any], num_views: int | None = None,
      num_pictures: int = 2):
    self._scene = scenes.open_scene(data)
    available = len(self._scene.poses)
    num_views = available if num_views is None else num_views
    if not 0 < num_views <= available:
      raise config_lib.ConfigError(
          f"num_views={num_views}; {dict(data)} has {available} views.")
    self._views = np.arange(num_views) * available // num_views
    self._num_pictures = num_pictures
    self._render = images.make_renderer(
        predict_fn, self._scene.camera, batch_sharding, batch_size)
    self._measure = jax.jit(lambda a, b: (
        image_quality.psnr(a[None], b[None])[0],
        image_quality.ssim(a[None], b[None])[0]))
    self._truth = None

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields (name, number or picture)."""
    if self._truth is None:
      self._truth = self._scene.images(), self._scene.distances()
    truth, distances = self._truth
    quality, errors, pictures = [], [], []
    for i, view in enumerate(self._views):
      seen = self._render(state, self._scene.poses[view])
      quality.append(self._measure(seen["rgb"], truth[view]))
      if distances is not None:
        error = np.abs(seen["distance"] - distances[view])
        errors.append(error[np.isfinite(error)])
      if i < self._num_pictures:
        pictures.append((f"view{view:03d}", self._show(truth[view], seen)))
    psnr, ssim = np.mean(np.asarray(quality, np.float64), axis=0)
    yield "psnr", psnr
    yield "ssim", ssim
    if distances is not None:
      yield "distance_error", np.concatenate(errors).mean(dtype=np.float64)
    yield from pictures

  def _show(self, truth, seen) -> np.ndarray:
    """uint8[h, 3 w, 3]."""
    near, far = self._scene.near, self._scene.far
    nearness = (far - seen["distance"]) / (far - near) * seen["opacity"]
    nearness = np.repeat(nearness[..., None], 3, axis=-1)
    return images.to_uint8(np.concatenate([truth, seen["rgb"], nearness], 1))
