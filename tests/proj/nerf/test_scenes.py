"""Cameras and the two formats of scenes."""

import json
import os
import shutil
import struct
import zlib

from big_vision import config as config_lib
from big_vision.datasets import core
from big_vision.datasets import registry
from big_vision.proj.nerf import blender
from big_vision.proj.nerf import cameras
from big_vision.proj.nerf import lenses
from big_vision.proj.nerf import llff
from big_vision.proj.nerf import scenes
from big_vision.tools import make_scene
import deadline
import numpy as np
from PIL import Image
import pytest

from tests.proj.nerf import llff_files


def _project(camera, pose, point):
  """Projects a point to (column, row), by hand, with OpenGL's axes."""
  x, y, z = pose[:, :3].T @ (point - pose[:, 3])
  return (camera.width / 2 + 9.0 * x / -z,
          camera.height / 2 - 9.0 * y / -z)


@pytest.mark.parametrize("center", [True, False])
def test_the_ray_of_a_pixel_hits_the_point_that_it_shows(center):
  camera = cameras.Camera(height=6, width=10, pixel_center=center)
  lens = np.float32(lenses.pinhole(6, 10, 9.0))
  position = np.asarray([2.0, -3.0, 1.5])
  pose = cameras.look_at(position, [0.1, 0.2, 0], [0, 0, 1])
  assert np.linalg.det(pose[:, :3]) > 0.999
  for row, column in ((0, 0), (2, 7), (5, 9)):
    rays = cameras.pixel_rays(
        camera, np.asarray(pose, np.float32), lens,
        np.asarray([row * 10 + column], np.int32))
    point = np.asarray(rays["origin"][0] + 2.5 * rays["direction"][0])
    offset = 0.5 if center else 0.0
    np.testing.assert_allclose(
        _project(camera, pose, point), (column + offset, row + offset),
        atol=1e-4)
    # The point is 2.5 in front of the camera, not behind it.
    np.testing.assert_allclose(
        (point - position) @ -pose[:, 2], 2.5, rtol=1e-5)
  # Each pixel has its own pose, as in training.
  many = cameras.pixel_rays(
      camera, np.stack([pose, 2 * pose]).astype(np.float32), lens,
      np.asarray([59, 59], np.int32))
  np.testing.assert_allclose(many["direction"][0], rays["direction"][0])
  np.testing.assert_allclose(many["origin"][1], 2 * position, rtol=1e-6)


def test_up_must_not_be_parallel_to_the_line_of_sight():
  with pytest.raises(ValueError, match="needs another up"):
    cameras.look_at([0, 0, 3], [0, 0, 0], [0, 0, 1])


def test_an_orbit_goes_around_the_origin_and_a_spiral_through_cameras():
  poses = np.stack([cameras.look_at(p, [0, 0, 0], [0, 0, 1])
                    for p in make_scene.positions(9, 0.0)])
  path = cameras.orbit(poses, 12)
  np.testing.assert_allclose(
      np.linalg.norm(path[:, :, 3], axis=1), 4, rtol=1e-6)
  np.testing.assert_allclose(path[:, 2, 3], 2, rtol=1e-6)  # 30 degrees up.
  np.testing.assert_allclose(path[:, :, 3] / 4, path[:, :, 2], atol=1e-6)
  forward = np.stack([
      cameras.look_at([x, y, 0.0], [x, y, -10], [0, 1, 0])
      for x in (-1, 0, 1) for y in (-0.5, 0, 0.5)])
  path = cameras.spiral(forward, 5.0, 40)
  assert abs(path[:, 0, 3]).max() <= 1 and abs(path[:, 1, 3]).max() <= 0.5
  assert abs(path[:, 0, 3]).max() > 0.9
  for pose in path:  # All look at the focus.
    np.testing.assert_allclose(
        np.cross(pose[:, 2], pose[:, 3] - [0, 0, -5]), 0, atol=1e-5)


# -- the Blender format -------------------------------------------------------

