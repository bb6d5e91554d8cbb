"""The analytic scene: closed forms and brute force, not our renderer."""

import ast
import inspect
import json

from big_vision.tools import make_scene
import numpy as np
from PIL import Image
import pytest

BALL = make_scene.Solid(
    shape="sphere", center=(0., 0., 0.), size=1.0, density=0.5,
    rgb=(.8, .4, .2))
BOX = make_scene.Solid(
    shape="box", center=(0., 0., -3.), size=(1., 1., .5), density=2.0,
    rgb=(.1, .2, .9))


def _look(solids, origin, direction):
  colour, opacity, distance = make_scene.trace(
      solids, np.asarray([origin], float), np.asarray([direction], float))
  return colour[0], opacity[0], distance[0]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_ball_absorbs_by_its_chord(scale):
  for x in (0.0, 0.3, 0.9):
    colour, opacity, _ = _look([BALL], (x, 0, 5), (0, 0, -scale))
    expected = 1 - np.exp(-0.5 * 2 * np.sqrt(1 - x ** 2))
    np.testing.assert_allclose(opacity, expected, rtol=1e-12)
    np.testing.assert_allclose(colour, expected * np.asarray(BALL.rgb))
  _, opacity, distance = _look([BALL], (1.01, 0, 5), (0, 0, -1))
  assert opacity == 0 and np.isnan(distance)
  # From the middle only half of it is before the camera, from behind nothing.
  _, opacity, _ = _look([BALL], (0, 0, 0), (0, 0, -1))
  np.testing.assert_allclose(opacity, 1 - np.exp(-0.5))
  assert _look([BALL], (0, 0, -2), (0, 0, -1))[1] == 0


def test_a_box_absorbs_by_its_chord_also_at_an_angle():
  _, opacity, distance = _look([BOX], (0, 0, 0), (0, 0, -2))
  np.testing.assert_allclose(opacity, 1 - np.exp(-2))
  # The mean of an exponential distribution that is cut off after 1.
  np.testing.assert_allclose(
      distance, 2.5 + 0.5 - np.exp(-2) / (1 - np.exp(-2)))
  _, slanted, _ = _look([BOX], (0, 0, 0), (0.2, 0, -1))
  np.testing.assert_allclose(slanted, 1 - np.exp(-2 * np.hypot(1, 0.2)))
  assert _look([BOX], (1.5, 0, 0), (0, 0, -1))[1] == 0


def test_what_is_behind_and_within_is_seen_through_it():
  """Against a sum over 400,000 slices of the ray, for overlapping solids."""
  within = make_scene.Solid(
      shape="sphere", center=(.2, 0., .1), size=.5, density=3.0,
      rgb=(0., 1., 1.))
  solids = (BALL, within, BOX)
  origin, direction = np.asarray([.1, .05, 4.]), np.asarray([.02, -.03, -1.])
  step = 2e-5
  t = (np.arange(400_000) + 0.5) * step
  points = origin + t[:, None] * direction
  inside = np.stack([
      (points ** 2).sum(1) < 1,
      ((points - (.2, 0, .1)) ** 2).sum(1) < .25,
      np.all(np.abs(points - (0, 0, -3)) < (1, 1, .5), axis=1)], 1)
  step *= np.linalg.norm(direction)
  parts = inside * np.asarray([0.5, 3.0, 2.0]) * step
  density = parts.sum(1)
  before = np.exp(-(np.cumsum(density) - density / 2))
  rgbs = np.asarray([solid.rgb for solid in solids])
  colour, opacity, distance = _look(solids, origin, direction)
  np.testing.assert_allclose(opacity, (before * density).sum(), rtol=1e-4)
  np.testing.assert_allclose(
      colour, (before[:, None] * parts).sum(0) @ rgbs, rtol=1e-4)
  np.testing.assert_allclose(
      distance, (before * density * t).sum() * np.linalg.norm(direction)
      / (before * density).sum(), rtol=1e-4)


def test_the_scene_does_not_use_the_renderer_under_test():
  imported = set()
  for node in ast.walk(ast.parse(inspect.getsource(make_scene))):
    if isinstance(node, ast.Import):
      imported |= {alias.name.split(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      imported.add(node.module.split(".")[0])
  assert imported == {"argparse", "collections", "json", "os", "sys", "typing",
                      "numpy", "PIL"}


def test_what_it_writes(tmp_path, capsys):
  folder = tmp_path / "scene"
  args = ["--path", str(folder), "--size", "12", "--num_train", "3",
          "--num_val", "1", "--num_test", "2"]
  assert make_scene.main(args) == 0
  assert "3 training" in capsys.readouterr().out
  seen = []
  for split, num in (("train", 3), ("val", 1), ("test", 2)):
    content = json.loads((folder / f"transforms_{split}.json").read_text())
    assert len(content["frames"]) == num
    for frame in content["frames"]:
      pose = np.asarray(frame["transform_matrix"])
      np.testing.assert_allclose(
          pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
      np.testing.assert_allclose(np.linalg.det(pose[:3, :3]), 1)
      np.testing.assert_allclose(np.linalg.norm(pose[:3, 3]), 4)
      seen.append(tuple(pose[:3, 3]))
      file = folder / f"{frame['file_path']}.png"
      image = np.asarray(Image.open(file))
      assert image.shape == (12, 12, 4) and image.dtype == np.uint8
      assert image[..., 3].min() == 0 and image[..., 3].max() == 255
      distance = np.load(str(file).replace(".png", "_distance.npy"))
      np.testing.assert_array_equal(
          np.isfinite(distance), image[..., 3] > 127)
      assert 2.5 < np.nanmin(distance) < np.nanmax(distance) < 5.5
  assert len(set(seen)) == 6  # No view is in two splits.
  # Another one is not written over it.
  assert make_scene.main(args) == 1
  assert "has a scene already" in capsys.readouterr().err


def test_all_of_the_scene_is_in_the_picture():
  for solid in make_scene.SOLIDS:
    reach = (solid.size if solid.shape == "sphere"
             else np.linalg.norm(solid.size))
    corner = (np.linalg.norm(solid.center) + reach if solid.shape == "sphere"
              else np.linalg.norm(np.abs(solid.center) + solid.size))
    assert corner < 4 * np.sin(0.35)
