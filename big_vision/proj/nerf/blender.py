"""The Blender format, in which NeRF's synthetic scenes are published.

  FOLDER/transforms_{train,val,test}.json
  FOLDER/train/r_0.png, ...

The JSON has "camera_angle_x", the horizontal angle of view in radians, and
"frames" with "file_path" (relative to FOLDER; without a suffix it is a PNG) and
"transform_matrix", 4 x 4, camera-to-world. `tools.make_scene` writes it too,
with the distances that it knows, r_0_distance.npy, beside the images.

Captures of real scenes, as instant-ngp and nerfstudio write them, have one file
for all images, FOLDER/transforms.json, and intrinsics in pixels: "fl_x",
"fl_y", "cx", "cy", and the distortion "k1", "k2", "p1", "p2", see `lenses`.
Each frame may have its own. "train_filenames", "test_filenames" list the images
of a split; without them every eighth image is for testing.
"""

import os

import numpy as np

from big_vision import config as config_lib
from big_vision import ranges
from big_vision.proj.nerf import cameras
from big_vision.proj.nerf import scenes
from big_vision.proj.nerf import transforms


def open_source(
    path: str, split: str, factor: ranges.Count = 1, skip: ranges.Count = 1,
    white_background: bool = True, pixel_center: bool | None = None,
    near: ranges.NotNegative = 2.0, far: ranges.Positive = 6.0,
    hold_out: ranges.Count = 8) -> scenes.Scene:
  """Opens a scene in the Blender format.

  Args:
    path: Folder of the scene.
    split: "train", "val" or "test".
    factor: Factor by which images shrink; the published `half_res` is 2.
    skip: Stride over the images; 8 takes every eighth, from the first one on.
    white_background: Whether transparent pixels show white rather than black.
    pixel_center: Whether rays pass through pixel centres, see `cameras.Camera`.
      None is True with intrinsics in pixels, which place the centre of the
      first pixel at (.5, .5), and False without them, as published.
    near, far: Range of distances along rays; published scenes lie between 2
      and 6.
    hold_out: Stride of the images for testing in a transforms.json without
      lists of names.

  Raises:
    ConfigError: The folder or split does not exist, or an option is invalid.
    DataError: The JSON is damaged, its cameras are not supported, or images are
      missing; the error names them.
  """
  scenes.check_factor(factor)
  if not isinstance(skip, int) or skip < 1:
    raise config_lib.ConfigError(
        f"skip={skip!r}; 1 takes every image, 8 every eighth.")
  if not 0 <= near < far:
    raise config_lib.ConfigError(
        f"near={near}, far={far}: 0 <= near < far is needed.")
  chosen = _read_split(path, split, hold_out)
  chosen = chosen.select(range(0, len(chosen.frames), skip))
  images = chosen.images(path)
  scenes.check_files(images, f"that {chosen.fname} names")
  h, w = scenes.image_size(images[0])
  if min(h, w) < factor:
    raise config_lib.ConfigError(
        f"factor={factor} is larger than the images, which are {h} x {w} "
        "pixels.")
  lenses = chosen.lenses(h, w)
  is_distorted = bool(lenses[:, 4:].any())
  lenses[:, :4] /= factor
  if pixel_center is None:
    pixel_center = chosen.has_intrinsics()
  camera = cameras.Camera(
      height=h // factor, width=w // factor, pixel_center=pixel_center,
      is_distorted=is_distorted)
  distances = [f"{os.path.splitext(image)[0]}_distance.npy" for image in images]
  known = factor == 1 and all(map(os.path.exists, distances))
  return scenes.Scene(
      camera, chosen.poses, lenses, images, near=near, far=far,
      focus=np.linalg.norm(chosen.poses[:, :, 3], axis=1).mean(),
      background=1.0 if white_background else 0.0, factor=factor,
      distance_fnames=distances if known else None)


def _read_split(path: str, split: str, hold_out: int) -> transforms.Transforms:
  """Reads the frames of a split from its own file or from transforms.json."""
  fname = os.path.join(path, f"transforms_{split}.json")
  if os.path.exists(fname):
    return transforms.read(fname)
  common = os.path.join(path, "transforms.json")
  if not os.path.exists(common):
    found = (f"the folder has {sorted(os.listdir(path))[:10]}"
             if os.path.isdir(path) else f"{path} is not a folder")
    raise config_lib.ConfigError(
        f"There is no {fname}; {found}. A scene in the Blender format has "
        "transforms_{train,val,test}.json, or one transforms.json; python -m "
        "big_vision.tools.make_scene makes one.")
  content = transforms.read(common)
  listed = [key for key in content.shared if key.endswith("_filenames")]
  if not listed:
    return content.select(
        scenes.indices_of_split(len(content.frames), split, hold_out))
  names = content.shared.get(f"{split}_filenames")
  if not names:
    raise config_lib.ConfigError(
        f"{common} has no images of the split {split!r}; it has {listed}.")
  return content.select([i for i, frame in enumerate(content.frames)
                         if frame["file_path"] in names])