@pytest.fixture(scope="module")
def made(tmp_path_factory):
  path = tmp_path_factory.mktemp("scene") / "made"
  make_scene.make(str(path), size=16, num_train=4, num_val=1, num_test=3)
  return path


@pytest.fixture
def folder(tmp_path):
  """Writes a scene that a test may damage: two translucent images, 4 x 6."""
  (tmp_path / "train").mkdir()
  rng = np.random.default_rng(0)
  frames = []
  for i in range(2):
    Image.fromarray(rng.integers(0, 256, (4, 6, 4), np.uint8)).save(
        tmp_path / "train" / f"r_{i}.png")
    pose = np.eye(4)
    pose[2, 3] = 4 + i
    frames.append({"file_path": f"./train/r_{i}", "rotation": 0.1,
                   "transform_matrix": pose.tolist()})
  (tmp_path / "transforms_train.json").write_text(json.dumps(
      {"camera_angle_x": 0.8, "frames": frames}))
  return tmp_path


def _edit(folder, change):
  file = folder / "transforms_train.json"
  content = json.loads(file.read_text())
  change(content)
  file.write_text(json.dumps(content))


def test_blender_scenes_are_sources_of_rays(folder):
  scene = registry.open_source(
      "proj.nerf.blender", path=str(folder), split="train")
  assert len(scene) == 2 * 4 * 6
  assert scene.read(np.int64(7)) == {"ray": 7}
  assert scene.describe(24 + 6 + 3).endswith("r_1.png row 1 column 3")
  assert scene.camera[:2] == (4, 6) and not scene.camera.pixel_center
  # Half the width spans half the angle.
  np.testing.assert_allclose(3 / scene.lenses[:, :2], np.tan(0.4), rtol=1e-6)
  np.testing.assert_array_equal(scene.poses[:, :, 3], [[0, 0, 4], [0, 0, 5]])
  assert (scene.near, scene.far, scene.background) == (2, 6, 1)
  assert scene.distances() is None


def test_alpha_is_composited_once(folder):
  raw = np.asarray(Image.open(folder / "train" / "r_1.png"), np.float64) / 255
  rgb, alpha = raw[..., :3], raw[..., 3:]
  for white in (True, False):
    scene = blender.open_source(str(folder), "train", white_background=white)
    np.testing.assert_allclose(
        scene.images()[1], rgb * alpha + white * (1 - alpha), atol=1e-6)
  clear = np.full((4, 6, 4), 77, np.uint8)
  clear[..., 3] = 0
  Image.fromarray(clear).save(folder / "train" / "r_0.png")
  scene = blender.open_source(str(folder), "train")
  np.testing.assert_array_equal(scene.images()[0], 1)


def test_smaller_images_see_the_same(folder):
  scene = blender.open_source(str(folder), "train", factor=2)
  assert scene.camera[:2] == (2, 3)
  np.testing.assert_allclose(1.5 / scene.lenses[:, :2], np.tan(0.4), rtol=1e-6)
  whole = blender.open_source(str(folder), "train")
  # Compositing then averaging equals averaging by alpha, then compositing.
  expected = whole.images().reshape(2, 2, 2, 3, 2, 3).mean(axis=(2, 4))
  np.testing.assert_allclose(scene.images(), expected, atol=1e-6)
  assert len(blender.open_source(str(folder), "train", skip=2).poses) == 1


def test_scenes_of_make_scene_are_read_back(made):
  scene = blender.open_source(str(made), "test", pixel_center=True)
  image, distance = scene.images()[1], scene.distances()[1]
  for row, column in ((8, 8), (10, 5), (12, 11)):
    ray = cameras.pixel_rays(
        scene.camera, scene.poses[1], scene.lenses[1],
        np.asarray([row * 16 + column], np.int32))
    colour, opacity, far = make_scene.trace(
        make_scene.SOLIDS, *(np.asarray(ray[key], np.float64)
                             for key in ("origin", "direction")))
    np.testing.assert_allclose(
        image[row, column], (colour + 1 - opacity[:, None])[0], atol=0.01)
    np.testing.assert_allclose(distance[row, column], far[0], rtol=1e-4)
  assert blender.open_source(str(made), "test", factor=2).distances() is None


