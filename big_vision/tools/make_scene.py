"""Makes a scene whose images are known exactly, in NeRF's Blender format.

  python -m big_vision.tools.make_scene --path workdirs/scene

renders spheres and boxes of constant density from cameras around them. The
density along a ray is constant between the points where the ray enters or
leaves a solid. The rendering integral then has a closed form, so that this tool
takes no samples along rays, unlike the methods that are tested on its scenes:

  colour    sum over intervals of T (1 - exp(-density * length)) * colour
  distance  mean distance at which light is absorbed
  T         transmittance, the product of exp(-density * length) over all
            intervals in front

Images are 8-bit PNGs with straight alpha, and rays pass through pixel centres.
Beside each image r_0.png lies r_0_distance.npy, float32[h, w], in world units,
NaN where opacity is below a half.
"""

import argparse
from collections.abc import Sequence
import json
import os
import sys
from typing import NamedTuple

import numpy as np
from PIL import Image


class Solid(NamedTuple):
  """A sphere or an axis-aligned box of constant density and colour.

  Attributes:
    shape: "sphere" or "box".
    center: Centre, (x, y, z).
    size: Radius of a sphere; for a box, half its lengths in x, y, z.
    density: Density per unit of length.
    rgb: Colour in [0, 1].
  """
  shape: str
  center: tuple[float, float, float]
  size: float | tuple[float, float, float]
  density: float
  rgb: tuple[float, float, float]


# Opaque solids, and a glassy sphere with an opaque one inside. All lie within
# 1.37 of the origin, which every camera has in view.
SOLIDS = (
    Solid(shape="box", center=(0., 0., -.72), size=(.78, .78, .08),
          density=40., rgb=(.75, .7, .6)),
    Solid(shape="sphere", center=(.4, .35, -.2), size=.42,
          density=40., rgb=(.85, .2, .15)),
    Solid(shape="box", center=(-.4, .3, -.3), size=(.25, .25, .35),
          density=40., rgb=(.15, .35, .8)),
    Solid(shape="sphere", center=(-.2, -.5, -.3), size=.35,
          density=2.5, rgb=(.1, .7, .3)),
    Solid(shape="sphere", center=(-.2, -.5, -.3), size=.12,
          density=40., rgb=(.95, .85, .2)),
    Solid(shape="box", center=(.5, -.45, -.45), size=(.2, .2, .2),
          density=40., rgb=(.6, .25, .7)),
)


def intersect(solid: Solid, origins, directions):
  """Finds where rays enter and leave a solid.

  Args:
    solid: A convex solid.
    origins, directions: float64[b, 3].

  Returns:
    start, end: float64[b], non-negative, in units of the direction; equal where
      the ray misses the solid.
  """
  to = origins - np.asarray(solid.center)
  if solid.shape == "sphere":
    a = (directions ** 2).sum(-1)
    half_b = (to * directions).sum(-1)
    c = (to ** 2).sum(-1) - solid.size ** 2
    root = np.sqrt(np.maximum(half_b ** 2 - a * c, 0))
    start, end = (-half_b - root) / a, (-half_b + root) / a
  elif solid.shape == "box":
    with np.errstate(divide="ignore", invalid="ignore"):
      faces = [(sign * np.asarray(solid.size) - to) / directions
               for sign in (-1, 1)]
    # A ray that lies in a face divides 0 by 0; it counts as inside.
    faces = np.stack(faces)
    start = np.nanmax(np.min(faces, axis=0), axis=-1)
    end = np.nanmin(np.max(faces, axis=0), axis=-1)
  else:
    raise ValueError(f"Unknown shape {solid.shape!r}; use 'sphere' or 'box'.")
  start, end = np.maximum(start, 0), np.maximum(end, 0)
  return start, np.maximum(start, end)


def trace(solids: Sequence[Solid], origins, directions):
  """Computes exactly what rays see.

  Where solids overlap, their densities add, and their colours are averaged with
  the densities as weights.

  Args:
    solids: Solids of the scene.
    origins: float64[b, 3].
    directions: float64[b, 3], of any length.

  Returns:
    colour: float64[b, 3], multiplied by opacity.
    opacity: float64[b].
    distance: float64[b], mean distance of absorbed light, world units; NaN
      where nothing absorbs.
  """
  length = np.linalg.norm(directions, axis=-1)
  spans = np.stack([np.stack(intersect(solid, origins, directions), -1)
                    for solid in solids], axis=1) * length[:, None, None]
  ends = np.sort(spans.reshape(len(spans), -1), axis=-1)
  colour = np.zeros_like(origins)
  absorbed, moment = np.zeros(len(origins)), np.zeros(len(origins))
  transmitted = np.ones(len(origins))
  densities = np.asarray([solid.density for solid in solids])
  rgbs = np.asarray([solid.rgb for solid in solids])
  for start, end in zip(ends.T[:-1], ends.T[1:]):
    middle = (start + end) / 2
    middle = middle[:, None]
    parts = densities * ((spans[..., 0] < middle) & (middle < spans[..., 1]))
    density = parts.sum(-1)
    chord = end - start
    share = transmitted * -np.expm1(-density * chord)
    safe = np.maximum(density, 1e-12)
    colour += (share / safe)[:, None] * (parts @ rgbs)
    absorbed += share
    # The integral of s * density * exp(-density * (s - start)) ds.
    moment += np.where(density > 0, transmitted * (
        start + 1 / safe - (end + 1 / safe) * np.exp(-density * chord)), 0)
    transmitted = transmitted * np.exp(-density * chord)
  with np.errstate(invalid="ignore"):
    distance = np.where(absorbed > 0, moment / absorbed, np.nan)
  return colour, absorbed, distance


