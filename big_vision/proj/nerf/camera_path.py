"""A film of a scene, seen from a camera that flies around or through it."""

from collections.abc import Callable, Iterator, Mapping
import io
from typing import Any

import jax
import numpy as np
from PIL import Image

from big_vision import config as config_lib
from big_vision import files
from big_vision import ranges
from big_vision.evaluators import harness
from big_vision.proj.nerf import cameras
from big_vision.proj.nerf import render_images
from big_vision.proj.nerf import scenes


class Evaluator:
  """Renders a film and writes it as an animated GIF; no metric.

  Needs a predict function as `novel_views.Evaluator` does.
  """

  def __init__(
      self, predict_fn: Callable, loader: harness.Loader, *,
      data: Mapping[str, Any], outfile: str, kind: str = "orbit",
      num_frames: ranges.Count = 40, frames_per_second: ranges.Positive = 12.5):
    """Opens the scene and plans the path; compiles nothing yet.

    Args:
      predict_fn: (state, rays, rng=) -> {"rgb", "opacity", "distance"}, not
        jitted.
      loader: Compiles; its batch size is the number of rays in a chunk.
      data: A scene, whose cameras determine the path.
      outfile: Name of the GIF, for example "{workdir}/{name}.gif".
      kind: "orbit", around the scene, or "spiral", in front of it.
      num_frames: Number of frames in the film, which repeats forever.
      frames_per_second: Speed of the film; GIF rounds the time of a frame to
        hundredths of a second.

    Raises:
      ConfigError: An unknown kind, no frames, or `data` is not a scene.
    """
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
    # Frames have the first camera's lens, but no distortion.
    self._lens = np.where(np.arange(8) < 4, scene.lenses[0], 0)
    self._outfile, self._milliseconds = outfile, 1000 / frames_per_second
    self._render = render_images.make_renderer(
        predict_fn, scene.camera._replace(is_distorted=False), loader)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Writes the whole file or none; yields nothing."""
    frames = [
        Image.fromarray(render_images.to_uint8(
            self._render(state, pose, self._lens, number)["rgb"]))
        for number, pose in enumerate(self._poses)]
    if jax.process_index() == 0:
      stream = io.BytesIO()
      frames[0].save(
          stream, "GIF", save_all=True, append_images=frames[1:],
          duration=self._milliseconds, loop=0)
      files.make_directory(files.as_path(self._outfile).parent)
      files.write_bytes(self._outfile, stream.getvalue())
    yield from ()