@pytest.mark.parametrize("wrong, message", [
    (dict(path="nowhere"), "no nowhere/transforms_train.json.*make_scene"),
    (dict(split="tests"), "transforms_tests.json.*'transforms_train.json'"),
    (dict(factor=0), "factor is 0.*at least 1"),
    (dict(factor=5), "factor=5 is larger than the images, which are 4 x 6"),
    (dict(skip=0), "skip is 0"), (dict(near=6.0), "near=6.0, far=6.0"),
    (dict(white=True), "white does not exist.*white_background")])
def test_invalid_blender_arguments(folder, wrong, message):
  kw = {"path": str(folder), "split": "train", **wrong}
  with pytest.raises(config_lib.ConfigError, match=message):
    registry.open_source("proj.nerf.blender", **kw)


@pytest.mark.parametrize("change, message", [
    (lambda c: c.pop("camera_angle_x"),
     "'./train/r_0': neither fl_x nor camera_angle_x"),
    (lambda c: c.update(camera_angle_x=45), "is 45; radians"),
    (lambda c: c.update(frames=[]), "no frames"),
    (lambda c: c["frames"][1].pop("transform_matrix"),
     "transform_matrix: .*'transform_matrix'"),
    (lambda c: c["frames"][1].update(transform_matrix=[[1, 0], [0, 1]]),
     "transform_matrix"),
    (lambda c: c["frames"][1].update(
        transform_matrix=np.diag([1, 1, -1, 1]).tolist()),
     r"'./train/r_1' is not a rotation"),
    (lambda c: c["frames"][1].update(file_path="./train/r_7"),
     "1 of 2 files .* missing, .*r_7.png")])
def test_broken_blender_scenes(folder, change, message):
  _edit(folder, change)
  with pytest.raises(core.DataError, match=message):
    blender.open_source(str(folder), "train")


def test_broken_images(folder):
  scene = blender.open_source(str(folder), "train")
  file = folder / "train" / "r_1.png"
  Image.new("RGBA", (6, 5)).save(file)
  with pytest.raises(core.DataError, match="r_1.png is 5 x 6 .* 4 x 6"):
    scene.images()
  Image.new("L", (6, 4)).save(file)
  with pytest.raises(core.DataError, match="r_1.png .* mode 'L'"):
    scene.images()
  file.write_bytes(b"no image")
  with pytest.raises(core.DataError, match="Failed to read .*r_1.png"):
    scene.images()
  (folder / "transforms_train.json").write_text("{")
  with pytest.raises(core.DataError, match="Failed to read .*json"):
    blender.open_source(str(folder), "train")


@pytest.mark.parametrize("kind", ["pipe", "device", "bomb"])
def test_images_that_would_hang_or_fill_the_memory_are_refused(folder, kind):
  for file in (folder / "train").iterdir():
    file.unlink()
    if kind == "pipe":
      os.mkfifo(file)
    elif kind == "device":
      file.symlink_to("/dev/zero")
    else:  # A header that claims 50,000 x 50,000 pixels.
      chunks = b"\x89PNG\r\n\x1a\n"
      header = struct.pack(">4sII5B", b"IHDR", 50_000, 50_000, 8, 6, 0, 0, 0)
      for data in (header, b"IDAT" + zlib.compress(bytes(100))):
        chunks += struct.pack(">I", len(data) - 4) + data
        chunks += struct.pack(">I", zlib.crc32(data))
      file.write_bytes(chunks)
  problem = {"bomb": "Failed to read .*r_0.png: .*bomb"}.get(
      kind, "missing, not regular or too large: .*r_0.png")
  with deadline.within(20):
    with pytest.raises(core.DataError, match=problem):
      blender.open_source(str(folder), "train")
    with pytest.raises(core.DataError, match=problem):
      scenes.image_size(str(folder / "train" / "r_0.png"))


