"""Reads transforms.json: the cameras of scenes in the Blender format.

Values at the top of the file hold for all frames; a frame may have its own.
`blender.py` says which ones there are.
"""

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any, NamedTuple

import numpy as np

from big_vision.datasets import core
from big_vision.datasets import data_files
from big_vision.proj.nerf import lenses as lenses_lib

_SUFFIXES = (".png", ".jpg", ".jpeg")
# COLMAP's names of models that `lenses` covers.
_MODELS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
_UNSUPPORTED = ("k3", "k4", "k5", "k6", "is_fisheye")


class Transforms(NamedTuple):
  """The content of a transforms.json.

  Attributes:
    fname: Name of the file.
    shared: Values for all frames.
    frames: Frames, in their order.
    poses: float64[n, 3, 4], camera-to-world.
  """
  fname: str
  shared: Mapping[str, Any]
  frames: Sequence[Mapping[str, Any]]
  poses: np.ndarray

  def select(self, indices: Sequence[int]) -> "Transforms":
    """Returns the frames with these indices."""
    return self._replace(
        frames=[self.frames[i] for i in indices], poses=self.poses[indices])

  def images(self, folder: str) -> list[str]:
    """Returns the files of the images; names without a suffix are PNGs."""
    paths = [frame["file_path"] for frame in self.frames]
    return [os.path.join(folder, path if path.lower().endswith(_SUFFIXES) else
                         f"{path}.png") for path in paths]

  def has_intrinsics(self) -> bool:
    """Returns whether focal lengths are in pixels, as in real captures."""
    return any("fl_x" in {**self.shared, **frame} for frame in self.frames)

  def lenses(self, height: int, width: int) -> np.ndarray:
    """Returns the lens of each frame, float64[n, 8], see `lenses`.

    Args:
      height, width: Size of the stored images, pixels.

    Raises:
      DataError: A lens is incomplete, of an unsupported model or for images of
        another size; the error names the frame.
    """
    found = []
    for frame in self.frames:
      where = f"{self.fname}, frame {frame['file_path']!r}"
      found.append(_lens({**self.shared, **frame}, height, width, where))
    return np.stack(found)


def read(fname: str) -> Transforms:
  """Reads a transforms.json.

  Raises:
    DataError: The file is damaged, not in the Blender format, or a matrix is
      not a rotation; the error names the frame.
  """
  try:
    with data_files.open_file(fname) as file:
      content = json.load(file)
  except (OSError, ValueError) as error:
    raise core.DataError(f"Failed to read {fname}: {error}") from error
  try:
    frames = content["frames"]
    names = [str(frame["file_path"]) for frame in frames]
    poses = np.asarray(
        [frame["transform_matrix"] for frame in frames], np.float64)
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise core.DataError(
        f"{fname} is not in the Blender format, which has frames with "
        f"file_path and transform_matrix: {error!r}.") from error
  if not frames:
    raise core.DataError(f"{fname} has no frames.")
  if poses.shape not in ((len(frames), 4, 4), (len(frames), 3, 4)):
    raise core.DataError(
        f"{fname}: every transform_matrix must be 4 x 4; all of them together "
        f"have shape {poses.shape}.")
  rotations = poses[:, :3, :3]
  # Published matrices are rounded to float32.
  is_rotation = np.abs(
      rotations @ rotations.swapaxes(1, 2) - np.eye(3)).max((1, 2)) < 1e-3
  is_rotation &= np.linalg.det(rotations) > 0
  if not np.all(is_rotation):
    bad = int(np.argmin(is_rotation))
    raise core.DataError(
        f"{fname}: the transform_matrix of {names[bad]!r} is not a rotation: "
        f"{rotations[bad].tolist()}.")
  return Transforms(
      fname=fname, shared={key: value for key, value in content.items()
                           if key != "frames"},
      frames=frames, poses=poses[:, :3])


def _lens(values: Mapping[str, Any], height: int, width: int, where: str):
  """Returns one lens, float64[8]; raises DataErrors that begin with `where`."""
  def number(key, default=None):
    value = values.get(key, default)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (is_number and np.isfinite(value)):
      raise core.DataError(f"{where}: {key} is {value!r}, not a number.")
    return value

  def angle(key):
    value = number(key)
    if value is not None and not 0 < value < np.pi:
      raise core.DataError(
          f"{where}: {key} is {value}; radians in (0, pi) are needed.")
    return value

  model = values.get("camera_model", "OPENCV")
  if model not in _MODELS or any(values.get(key) for key in _UNSUPPORTED):
    given = {key: values[key] for key in ("camera_model", *_UNSUPPORTED)
             if values.get(key)}
    raise core.DataError(
        f"{where}: the camera {given} is not supported. Cameras of "
        f"{list(_MODELS)} with k1, k2, p1, p2 are; undistort other images.")
  for key, size in (("w", width), ("h", height)):
    if number(key, size) != size:
      raise core.DataError(
          f"{where}: the camera is for images with {key}={values[key]}, but "
          f"the image has {size}. Intrinsics must be those of the images.")
  angle_x, angle_y = angle("camera_angle_x"), angle("camera_angle_y")
  fl_x = number("fl_x")
  if fl_x is None:
    if angle_x is None:
      raise core.DataError(
          f"{where}: neither fl_x nor camera_angle_x gives a focal length.")
    fl_x = 0.5 * width / np.tan(0.5 * angle_x)
  fl_y = number("fl_y")
  if fl_y is None:
    fl_y = fl_x if angle_y is None or "fl_x" in values else (
        0.5 * height / np.tan(0.5 * angle_y))
  if min(fl_x, fl_y) <= 0:
    raise core.DataError(
        f"{where}: fl_x={fl_x} and fl_y={fl_y} must be positive.")
  lens = np.asarray([
      fl_x, fl_y, number("cx", width / 2), number("cy", height / 2),
      *(number(key, 0.0) for key in lenses_lib.FIELDS[4:])], np.float64)
  if lens[4:].any():
    error = lenses_lib.largest_error(lens, height, width)
    if not error < 0.1:
      raise core.DataError(
          f"{where}: the distortion {dict(zip(lenses_lib.FIELDS, lens))} folds "
          f"images of {height} x {width} pixels: it has no inverse.")
  return lens
