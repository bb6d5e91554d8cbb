"""A scene: photographs of one thing, with their cameras.

A scene is a source whose examples are rays: example i is pixel
i mod (height * width), row by row, of the image i div (height * width), and has
nothing but its number, "ray". What the number stands for, `poses` and
`images()`, is on the devices, see `proj/nerf`.
"""

from collections.abc import Sequence
import os

import numpy as np
from PIL import Image

from big_vision import config as config_lib
from big_vision.datasets import core
from big_vision.datasets import registry
from big_vision.proj.nerf import cameras


class Scene(core.IndexSource):
  """Images of one size and their cameras. Opening it reads no pixels.

  Args:
    camera: Camera of all images.
    poses: float[n, 3, 4], camera-to-world, see `cameras`.
    fnames: Files of the images.
    near, far: between which distances along a ray something may be.
    focus: distance in front of the mean camera at which a path looks.
    background: grey value in [0, 1] behind everything; images with alpha are
      put before it when they are read.
    factor: Factor by which stored images are larger than the camera's.
    distance_fnames: Files of known distances, see `distances`; None if unknown.

  Raises:
    DataError: there are no images, or more rays than int32 can count.
  """

  def __init__(
      self, camera: cameras.Camera, poses: np.ndarray, fnames: Sequence[str], *,
      near: float, far: float, focus: float, background: float, factor: int,
      distance_fnames: Sequence[str] | None = None):
    super().__init__(len(fnames) * camera.height * camera.width, "ray")
    if not 0 < len(self) < 2 ** 31:
      raise core.DataError(
          f"A scene of {len(fnames)} images of {camera.height} x "
          f"{camera.width} has {len(self)} rays; it must have between 1 and "
          "2**31 - 1. Leave out some, or set a larger `factor`.")
    self.camera = camera
    self.poses = np.asarray(poses, np.float32)
    self.near, self.far, self.focus = float(near), float(far), float(focus)
    self.background = background
    self._fnames, self._factor = list(fnames), factor
    self._distance_fnames = distance_fnames

  def describe(self, index):
    image, pixel = divmod(index, self.camera.height * self.camera.width)
    return (f"{self._fnames[image]} row {pixel // self.camera.width} column "
            f"{pixel % self.camera.width}")

  def images(self) -> np.ndarray:
    """All images, float32[n, h, w, 3] in [0, 1], before the background.

    Raises:
      DataError: one cannot be read or has another size; names it.
    """
    size = (self.camera.height, self.camera.width)
    return np.stack([
        before(shrink(read_image(fname), self._factor, size, fname),
               self.background) for fname in self._fnames])

  def distances(self) -> np.ndarray | None:
    """How far from the camera light comes from, where that is known.

    Returns:
      float32[n, h, w], world units, NaN where there is nothing; or None.

    Raises:
      DataError: a file cannot be read or has another size; names it.
    """
    if self._distance_fnames is None:
      return None
    maps = []
    for fname in self._distance_fnames:
      try:
        values = np.load(fname, allow_pickle=False)
      except (OSError, ValueError, EOFError) as error:
        raise core.DataError(f"{fname} cannot be read: {error}") from error
      if values.shape != (self.camera.height, self.camera.width):
        raise core.DataError(
            f"{fname} has the shape {values.shape}; its image has "
            f"{(self.camera.height, self.camera.width)}.")
      maps.append(values.astype(np.float32))
    return np.stack(maps)


def open_scene(data) -> Scene:
  """The scene that a config's `data` names.

  Raises:
    ConfigError: it names a source that is no scene.
    ConfigError, DataError: as the source does.
  """
  scene = registry.open_source(**data)
  if not isinstance(scene, Scene):
    raise config_lib.ConfigError(
        f"data(name={data['name']!r}) is no scene with cameras; "
        "'proj.nerf.blender' and 'proj.nerf.llff' are.")
  return scene


def read_image(fname: str) -> np.ndarray:
  """float32[h, w, 3 or 4] in [0, 1] of an image file.

  Raises:
    DataError: it is not there, damaged, or neither RGB nor RGBA of 8 bits.
  """
  try:
    with Image.open(fname) as image:
      if image.mode not in ("RGB", "RGBA"):
        raise core.DataError(
            f"{fname} is an image of mode {image.mode!r}; RGB or RGBA of 8 "
            "bits is needed.")
      return np.asarray(image, np.float32) / 255
  except (OSError, SyntaxError) as error:
    raise core.DataError(f"{fname} cannot be read: {error}") from error


def image_size(fname: str) -> tuple[int, int]:
  """(height, width) of an image file, from its header.

  Raises:
    DataError: it is not there, or no image.
  """
  try:
    with Image.open(fname) as image:
      return image.height, image.width
  except OSError as error:
    raise core.DataError(f"{fname} cannot be read: {error}") from error


def shrink(
    image: np.ndarray, factor: int, size: tuple[int, int], fname: str
) -> np.ndarray:
  """Means over `factor` x `factor` pixels; colours count by their alpha.

  Args:
    image: float32[h, w, 3 or 4].
    factor: a positive integer.
    size: Size of the result; rows and columns that fill no pixel are cut off.
    fname: for the message.

  Raises:
    DataError: the image has another size.
  """
  h, w, c = image.shape
  if (h // factor, w // factor) != size:
    raise core.DataError(
        f"{fname} is {h} x {w} pixels; the scene's images are "
        f"{size[0] * factor} x {size[1] * factor}. All must be of one size.")
  cut = image[:size[0] * factor, :size[1] * factor].reshape(
      size[0], factor, size[1], factor, c)
  if c == 3 or factor == 1:
    return cut.mean(axis=(1, 3))
  alpha = cut[..., 3:].mean(axis=(1, 3))
  colour = (cut[..., :3] * cut[..., 3:]).mean(axis=(1, 3))
  return np.concatenate([colour / np.maximum(alpha, 1e-6), alpha], axis=-1)


def before(image: np.ndarray, background: float) -> np.ndarray:
  """float32[h, w, 3]: an image with alpha before a grey background.

  Alpha is straight, as PNG has it: colours are not multiplied by it yet.
  """
  if image.shape[-1] == 3:
    return image
  colour, alpha = image[..., :3], image[..., 3:]
  return colour * alpha + background * (1 - alpha)


def check_factor(factor: int):
  """Raises ConfigError unless images can be made smaller by it."""
  if not isinstance(factor, int) or factor < 1:
    raise config_lib.ConfigError(
        f"factor={factor!r}: images are made smaller by a positive integer.")


def check_files(fnames: Sequence[str], why: str):
  """Raises DataError that names files that are not there."""
  missing = [fname for fname in fnames if not os.path.exists(fname)]
  if missing:
    raise core.DataError(
        f"{len(missing)} of {len(fnames)} files {why} are missing: "
        f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}.")
