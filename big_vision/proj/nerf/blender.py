"""The Blender format, in which NeRF's synthetic scenes are published.

  FOLDER/transforms_{train,val,test}.json
  FOLDER/train/r_0.png, ...

The JSON has "camera_angle_x", the horizontal angle of view in radians, and
"frames" with "file_path" (without ".png", relative to FOLDER) and
"transform_matrix", 4 x 4, camera-to-world. `tools.make_scene` writes it too,
with the distances that it knows, r_0_distance.npy, beside the images.
"""

import json
import os

import numpy as np

from big_vision import config as config_lib
from big_vision import ranges
from big_vision.datasets import core
from big_vision.proj.nerf import cameras
from big_vision.proj.nerf import scenes


def open_source(
    path: str, split: str, factor: ranges.Count = 1, skip: ranges.Count = 1,
    white_background: bool = True, pixel_center: bool = False,
    near: ranges.NotNegative = 2.0, far: ranges.Positive = 6.0) -> scenes.Scene:
  """Opens a scene in the Blender format.

  Args:
    path: Folder of the scene.
    split: "train", "val" or "test".
    factor: Factor by which images shrink; the published `half_res` is 2.
    skip: Stride over the images; 8 takes every eighth, from the first one on.
    white_background: Whether transparent pixels show white rather than black.
    pixel_center: Whether rays pass through pixel centres, see `cameras.Camera`.
    near, far: Range of distances along rays; published scenes lie between 2
      and 6.

  Raises:
    ConfigError: the folder or split does not exist, or an option is invalid.
    DataError: the JSON is damaged or images are missing; names them.
  """
  scenes.check_factor(factor)
  if not isinstance(skip, int) or skip < 1:
    raise config_lib.ConfigError(
        f"skip={skip!r}; 1 takes every image, 8 every eighth.")
  if not 0 <= near < far:
    raise config_lib.ConfigError(
        f"near={near}, far={far}: 0 <= near < far is needed.")
  fname = os.path.join(path, f"transforms_{split}.json")
  if not os.path.exists(fname):
    found = (f"the folder has {sorted(os.listdir(path))[:10]}"
             if os.path.isdir(path) else f"{path} is not a folder")
    raise config_lib.ConfigError(
        f"There is no {fname}; {found}. A scene in the Blender format has "
        "transforms_{train,val,test}.json; python -m "
        "big_vision.tools.make_scene makes one.")
  angle, files, poses = _read(fname)
  images = [os.path.join(path, f"{file}.png") for file in files[::skip]]
  scenes.check_files(images, f"that {fname} names")
  h, w = scenes.image_size(images[0])
  if min(h, w) < factor:
    raise config_lib.ConfigError(
        f"factor={factor} is larger than the images, which are {h} x {w} "
        "pixels.")
  camera = cameras.Camera(
      height=h // factor, width=w // factor,
      focal=0.5 * w / np.tan(0.5 * angle) / factor, pixel_center=pixel_center)
  distances = [f"{image.removesuffix('.png')}_distance.npy" for image in images]
  known = factor == 1 and all(map(os.path.exists, distances))
  return scenes.Scene(
      camera, poses[::skip], images, near=near, far=far,
      focus=np.linalg.norm(poses[:, :, 3], axis=1).mean(),
      background=1.0 if white_background else 0.0, factor=factor,
      distance_fnames=distances if known else None)


def _read(fname: str) -> tuple[float, list[str], np.ndarray]:
  """Reads (angle of view, files, poses float64[n, 3, 4]) from a JSON file."""
  try:
    with open(fname, encoding="utf-8") as file:
      content = json.load(file)
  except (OSError, ValueError) as error:
    raise core.DataError(f"{fname} cannot be read: {error}") from error
  try:
    angle = float(content["camera_angle_x"])
    frames = content["frames"]
    files = [frame["file_path"].removesuffix(".png") for frame in frames]
    poses = np.asarray(
        [frame["transform_matrix"] for frame in frames], np.float64)
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise core.DataError(
        f"{fname} is not in the Blender format, which has camera_angle_x, and "
        f"frames with file_path and transform_matrix: {error!r}.") from error
  if not frames:
    raise core.DataError(f"{fname} has no frames.")
  if not 0 < angle < np.pi:
    raise core.DataError(
        f"{fname}: camera_angle_x is {angle}; radians in (0, pi) are needed.")
  if poses.shape != (len(frames), 4, 4):
    raise core.DataError(
        f"{fname}: every transform_matrix must be 4 x 4; all of them together "
        f"have shape {poses.shape}.")
  rotations = poses[:, :3, :3]
  # Published matrices are rounded to float32.
  is_rotation = np.abs(
      rotations @ rotations.swapaxes(1, 2) - np.eye(3)).max((1, 2)) < 1e-3
  if not np.all(is_rotation & (np.linalg.det(rotations) > 0)):
    bad = int(np.argmin(is_rotation & (np.linalg.det(rotations) > 0)))
    raise core.DataError(
        f"{fname}: the transform_matrix of {files[bad]!r} is not a rotation: "
        f"{rotations[bad].tolist()}.")
  return angle, files, poses[:, :3]
