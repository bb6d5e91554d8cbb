"""Cameras: from pixels to rays, and paths for cameras to follow.

A pose is camera-to-world, float32[3, 4] = [R | o], in the convention of OpenGL:
in the camera's coordinates x points right, y up, and it looks along -z.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from big_vision.proj.nerf import lenses


class Camera(NamedTuple):
  """Properties that all cameras of a scene share; Python numbers.

  Attributes:
    height, width: Size of the image, pixels.
    pixel_center: Whether a ray passes through the centre of its pixel. If not,
      it passes through the upper left corner, as in NeRF's published code.
    is_distorted: Whether a lens of the scene has distortion.
  """
  height: int
  width: int
  pixel_center: bool
  is_distorted: bool = False


def pixel_rays(camera: Camera, pose, lens, pixel):
  """Computes the rays that pixels see, in world coordinates.

  Args:
    camera: Camera that all rays share.
    pose: float32[b, 3, 4], or float32[3, 4] for one camera.
    lens: float32[b, 8], or float32[8] for one camera, see `lenses`.
    pixel: int32[b], row * width + column.

  Returns:
    {"origin": float32[b, 3], "direction": float32[b, 3]}. The component of a
    direction along the camera's axis has length 1, so that directions away from
    the axis are longer.

  Source: bmild/nerf `get_rays`; JaxNeRF `_generate_rays`.
  """
  offset = 0.5 if camera.pixel_center else 0.0
  row, column = pixel // camera.width, pixel % camera.width
  x = (column + offset - lens[..., 2]) / lens[..., 0]
  y = (row + offset - lens[..., 3]) / lens[..., 1]
  if camera.is_distorted:
    x, y = lenses.undistort(x, y, lens)
  # From OpenCV's axes (right, down, forward) to OpenGL's.
  local = jnp.stack([x, -y, -jnp.ones(pixel.shape, jnp.float32)], axis=-1)
  # Not einsum: matrix units may round to bfloat16, which moves pixels.
  direction = jnp.sum(pose[..., :3] * local[:, None, :], axis=-1)
  origin = jnp.broadcast_to(pose[..., 3], direction.shape)
  return {"origin": origin, "direction": direction}


def look_at(position, target, up) -> np.ndarray:
  """Returns the pose, float64[3, 4], of a camera that looks at `target`.

  Raises:
    ValueError: `up` is parallel to the line of sight.
  """
  position = np.asarray(position, np.float64)
  backward = position - np.asarray(target, np.float64)
  right = np.cross(up, backward)
  if np.linalg.norm(right) <= 1e-9 * np.linalg.norm(backward):
    raise ValueError(
        f"A camera at {position} that looks at {target} needs another up than "
        f"{up}, which is parallel to its line of sight.")
  backward /= np.linalg.norm(backward)
  right /= np.linalg.norm(right)
  return np.stack(
      [right, np.cross(backward, right), backward, position], axis=1)


def orbit(poses, num_frames: int) -> np.ndarray:
  """Returns poses on a circle around the z axis, the path of Blender scenes.

  Args:
    poses: float[n, 3, 4], poses of the scene's cameras. The circle is at their
      mean distance from the origin and looks at it from 30 degrees above, as
      published.
    num_frames: Number of frames in a whole turn.

  Returns:
    float32[num_frames, 3, 4].
  """
  radius = np.linalg.norm(poses[:, :, 3], axis=1).mean()
  height = np.deg2rad(30)
  frames = []
  for angle in 2 * np.pi * np.arange(num_frames) / num_frames:
    position = radius * np.asarray([
        np.cos(angle) * np.cos(height), np.sin(angle) * np.cos(height),
        np.sin(height)])
    frames.append(look_at(position, np.zeros(3), [0., 0, 1]))
  return np.asarray(frames, np.float32)


def spiral(poses, focus: float, num_frames: int, turns: int = 2) -> np.ndarray:
  """Returns poses on a spiral around forward-facing cameras, LLFF's path.

  Args:
    poses: float[n, 3, 4], poses of cameras that look in about the same
      direction.
    focus: Distance in front of the mean camera at which all frames look.
    num_frames: Number of frames in the path, which ends where it begins.
    turns: Number of turns around the axis.

  Returns:
    float32[num_frames, 3, 4].

  Source: bmild/nerf `render_path_spiral`. The radii are the 90th percentiles of
  the cameras' distances from their mean; the motion along the axis is `turns`
  times slower than the turns.
  """
  mean = average(poses)
  radii = np.percentile(np.abs(poses[:, :, 3] - mean[:, 3]), 90, axis=0)
  target = mean @ np.asarray([0, 0, -focus, 1])
  frames = []
  for angle in 2 * np.pi * turns * np.arange(num_frames) / num_frames:
    offset = radii * np.asarray(
        [np.cos(angle), -np.sin(angle), -np.sin(angle / turns)])
    position = mean @ np.append(offset, 1)
    frames.append(look_at(position, target, mean[:, 1]))
  return np.asarray(frames, np.float32)


def average(poses) -> np.ndarray:
  """Returns the mean camera, float64[3, 4].

  It is at the mean position and looks along the mean axis; its up axis is the
  mean one, made orthogonal to that.
  """
  poses = np.asarray(poses, np.float64)
  position = poses[:, :, 3].mean(axis=0)
  backward = poses[:, :, 2].sum(axis=0)
  return look_at(position, position - backward, poses[:, :, 1].sum(axis=0))
