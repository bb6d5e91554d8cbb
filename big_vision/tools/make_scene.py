"""Makes a scene that is known exactly, in the Blender format of NeRF.

  python -m big_vision.tools.make_scene --path workdirs/scene

renders spheres and boxes of constant density, from cameras around them. Along
a ray density is constant between the points where it enters or leaves one of
them, so that what it sees is an integral with a closed form, and nothing here
samples a ray as the methods do that are to be tested on it:

  colour    sum over intervals of T (1 - exp(-density * length)) * colour
  distance  the mean distance at which light is absorbed
  T         exp(-density * length) of all that is before the interval

Images are straight-alpha PNGs of 8 bits, rays go through centres of pixels, and
beside each image r_0.png there is r_0_distance.npy, float32[h, w], world units,
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
    center: x, y, z.
    size: the radius; for a box, half its lengths in x, y, z.
    density: per unit of length.
    rgb: in [0, 1].
  """
  shape: str
  center: tuple[float, float, float]
  size: float | tuple[float, float, float]
  density: float
  rgb: tuple[float, float, float]


# Opaque ones, and a glass-like one with another in it; all within 1.37 of the
# origin, which cameras see whole.
SOLIDS = (
    Solid("box", (0., 0., -.72), (.78, .78, .08), 40., (.75, .7, .6)),
    Solid("sphere", (.4, .35, -.2), .42, 40., (.85, .2, .15)),
    Solid("box", (-.4, .3, -.3), (.25, .25, .35), 40., (.15, .35, .8)),
    Solid("sphere", (-.2, -.5, -.3), .35, 2.5, (.1, .7, .3)),
    Solid("sphere", (-.2, -.5, -.3), .12, 40., (.95, .85, .2)),
    Solid("box", (.5, -.45, -.45), (.2, .2, .2), 40., (.6, .25, .7)),
)


def intersect(solid: Solid, origins, directions):
  """Where rays enter and leave a solid.

  Args:
    solid: convex.
    origins, directions: float64[b, 3].

  Returns:
    float64[b] twice, in units of the direction; equal where the ray misses it.
    Nothing before 0.
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
    # A ray along a face it lies in divides 0 by 0; it counts as inside.
    faces = np.stack(faces)
    start = np.nanmax(np.min(faces, axis=0), axis=-1)
    end = np.nanmin(np.max(faces, axis=0), axis=-1)
  else:
    raise ValueError(f"Unknown shape {solid.shape!r}; use 'sphere' or 'box'.")
  start, end = np.maximum(start, 0), np.maximum(end, 0)
  return start, np.maximum(start, end)


def look(solids: Sequence[Solid], origins, directions):
  """What rays see, exactly.

  Where solids overlap, densities add, and colours count by density.

  Args:
    solids: Solids of the scene.
    origins: float64[b, 3].
    directions: float64[b, 3], of any length.

  Returns:
    colour: float64[b, 3], times opacity.
    opacity: float64[b].
    distance: float64[b], world units, of what is absorbed; NaN where nothing.
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
  """float64[4, 4] of a camera that looks at the origin, z up.

  In its coordinates it looks along -z, and y is up.
  """
  backward = position / np.linalg.norm(position)
  right = np.cross([0, 0, 1.], backward)
  right /= np.linalg.norm(right)
  matrix = np.eye(4)
  matrix[:3] = np.stack(
      [right, np.cross(backward, right), backward, position], axis=1)
  return matrix


def render(solids: Sequence[Solid], pose, angle: float, size: int):
  """The image of a camera.

  Args:
    solids: Solids of the scene.
    pose: float64[4, 4], camera-to-world.
    angle: Angle of view, from the left to the right edge, radians.
    size: height and width, pixels.

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
  colour, opacity, distance = look(solids, origins, directions)
  straight = colour / np.maximum(opacity, 1e-6)[:, None]
  rgba = np.concatenate([straight, opacity[:, None]], axis=-1)
  distance = np.where(opacity >= 0.5, distance, np.nan)
  return (np.round(np.clip(rgba, 0, 1) * 255).astype(np.uint8)
          .reshape(size, size, 4),
          distance.astype(np.float32).reshape(size, size))


def positions(num: int, phase: float, radius: float = 4.0) -> np.ndarray:
  """float64[num, 3] on the upper half of a sphere, evenly, by the golden angle.

  Args:
    num: how many.
    phase: in [0, 1); different ones share no position.
    radius: Radius of the sphere.
  """
  k = np.arange(num) + phase
  z = 0.1 + 0.85 * (k + 0.5) / (num + 1)
  angle = np.pi * (3 - np.sqrt(5)) * k
  ring = np.sqrt(1 - z ** 2)
  return radius * np.stack(
      [ring * np.cos(angle), ring * np.sin(angle), z], axis=-1)


def make(path: str, *, size: int = 100, num_train: int = 60, num_val: int = 4,
         num_test: int = 12, solids: Sequence[Solid] = SOLIDS):
  """Writes the scene to the folder `path`; see the file's docstring.

  Raises:
    FileExistsError: there is a scene in that folder.
  """
  angle = 0.7  # Radians; about that of the published scenes, 0.69.
  if os.path.exists(os.path.join(path, "transforms_test.json")):
    raise FileExistsError(f"{path} holds a scene; name another folder.")
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
    # Last: where there is JSON, its images are there. "test" is the last one.
    fname = os.path.join(path, f"transforms_{split}.json")
    with open(fname, "w", encoding="utf-8") as file:
      json.dump({"camera_angle_x": angle, "frames": frames}, file, indent=1)


def main(args: Sequence[str] | None = None) -> int:
  """Makes the scene of the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
      prog="python -m big_vision.tools.make_scene", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--path", required=True, help="folder to write to")
  parser.add_argument("--size", type=int, default=100,
                      help="height and width of images, pixels")
  for split, num in (("train", 60), ("val", 4), ("test", 12)):
    parser.add_argument(f"--num_{split}", type=int, default=num,
                        help=f"images of the split {split!r}")
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
