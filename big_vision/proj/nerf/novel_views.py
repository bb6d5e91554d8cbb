"""Quality of renderings from cameras that were not trained on."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from big_vision import config as config_lib
from big_vision import image_quality
from big_vision import ranges
from big_vision.evaluators import harness
from big_vision.proj.nerf import render_images
from big_vision.proj.nerf import scenes


class Evaluator:
  """Measures PSNR, SSIM and, where it is known, the error of distance.

  Needs a predict function (state, {"origin", "direction"}, rng=) -> {"rgb",
  "opacity", "distance"}, as `proj.nerf.radiance_field` has.

  Metrics:
    psnr: mean over images of each image's PSNR, dB; higher is better.
    ssim: mean over images, at most 1; higher is better.
    distance_error: mean absolute error of the distance that a pixel's light
      comes from, world units, over pixels whose distance is known; lower is
      better.
    view<i>: a picture for the first ones: photograph, rendering, and distance
      from near (white) to far (black).
  """

  def __init__(
      self, predict_fn: Callable, loader: harness.Loader, *,
      data: Mapping[str, Any], num_views: ranges.Count | None = None,
      num_pictures: ranges.CountOrZero = 2):
    """Opens the scene; compiles and reads nothing yet.

    Args:
      predict_fn: (state, rays, rng=) -> {"rgb", "opacity", "distance"}, not
        jitted.
      loader: Compiles; its batch size is the number of rays in a chunk.
      data: A scene.
      num_views: Number of images to use, evenly spread; None for all.
      num_pictures: Number of views to show.

    Raises:
      ConfigError: `data` is not a scene, or has too few views.
    """
    self._scene = scenes.open_scene(data)
    available = len(self._scene.poses)
    num_views = available if num_views is None else num_views
    if not 0 < num_views <= available:
      raise config_lib.ConfigError(
          f"num_views={num_views}; {dict(data)} has {available} views.")
    self._views = np.arange(num_views) * available // num_views
    self._num_pictures = num_pictures
    self._render = render_images.make_renderer(
        predict_fn, self._scene.camera, loader)
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
      rendered = self._render(
          state, self._scene.poses[view], self._scene.lenses[view], view)
      quality.append(self._measure(rendered["rgb"], truth[view]))
      if distances is not None:
        error = np.abs(rendered["distance"] - distances[view])
        errors.append(error[np.isfinite(error)])
      if i < self._num_pictures:
        pictures.append((f"view{view:03d}", self._show(truth[view], rendered)))
    psnr, ssim = np.mean(np.asarray(quality, np.float64), axis=0)
    yield "psnr", psnr
    yield "ssim", ssim
    if distances is not None:
      yield "distance_error", np.concatenate(errors).mean(dtype=np.float64)
    yield from pictures

  def _show(self, truth, rendered) -> np.ndarray:
    """Arranges photograph, rendering and nearness, uint8[h, 3 w, 3]."""
    near, far = self._scene.near, self._scene.far
    nearness = (far - rendered["distance"]) / (far - near) * rendered["opacity"]
    nearness = np.repeat(nearness[..., None], 3, axis=-1)
    return render_images.to_uint8(
        np.concatenate([truth, rendered["rgb"], nearness], 1))
