"""The LLFF format: photographs with cameras from structure-from-motion.

  FOLDER/poses_bounds.npy
  FOLDER/images/*.jpg
  FOLDER/images_8/*.png, smaller copies, if there are any

A row of poses_bounds.npy has 17 numbers: a 3 x 5 matrix, [R | o | (height,
width, focal)], whose rotation has the axes (down, right, backward), and the
nearest and farthest distance that the camera sees.

Source: Fusion/LLFF and bmild/nerf `load_llff.py`.
"""

import os

import numpy as np

from big_vision import config as config_lib
from big_vision import ranges
from big_vision.datasets import core
from big_vision.datasets import data_files
from big_vision.proj.nerf import cameras
from big_vision.proj.nerf import lenses
from big_vision.proj.nerf import scenes

_SUFFIXES = (".jpg", ".jpeg", ".png")
# Scenes are scaled so that the nearest point is at distance 1 / 0.75: then the
# near plane of normalized device coordinates, at 1, cuts nothing off.
_BOUND_SCALE = 0.75


def open_source(
    path: str, split: str, factor: ranges.Count = 8,
    hold_out: ranges.CountOrZero = 8,
    spherify: bool = False, ndc: bool = True, pixel_center: bool = False
) -> scenes.Scene:
  """Opens a scene in the LLFF format.

  Args:
    path: Folder of the scene.
    split: "test" for every `hold_out`-th image, from the first one on; "train"
      for the others.
    factor: Factor by which images shrink; the folder images_{factor} is used if
      it exists.
    hold_out: Stride of the images that are held out for testing.
    spherify: Whether the cameras stand around an object: moves the object to
      the origin and the cameras to about the unit sphere. Otherwise world
      coordinates are those of the mean camera.
    ndc: Whether rays are rendered in normalized device coordinates, where the
      scene lies between 0 and 1; the trainer needs the same setting.
    pixel_center: Whether rays pass through pixel centres, see `cameras.Camera`.

  Raises:
    ConfigError: The folder or split does not exist, or an option is invalid.
    DataError: poses_bounds.npy is damaged, or does not belong to the images.
  """
  scenes.check_factor(factor)
  if spherify and ndc:
    raise config_lib.ConfigError(
        "ndc=True is for cameras that all look forward, spherify=True for "
        "cameras around an object; set one of them.")
  images, stored = _find_images(path, factor)
  chosen = scenes.indices_of_split(len(images), split, hold_out)
  poses, (height, width, focal), bounds = _read(path, len(images))
  if ndc:
    _check_forward(path, poses)
  scale = 1 / (bounds.min() * _BOUND_SCALE)
  poses[:, :, 3] *= scale
  bounds = bounds * scale
  if spherify:
    # The published code recenters first. That only turns the result about z,
    # and cameras on a full circle have no mean direction.
    poses, radius_scale = spherify_poses(poses)
    bounds = bounds * radius_scale
  else:
    poses = recenter(poses)
  # As published: a harmonic mean of 0.9 times the nearest distance and 5 times
  # the farthest.
  focus = 1 / (0.25 / (0.9 * bounds.min()) + 0.75 / (5 * bounds.max()))
  near, far = (0.0, 1.0) if ndc else (0.9 * bounds.min(), bounds.max())
  h, w = scenes.image_size(images[0])
  if stored == factor:  # These are smaller copies; sizes may be rounded.
    h, w, left = h, w, 1
  else:
    h, w, left = h // factor, w // factor, factor
  if not (abs(h - height / factor) < 1 and abs(w - width / factor) < 1):
    raise core.DataError(
        f"{images[0]} gives images of {h} x {w} pixels at factor={factor}; the "
        f"cameras of {os.path.join(path, 'poses_bounds.npy')} have "
        f"{height:g} x {width:g}, which gives {height / factor:g} x "
        f"{width / factor:g}.")
  camera = cameras.Camera(height=h, width=w, pixel_center=pixel_center)
  lens = lenses.pinhole(h, w, focal / factor)
  return scenes.Scene(
      camera, poses[chosen], np.tile(lens, (len(chosen), 1)),
      [images[i] for i in chosen], near=near, far=far, focus=focus,
      background=0.0, factor=left)


def _find_images(path: str, factor: int) -> tuple[list[str], int]:
  """Finds the images: (sorted files, factor by which they are smaller)."""
  for folder, stored in ((f"images_{factor}", factor), ("images", 1)):
    folder = os.path.join(path, folder)
    if os.path.isdir(folder):
      files = [os.path.join(folder, name) for name in sorted(os.listdir(folder))
               if name.lower().endswith(_SUFFIXES)]
      if not files:
        raise core.DataError(
            f"{folder} has no images with a suffix of {list(_SUFFIXES)}.")
      return files, stored
  raise config_lib.ConfigError(
      f"{path} has neither a folder images_{factor} nor a folder images. A "
      "scene in the LLFF format has poses_bounds.npy and images.")


