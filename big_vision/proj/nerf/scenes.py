"""Scenes: photographs of one object or place, with their cameras.

A scene is a source whose examples are rays. Example i holds only the number i,
as "ray"; it stands for pixel i mod (height * width), counted row by row, of
image i div (height * width). The cameras and images that turn the number into a
ray and a colour are kept on the devices, see `radiance_field`.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from big_vision import config as config_lib
from big_vision.datasets import core
from big_vision.datasets import data_files
from big_vision.datasets import registry
from big_vision.proj.nerf import cameras


class Scene(core.IndexSource):
  """Images of one size and their cameras. Opening a scene reads no pixels.

  Args:
    camera: Properties that all cameras share.
    poses: float[n, 3, 4], camera-to-world, see `cameras`.
    lenses: float[n, 8], lens of each image, see `lenses`.
    fnames: Files of the images.
    near, far: Range of distances along a ray that holds the whole scene.
    focus: Distance in front of the mean camera at which a camera path looks.
    background: Grey value in [0, 1] behind everything; images with alpha are
      composited over it when they are read.
    factor: Factor by which the stored images are larger than the camera's.
    distance_fnames: Files of known distances, see `distances`; None if unknown.

  Raises:
    DataError: There are no images, or more rays than int32 can count.
  """

  def __init__(
      self, camera: cameras.Camera, poses: np.ndarray, lenses: np.ndarray,
      fnames: Sequence[str], *, near: float, far: float, focus: float,
      background: float, factor: int,
      distance_fnames: Sequence[str] | None = None):
    super().__init__(len(fnames) * camera.height * camera.width, "ray")
    if not 0 < len(self) < 2 ** 31:
      raise core.DataError(
          f"A scene of {len(fnames)} images of {camera.height} x "
          f"{camera.width} has {len(self)} rays; it must have between 1 and "
          "2**31 - 1. Leave out some, or set a larger `factor`.")
    self.camera = camera
    self.poses = np.asarray(poses, np.float32)
    self.lenses = np.asarray(lenses, np.float32)
    self.near, self.far, self.focus = float(near), float(far), float(focus)
    self.background = background
    self._fnames, self._factor = list(fnames), factor
    check_files(self._fnames, "of the scene")
    self._distance_fnames = distance_fnames

  def describe(self, index):
    image, pixel = divmod(index, self.camera.height * self.camera.width)
    return (f"{self._fnames[image]} row {pixel // self.camera.width} column "
            f"{pixel % self.camera.width}")

  def images(self) -> np.ndarray:
    """Reads all images: float32[n, h, w, 3] in [0, 1], over the background.

    Raises:
      DataError: A file is unreadable or of another size; the error names it.
    """
    size = (self.camera.height, self.camera.width)
    return np.stack([
        composite_over(
            self.background,
            shrink(read_image(fname), self._factor, size, fname))
        for fname in self._fnames])

  def distances(self) -> np.ndarray | None:
    """Reads the distance from the camera to what each pixel shows, if known.

    Returns:
      float32[n, h, w], world units, NaN where a pixel shows the background; or
      None for scenes without known distances.

    Raises:
      DataError: A file is unreadable or of another size; the error names it.
    """
    if self._distance_fnames is None:
      return None
    maps = []
    for fname in self._distance_fnames:
      try:
        with data_files.open_file(fname) as file:
          values = np.load(file, allow_pickle=False)
      except (OSError, ValueError, EOFError) as error:
        raise core.DataError(f"Failed to read {fname}: {error}") from error
      if values.shape != (self.camera.height, self.camera.width):
        raise core.DataError(
            f"{fname} has shape {values.shape}; its image has "
            f"{(self.camera.height, self.camera.width)}.")
      maps.append(values.astype(np.float32))
    return np.stack(maps)


def open_scene(data) -> Scene:
  """Opens the scene that a config's `data` names.

  Raises:
    ConfigError: The source is not a scene, or its options are invalid.
    DataError: The scene's files are missing or damaged.
  """
  scene = registry.open_source(**data)
  if not isinstance(scene, Scene):
    raise config_lib.ConfigError(
        f"data(name={data['name']!r}) is not a scene with cameras; "
        "'proj.nerf.blender' and 'proj.nerf.llff' are.")
  return scene


def read_image(fname: str) -> np.ndarray:
  """Reads an image file: float32[h, w, 3 or 4] in [0, 1].

  Raises:
    DataError: The file is missing, damaged, or neither 8-bit RGB nor RGBA.
  """
  try:
    with Image.open(fname) as image:
      if image.mode not in ("RGB", "RGBA"):
        raise core.DataError(
            f"{fname} is an image of mode {image.mode!r}; 8-bit RGB or RGBA is "
            "needed.")
      return np.asarray(image, np.float32) / 255
  except (OSError, SyntaxError, Image.DecompressionBombError) as error:
    raise core.DataError(f"Failed to read {fname}: {error}") from error


def image_size(fname: str) -> tuple[int, int]:
  """Reads (height, width) from the header of an image file.

  Raises:
    DataError: The file is missing or not an image.
  """
  check_files([fname], "to open")  # Opening a pipe would wait for ever.
  try:
    with Image.open(fname) as image:
      return image.height, image.width
  except (OSError, Image.DecompressionBombError) as error:
    raise core.DataError(f"Failed to read {fname}: {error}") from error


def shrink(
    image: np.ndarray, factor: int, size: tuple[int, int], fname: str
) -> np.ndarray:
  """Averages blocks of `factor` x `factor` pixels, weighting colour by alpha.

  Args:
    image: float32[h, w, 3 or 4].
    factor: Positive integer.
    size: (height, width) of the result; rows and columns that do not fill a
      block are cut off.
    fname: Name of the file, for the error message.

  Raises:
    DataError: The image has another size.
  """
  h, w, c = image.shape
  if (h // factor, w // factor) != size:
    raise core.DataError(
        f"{fname} is {h} x {w} pixels; the scene's images are "
        f"{size[0] * factor} x {size[1] * factor}. All must have one size.")
  cut = image[:size[0] * factor, :size[1] * factor].reshape(
      size[0], factor, size[1], factor, c)
  if c == 3 or factor == 1:
    return cut.mean(axis=(1, 3))
  alpha = cut[..., 3:].mean(axis=(1, 3))
  colour = (cut[..., :3] * cut[..., 3:]).mean(axis=(1, 3))
  return np.concatenate([colour / np.maximum(alpha, 1e-6), alpha], axis=-1)


def composite_over(background: float, image: np.ndarray) -> np.ndarray:
  """Composites an image over a grey background: float32[h, w, 3].

  Alpha is straight, as in PNG files: colours are not yet multiplied by it. An
  image without alpha is returned unchanged.
  """
  if image.shape[-1] == 3:
    return image
  colour, alpha = image[..., :3], image[..., 3:]
  return colour * alpha + background * (1 - alpha)


def check_factor(factor: int):
  """Raises ConfigError unless `factor` is a positive integer."""
  if not isinstance(factor, int) or factor < 1:
    raise config_lib.ConfigError(
        f"factor={factor!r}: images shrink by a positive integer.")


def indices_of_split(num_images: int, split: str, hold_out: int) -> list[int]:
  """Returns the images of a split where every `hold_out`-th is for testing.

  Args:
    num_images: Number of all images.
    split: "test" for every `hold_out`-th image, from the first one on; "train"
      for the others.
    hold_out: Stride of the images for testing, at least 2.

  Raises:
    ConfigError: The split or the stride is invalid.
  """
  if split not in ("train", "test"):
    raise config_lib.ConfigError(
        f"There is no split {split!r}; this scene has 'train' and 'test'.")
  if not isinstance(hold_out, int) or hold_out < 2:
    raise config_lib.ConfigError(
        f"hold_out={hold_out!r} must be an integer of at least 2: 8 holds out "
        "every eighth image.")
  return [i for i in range(num_images)
          if (i % hold_out == 0) == (split == "test")]


def check_files(fnames: Sequence[str], why: str):
  """Raises a DataError that names files that are missing or not regular."""
  missing = [fname for fname in fnames if data_files.find_unreadable([fname])]
  if missing:
    raise core.DataError(
        f"{len(missing)} of {len(fnames)} files {why} are missing, not regular "
        "or too large: "
        f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}.")