def test_cameras_and_distances_in_a_pipe_are_refused(made, tmp_path):
  """Reading one would wait for ever."""
  copy = tmp_path / "copy"
  shutil.copytree(made, copy)
  scene = blender.open_source(str(copy), "val")
  llff_files.write(tmp_path, llff_files.forward())
  for file, read in (
      (copy / "val" / "r_0_distance.npy", scene.distances),
      (copy / "transforms_val.json",
       lambda: blender.open_source(str(copy), "val")),
      (tmp_path / "poses_bounds.npy",
       lambda: llff.open_source(str(tmp_path), "train", factor=1))):
    file.unlink()
    os.mkfifo(file)
    with deadline.within(20), pytest.raises(
        core.DataError, match=f"{file.name} is not a regular file but a pipe"):
      read()


def test_broken_distances(made, tmp_path):
  scene = blender.open_source(str(made), "val")
  file = made / "val" / "r_0_distance.npy"
  whole = file.read_bytes()
  np.save(file, np.zeros((2, 2)))
  with pytest.raises(core.DataError, match=r"\(2, 2\); .*\(16, 16\)"):
    scene.distances()
  file.write_bytes(b"")
  with pytest.raises(core.DataError, match="Failed to read .*distance.npy"):
    scene.distances()
  file.write_bytes(whole)


def test_errors_name_the_scenes_of_projects():
  with pytest.raises(config_lib.ConfigError, match="proj.nerf.blendr.*blender"):
    registry.open_source("proj.nerf.blendr", path="", split="train")
  with pytest.raises(config_lib.ConfigError, match="is not a scene"):
    scenes.open_scene(dict(name="bv:digits", split="train"))


# -- the LLFF format ----------------------------------------------------------

def test_llff_scenes_are_scaled_and_centred(tmp_path):
  poses = llff_files.forward()
  llff_files.write(tmp_path, poses)
  scene = llff.open_source(str(tmp_path), "train", factor=2, ndc=False)
  test = llff.open_source(str(tmp_path), "test", factor=2)
  assert scene.camera == (6, 8, False, False)
  np.testing.assert_array_equal(
      scene.lenses, [[7, 7, 4, 3, 0, 0, 0, 0]] * len(scene.poses))
  assert (scene.images()[:, 0, 0, 0] * 255 / 10).round().tolist() == [
      1, 2, 3, 4, 5, 6, 7]
  assert (test.images()[:, 0, 0, 0] * 255 / 10).round().tolist() == [0, 8]
  assert (test.near, test.far, test.background) == (0, 1, 0)
  # The nearest point is at 1 / .75; ratios of distances are kept.
  scale = 1 / (2 * 0.75)
  np.testing.assert_allclose([scene.near, scene.far], [0.9 / .75, 9 * scale])
  everything = np.empty((9, 3, 4))
  everything[[0, 8]], everything[1:8] = test.poses, scene.poses
  np.testing.assert_allclose(
      np.linalg.norm(everything[3, :, 3] - everything[4, :, 3]),
      np.linalg.norm(poses[3, :, 3] - poses[4, :, 3]) * scale, rtol=1e-5)
  relative = lambda p: p[3, :, :3].T @ p[4, :, :3]
  np.testing.assert_allclose(relative(everything), relative(poses), atol=1e-6)
  # The mean camera is at 0, looks along -z and has y up.
  np.testing.assert_allclose(everything[:, :, 3].mean(0), 0, atol=1e-6)
  np.testing.assert_allclose(
      cameras.average(everything)[:, :3], np.eye(3), atol=1e-6)