def _read(path: str, num_images: int):
  """Reads poses_bounds.npy.

  Returns:
    poses: float64[n, 3, 4], in the convention of `cameras`.
    size: (height, width, focal) of all cameras.
    bounds: float64[n, 2], nearest and farthest distance of each camera.
  """
  fname = os.path.join(path, "poses_bounds.npy")
  try:
    with data_files.open_file(fname) as file:
      rows = np.asarray(np.load(file, allow_pickle=False), np.float64)
  except (OSError, ValueError, EOFError) as error:
    raise core.DataError(f"Failed to read {fname}: {error}") from error
  if rows.ndim != 2 or rows.shape[1] != 17:
    raise core.DataError(
        f"{fname} has shape {rows.shape}; the LLFF format has (images, 17).")
  if len(rows) != num_images:
    raise core.DataError(
        f"{fname} has {len(rows)} cameras, but there are {num_images} images "
        f"in {path}.")
  bounds = rows[:, 15:]
  if not np.all(np.isfinite(rows)) or not np.all(
      (0 < bounds[:, 0]) & (bounds[:, 0] < bounds[:, 1])):
    raise core.DataError(
        f"{fname}: the nearest and farthest distances of each camera must be "
        "positive, finite and ascending.")
  matrices = rows[:, :15].reshape(-1, 3, 5)
  sizes = matrices[:, :, 4]
  if np.abs(sizes - sizes[0]).max() > 1e-3 * sizes[0].max():
    raise core.DataError(
        f"{fname}: all cameras must share one (height, width, focal length); "
        f"there are {np.unique(sizes.round(3), axis=0).tolist()}.")
  down, right, backward, position = np.moveaxis(matrices[:, :, :4], 2, 0)
  poses = np.stack([right, -down, backward, position], axis=2)
  return poses, tuple(sizes[0]), bounds


def _check_forward(path: str, poses: np.ndarray):
  """Raises ConfigError if two cameras look more than 90 degrees apart.

  Normalized device coordinates only hold what lies in front of all cameras.
  """
  cosines = poses[:, :, 2] @ poses[:, :, 2].T
  if cosines.min() < 0:
    i, j = np.unravel_index(cosines.argmin(), cosines.shape)
    angle = np.degrees(np.arccos(np.clip(cosines[i, j], -1, 1)))
    raise config_lib.ConfigError(
        f"Cameras {min(i, j)} and {max(i, j)} of {path} look {angle:.0f} "
        "degrees apart, but ndc=True is for cameras that all look forward. "
        "For cameras around an object set spherify=True, ndc=False in the data "
        "and config.ndc=False.")


def recenter(poses: np.ndarray) -> np.ndarray:
  """Moves poses float64[n, 3, 4] to the coordinates of their mean camera."""
  mean = _square(cameras.average(poses)[None])[0]
  return (np.linalg.inv(mean) @ _square(poses))[:, :3]


def spherify_poses(poses: np.ndarray) -> tuple[np.ndarray, float]:
  """Moves an object that cameras look at to the origin; scales to unit radius.

  The centre of the object is the point nearest to all optical axes. The z axis
  points from there to the mean position of the cameras.

  Args:
    poses: float64[n, 3, 4].

  Returns:
    poses: float64[n, 3, 4], with root mean square distance 1 from the origin.
    scale: Factor by which distances were multiplied.

  Source: bmild/nerf `spherify_poses`.
  """
  axes, positions = poses[:, :, 2], poses[:, :, 3]
  # The point x of least squared distance to all axes solves sum P (x - o) = 0,
  # where P projects onto the plane that is orthogonal to an axis.
  projections = np.eye(3) - axes[:, :, None] * axes[:, None, :]
  middle = np.linalg.solve(
      projections.sum(0), (projections @ positions[:, :, None]).sum(0)[:, 0])
  up = (positions - middle).mean(axis=0)
  up /= np.linalg.norm(up)
  # Any two axes orthogonal to up would do; these are the published ones.
  x = np.cross([0.1, 0.2, 0.3], up)
  x /= np.linalg.norm(x)
  frame = np.stack([x, np.cross(up, x), up, middle], axis=1)
  poses = (np.linalg.inv(_square(frame[None])) @ _square(poses))[:, :3]
  scale = 1 / np.sqrt((poses[:, :, 3] ** 2).sum(axis=1).mean())
  poses[:, :, 3] *= scale
  return poses, scale


def _square(poses: np.ndarray) -> np.ndarray:
  """Appends the row (0, 0, 0, 1): [n, 3, 4] -> [n, 4, 4]."""
  last = np.broadcast_to([0., 0, 0, 1], (len(poses), 1, 4))
  return np.concatenate([poses, last], axis=1)
