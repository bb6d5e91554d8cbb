"""A film of the scene, from a camera that flies around or through it."""

from collections.abc import Callable, Iterator, Mapping
import os
from typing import Any

import jax
from PIL import Image

from big_vision import config as config_lib
from big_vision.proj.nerf import cameras
from big_vision.proj.nerf import images
from big_vision.proj.nerf import scenes


class Evaluator:
  """Writes an animated GIF; no metric.

  Args:
    predict_fn: see `views.Evaluator`.
    batch_sharding: of the rays.
    batch_size: rays that are rendered at a time, over all devices.
    data: a scene, whose cameras say where the path is.
    outfile: of the GIF, as "{workdir}/{name}.gif".
    kind: "orbit", around the scene, or "spiral", in front of it.
    num_frames: of the film, which repeats for ever.
    frames_per_second: GIF counts hundredths of a second.

  Raises:
    ConfigError: an unknown kind, no frames, `data` that is no scene.
  """

  def __init__(
      self, predict_fn: Callable, *,
      batch_sharding: jax.sharding.NamedSharding, batch_size: int,
      data: Mapping[str, Any], outfile: str, kind: str = "orbit",
      num_frames: int = 40, frames_per_second: float = 12.5):
    scene = scenes.open_scene(data)
    if num_frames < 1 or frames_per_second <= 0:
      raise config_lib.ConfigError(
          f"num_frames={num_frames} and frames_per_second="
          f"{frames_per_second} must be positive.")
    if kind == "orbit":
      self._poses = cameras.orbit(scene.poses, num_frames)
    elif kind == "spiral":
      self._poses = cameras.spiral(scene.poses, scene.focus, num_frames)
    else:
      raise config_lib.ConfigError(
          f"Unknown kind of path {kind!r}; use 'orbit' or 'spiral'.")
    self._outfile, self._milliseconds = outfile, 1000 / frames_per_second
    self._render = images.make_renderer(
        predict_fn, scene.camera, batch_sharding, batch_size)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Writes the file, all of it or nothing; yields nothing."""
    frames = [Image.fromarray(images.to_uint8(self._render(state, pose)["rgb"]))
              for pose in self._poses]
    if jax.process_index() == 0:
      os.makedirs(os.path.dirname(self._outfile) or ".", exist_ok=True)
      frames[0].save(
          f"{self._outfile}.tmp", "GIF", save_all=True,
          append_images=frames[1:], duration=self._milliseconds, loop=0)
      os.replace(f"{self._outfile}.tmp", self._outfile)
    yield from ()
