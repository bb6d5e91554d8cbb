"""Writes scenes in the LLFF format."""

from big_vision.proj.nerf import cameras
import numpy as np
from PIL import Image


def write(path, poses, bounds=(2.0, 9.0), size=(12, 16), focal=14.0,
          image_size=None):
  """As structure-from-motion leaves it: axes down, right, backward."""
  (path / "images").mkdir()
  rows = []
  for i, pose in enumerate(poses):
    right, up, backward, position = pose.T
    matrix = np.stack([-up, right, backward, position,
                       np.asarray([*size, focal])], axis=1)
    rows.append(np.concatenate([matrix.ravel(), bounds]))
    h, w = image_size or size
    Image.new("RGB", (w, h), (10 * i, 0, 0)).save(
        path / "images" / f"image{i:02d}.png")
  np.save(path / "poses_bounds.npy", np.asarray(rows))
  return path


def forward(num=9):
  rng = np.random.default_rng(0)
  return np.stack([cameras.look_at(
      rng.normal(size=3) * 0.3 + (1, 2, 3), (1 - 10, 2, 3.0), (0, 0.1, 1))
                   for _ in range(num)])