def test_llff_cameras_around_an_object_look_at_the_origin(tmp_path):
  middle, radius = np.asarray([3.0, -1.0, 2.0]), 5.0
  ring = [middle + radius * np.asarray([np.cos(a) * .8, np.sin(a) * .8, .6])
          for a in np.linspace(0, 2 * np.pi, 9)[:-1]]
  poses = np.stack([cameras.look_at(p, middle, (0, 0, 1)) for p in ring])
  llff_files.write(tmp_path, poses)
  scene = llff.open_source(
      str(tmp_path), "train", factor=1, spherify=True, ndc=False)
  position = scene.poses[:, :, 3]
  np.testing.assert_allclose(np.linalg.norm(position, axis=1), 1, rtol=1e-5)
  np.testing.assert_allclose(position, scene.poses[:, :, 2], atol=1e-5)
  np.testing.assert_allclose(position[:, 2], 0.6, rtol=1e-5)  # z is up.
  np.testing.assert_allclose(
      [scene.near, scene.far], [0.9 * 2 / radius, 9 / radius], rtol=1e-5)


def test_a_ring_of_cameras_needs_other_coordinates(tmp_path):
  """With the default ndc=True, half of the cameras would look away."""
  ring = [(5 * np.cos(a), 5 * np.sin(a), 1) for a in np.arange(8) * np.pi / 4]
  llff_files.write(tmp_path, np.stack(
      [cameras.look_at(p, (0, 0, 0), (0, 0, 1)) for p in ring]), size=(12, 16))
  with pytest.raises(config_lib.ConfigError, match=(
      "look 157 degrees apart.*spherify=True, ndc=False.*config.ndc=False")):
    llff.open_source(str(tmp_path), "train", factor=1)
  llff.open_source(
      str(tmp_path), "train", factor=1, spherify=True, ndc=False)


def test_llff_uses_smaller_copies_of_images(tmp_path):
  llff_files.write(tmp_path, llff_files.forward(), size=(13, 17))
  (tmp_path / "images_4").mkdir()
  for i in range(9):  # ImageMagick rounds 13 / 4 = 3.25 and 17 / 4 = 4.25.
    Image.new("RGB", (4, 3), (0, 100, 0)).save(
        tmp_path / "images_4" / f"{i}.png")
  scene = llff.open_source(str(tmp_path), "train", factor=4)
  assert scene.camera == (3, 4, False, False)
  np.testing.assert_array_equal(scene.lenses[0], [3.5, 3.5, 2, 1.5, 0, 0, 0, 0])
  np.testing.assert_allclose(scene.images()[0, 0, 0], [0, 100 / 255, 0])


@pytest.mark.parametrize("wrong, message", [
    (dict(split="val"), "'train' and 'test'"), (dict(factor=1.5), "factor=1.5"),
    (dict(hold_out=1), "hold_out=1"), (dict(spherify=True), "one of them"),
    (dict(path="nowhere"), "nowhere has neither .*images_1 nor .* images")])
def test_invalid_llff_arguments(tmp_path, wrong, message):
  llff_files.write(tmp_path, llff_files.forward())
  kw = {"path": str(tmp_path), "split": "train", "factor": 1, **wrong}
  with pytest.raises(config_lib.ConfigError, match=message):
    llff.open_source(**kw)


def test_broken_llff_scenes(tmp_path):
  llff_files.write(tmp_path, llff_files.forward())
  file = tmp_path / "poses_bounds.npy"
  rows = np.load(file)

  def check(content, message):
    np.save(file, content)
    with pytest.raises(core.DataError, match=message):
      llff.open_source(str(tmp_path), "train", factor=1)
  check(rows[:, :15], r"shape \(9, 15\); .* \(images, 17\)")
  check(rows[:5], "5 cameras, but there are 9 images")
  check(np.where(np.arange(17) == 15, -1, rows), "positive, finite")
  other = rows.copy()
  other[3, 14] *= 2
  check(other, r"share one \(height, width, focal length\)")
  other = rows.copy()
  other[:, 4] = 24
  check(other, r"images of 12 x 16 pixels at factor=1; .* 24 x 16")
  file.write_bytes(b"")
  with pytest.raises(core.DataError, match="Failed to read .*poses_bounds.npy"):
    llff.open_source(str(tmp_path), "train", factor=1)
  np.save(file, rows)
  for image in (tmp_path / "images").iterdir():
    image.unlink()
  with pytest.raises(core.DataError, match="has no images"):
    llff.open_source(str(tmp_path), "train", factor=1)