def camera_to_world(position) -> np.ndarray:
  """Returns the pose, float64[4, 4], of a camera that looks at the origin.

  The world's z axis is up. In its own coordinates the camera looks along -z,
  and y is up.
  """
  backward = position / np.linalg.norm(position)
  right = np.cross([0, 0, 1.], backward)
  right /= np.linalg.norm(right)
  matrix = np.eye(4)
  matrix[:3] = np.stack(
      [right, np.cross(backward, right), backward, position], axis=1)
  return matrix


def render(solids: Sequence[Solid], pose, angle: float, size: int):
  """Renders the image of a camera.

  Args:
    solids: Solids of the scene.
    pose: float64[4, 4], camera-to-world.
    angle: Angle of view from the left to the right edge, radians.
    size: Height and width, pixels.

  Returns:
    rgba: uint8[size, size, 4], straight alpha.
    distance: float32[size, size], NaN where opacity is below a half.
  """
  reach = np.tan(angle / 2)
  middles = (2 * np.arange(size) + 1) / size - 1  # From -1 to 1.
  x, y = np.meshgrid(middles * reach, -middles * reach)
  directions = np.stack([x, y, -np.ones_like(x)], -1).reshape(-1, 3)
  directions = directions @ pose[:3, :3].T
  origins = np.broadcast_to(pose[:3, 3], directions.shape)
  colour, opacity, distance = trace(solids, origins, directions)
  straight = colour / np.maximum(opacity, 1e-6)[:, None]
  rgba = np.concatenate([straight, opacity[:, None]], axis=-1)
  distance = np.where(opacity >= 0.5, distance, np.nan)
  return (np.round(np.clip(rgba, 0, 1) * 255).astype(np.uint8)
          .reshape(size, size, 4),
          distance.astype(np.float32).reshape(size, size))


def positions(num: int, phase: float, radius: float = 4.0) -> np.ndarray:
  """Spreads points evenly over the upper half of a sphere, by the golden angle.

  Args:
    num: Number of points.
    phase: Offset in [0, 1); different offsets share no point.
    radius: Radius of the sphere.

  Returns:
    float64[num, 3].
  """
  k = np.arange(num) + phase
  z = 0.1 + 0.85 * (k + 0.5) / (num + 1)
  angle = np.pi * (3 - np.sqrt(5)) * k
  ring = np.sqrt(1 - z ** 2)
  return radius * np.stack(
      [ring * np.cos(angle), ring * np.sin(angle), z], axis=-1)


def make(path: str, *, size: int = 100, num_train: int = 60, num_val: int = 4,
         num_test: int = 12, solids: Sequence[Solid] = SOLIDS):
  """Writes the scene to the folder `path`; see the module's docstring.

  Raises:
    FileExistsError: The folder has a scene already.
  """
  angle = 0.7  # Radians; published scenes have 0.69.
  if os.path.exists(os.path.join(path, "transforms_test.json")):
    raise FileExistsError(f"{path} has a scene already; name another folder.")
  for phase, (split, num) in zip(
      (0.0, 0.3, 0.6), (("train", num_train), ("val", num_val),
                        ("test", num_test))):
    os.makedirs(os.path.join(path, split), exist_ok=True)
    frames = []
    for i, position in enumerate(positions(num, phase)):
      pose = camera_to_world(position)
      rgba, distance = render(solids, pose, angle, size)
      name = os.path.join(path, split, f"r_{i}")
      Image.fromarray(rgba).save(f"{name}.png")
      np.save(f"{name}_distance.npy", distance)
      frames.append({"file_path": f"./{split}/r_{i}",
                     "transform_matrix": pose.tolist()})
    # Write the JSON after its images, so that it never names missing files.
    fname = os.path.join(path, f"transforms_{split}.json")
    with open(fname, "w", encoding="utf-8") as file:
      json.dump({"camera_angle_x": angle, "frames": frames}, file, indent=1)


def main(args: Sequence[str] | None = None) -> int:
  """Makes the scene that the command line asks for; returns the exit code."""
  parser = argparse.ArgumentParser(
      prog="python -m big_vision.tools.make_scene", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--path", required=True, help="folder to write to")
  parser.add_argument("--size", type=int, default=100,
                      help="height and width of images, pixels")
  for split, num in (("train", 60), ("val", 4), ("test", 12)):
    parser.add_argument(f"--num_{split}", type=int, default=num,
                        help=f"number of images of the split {split!r}")
  args = parser.parse_args(args)
  if min(args.size, args.num_train, args.num_val, args.num_test) < 1:
    parser.error("--size and --num_* must be positive.")
  try:
    make(**vars(args))
  except OSError as error:
    print(error, file=sys.stderr)
    return 1
  print(f"{args.path}: {args.num_train} training, {args.num_val} validation "
        f"and {args.num_test} test images of {args.size} x {args.size} pixels.")
  return 0


if __name__ == "__main__":
  sys.exit(main())
