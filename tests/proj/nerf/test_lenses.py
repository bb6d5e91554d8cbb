"""Intrinsics and distortion of captured scenes, against OpenCV's formulas."""

import json

from big_vision import config as config_lib
from big_vision import sharding
from big_vision.datasets import core
from big_vision.evaluators import harness
from big_vision.proj.nerf import blender
from big_vision.proj.nerf import camera_path
from big_vision.proj.nerf import cameras
from big_vision.proj.nerf import lenses
from big_vision.proj.nerf import novel_views
from big_vision.proj.nerf import radiance_field
import jax
import numpy as np
from PIL import Image
import pytest

from tests import drawn

# Barrel distortion with a lens that is not quite parallel to the sensor.
BARREL = dict(fl_x=9.0, fl_y=8.0, cx=4.6, cy=3.1, k1=-0.2, k2=0.03, p1=0.01,
              p2=-0.02)
PINCUSHION = dict(fl_x=7.5, fl_y=7.0, cx=5.2, cy=2.7, k1=0.1, k2=0.05, p1=-0.01,
                  p2=0.005)
H, W = 6, 10


def _opencv_pixel(pose, point, fl_x, fl_y, cx, cy, k1, k2, p1, p2):
  """Projects a world point to (column, row) as OpenCV documents it.

  OpenCV's cameras have x right, y down and z forward; the pose is OpenGL's,
  with y up and z backward.
  """
  right, up, backward = pose[:, :3].T @ (point - pose[:, 3])
  x, y = right / -backward, -up / -backward
  r2 = x ** 2 + y ** 2
  radial = 1 + k1 * r2 + k2 * r2 ** 2
  x, y = (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x ** 2),
          y * radial + p1 * (r2 + 2 * y ** 2) + 2 * p2 * x * y)
  return fl_x * x + cx, fl_y * y + cy


def _poses(num):
  rng = np.random.default_rng(1)
  return [cameras.look_at(rng.normal(size=3) + (2, -3, 1.5), (0, 0, 0),
                          (0, 0, 1)) for _ in range(num)]


def _capture(path, frames=2, suffix=".jpg", **shared):
  """Writes a capture whose second frame has a lens of its own."""
  (path / "images").mkdir()
  listed = []
  for i, pose in enumerate(_poses(frames)):
    Image.new("RGB", (W, H), (0, 20 * i, 0)).save(
        path / "images" / f"{i:03d}{suffix}")
    listed.append({
        "file_path": f"images/{i:03d}{suffix}",
        "transform_matrix": np.vstack([pose, [0, 0, 0, 1]]).tolist(),
        **(PINCUSHION if i == 1 else {})})
  (path / "transforms.json").write_text(json.dumps(
      {"w": W, "h": H, "camera_model": "OPENCV", **BARREL, **shared,
       "frames": listed}))
  return str(path)


def _edit(path, change):
  content = json.loads((path / "transforms.json").read_text())
  change(content)
  (path / "transforms.json").write_text(json.dumps(content))


def test_undistorting_inverts_opencvs_distortion():
  lens = np.asarray([BARREL[key] for key in lenses.FIELDS])
  eye = np.eye(3, 4)
  for x, y in ((0, 0), (0.3, -0.2), (-0.6, 0.4), (0.1, 0.5)):
    # Seen at (x, y, 1) by OpenCV's axes, (x, -y, -1) by OpenGL's.
    column, row = _opencv_pixel(eye, np.asarray([x, -y, -1.0]), **BARREL)
    seen = ((column - BARREL["cx"]) / BARREL["fl_x"],
            (row - BARREL["cy"]) / BARREL["fl_y"])
    np.testing.assert_allclose(
        lenses.distort(np.float64(x), np.float64(y), lens), seen, atol=1e-12)
    np.testing.assert_allclose(
        lenses.undistort(*seen, lens), (x, y), atol=1e-9)
    # In float32, as on devices.
    np.testing.assert_allclose(
        drawn.jit(lenses.undistort)(*np.float32(seen), np.float32(lens)),
        (x, y), atol=1e-6)


@pytest.mark.parametrize("factor", [1, 2])
def test_rays_hit_the_points_that_their_pixels_show(tmp_path, factor):
  scene = blender.open_source(
      _capture(tmp_path), "train", factor=factor, hold_out=99)
  assert len(scene.poses) == 1
  whole = blender.open_source(str(tmp_path), "test", hold_out=99, factor=factor)
  assert scene.camera == (H // factor, W // factor, True, True)
  for part, lens in ((whole, BARREL), (scene, PINCUSHION)):
    pixel = np.arange(part.camera.height * part.camera.width)
    rays = jax.device_get(cameras.pixel_rays(
        part.camera, part.poses[0], part.lenses[0], pixel))
    points = rays["origin"] + 2.5 * rays["direction"]
    seen = [_opencv_pixel(part.poses[0], point, **lens) for point in points]
    rows, columns = np.divmod(pixel, part.camera.width)
    np.testing.assert_allclose(
        seen, factor * np.stack([columns + 0.5, rows + 0.5], -1), atol=1e-3)


def test_training_and_evaluation_use_the_lens_of_each_image(tmp_path):
  _capture(tmp_path, train_filenames=["images/000.jpg", "images/001.jpg"])
  scene = blender.open_source(str(tmp_path), "train")
  frozen = {"poses": scene.poses, "lenses": scene.lenses,
            "images": scene.images()}
  rays, _ = radiance_field._look_up(
      scene.camera, frozen, np.asarray([7, H * W + 7], np.int32))
  for i, lens in enumerate((BARREL, PINCUSHION)):
    point = np.asarray(rays["origin"][i] + 3 * rays["direction"][i])
    np.testing.assert_allclose(
        _opencv_pixel(scene.poses[i], point, **lens), (7.5, 0.5), atol=1e-3)
  mesh = sharding.make_mesh()
  loader = harness.Loader(
      sharding.batch_sharding(mesh, sharding.default_rules(mesh)), 64)
  data = dict(name="proj.nerf.blender", path=str(tmp_path), split="train")
  directions = lambda state, rays, *, rng=None: {
      "rgb": rays["direction"], "opacity": rays["origin"][:, 0],
      "distance": rays["origin"][:, 0]}
  evaluator = novel_views.Evaluator(
      directions, loader, data=data, num_pictures=0)
  lenses_used = []
  render = evaluator._render
  def record(state, pose, lens, number):
    lenses_used.append(lens)
    return render(state, pose, lens, number)
  evaluator._render = record
  evaluator._measure = lambda *images: (0.0, 0.0)  # SSIM needs larger images.
  dict(evaluator.run({}))
  np.testing.assert_array_equal(lenses_used, scene.lenses)
  # Films have straight lines.
  film = camera_path.Evaluator(
      directions, loader, data=data, outfile=str(tmp_path / "a.gif"))
  np.testing.assert_array_equal(
      film._lens, [*scene.lenses[0][:4], 0, 0, 0, 0])


def test_fields_that_a_capture_lacks_have_defaults(tmp_path):
  _capture(tmp_path, frames=1)
  def change(content):
    for key in ("fl_y", "cx", "cy", "k1", "k2", "p1", "p2", "w", "h"):
      content.pop(key)
  _edit(tmp_path, change)
  scene = blender.open_source(str(tmp_path), "test")
  np.testing.assert_array_equal(scene.lenses, [[9, 9, 5, 3, 0, 0, 0, 0]])
  assert scene.camera == (H, W, True, False)
  # Angles of view instead of focal lengths.
  def angles(content):
    content.pop("fl_x")
    content.update(camera_angle_x=0.8, camera_angle_y=0.6)
  _edit(tmp_path, angles)
  scene = blender.open_source(str(tmp_path), "test")
  np.testing.assert_allclose(
      [5, 3] / scene.lenses[0, :2], np.tan([0.4, 0.3]), rtol=1e-6)
  assert not scene.camera.pixel_center


def test_splits_of_a_capture(tmp_path):
  _capture(tmp_path, frames=9, suffix=".png")
  def images(split, **kw):
    scene = blender.open_source(str(tmp_path), split, **kw)
    return (scene.images()[:, 0, 0, 1] * 255 / 20).round().tolist()
  assert images("test") == [0, 8] and images("train") == [1, 2, 3, 4, 5, 6, 7]
  assert images("test", hold_out=3) == [0, 3, 6]
  with pytest.raises(config_lib.ConfigError, match="no split 'val'.*'train'"):
    images("val")
  _edit(tmp_path, lambda content: content.update(
      train_filenames=["images/002.png", "images/004.png"],
      val_filenames=["images/003.png"]))
  assert images("train") == [2, 4] and images("val") == [3]
  with pytest.raises(config_lib.ConfigError, match=(
      "no images of the split 'test'.*'val_filenames'")):
    images("test")


@pytest.mark.parametrize("change, message", [
    (dict(camera_model="OPENCV_FISHEYE"), "OPENCV_FISHEYE.*not supported"),
    (dict(is_fisheye=True), "is_fisheye.*not supported"),
    (dict(k3=0.01), "k3.*not supported"),
    (dict(k1="a lot"), "k1 is 'a lot', not a number"),
    (dict(fl_x=0.0), "fl_x=0.0 .* must be positive"),
    (dict(w=2 * W), "w=20, but the image has 10"),
    (dict(k1=-5.0), "folds images of 6 x 10"),
    (dict(fl_x=None), "neither fl_x nor camera_angle_x")])
def test_cameras_that_are_not_supported(tmp_path, change, message):
  _capture(tmp_path, **change)
  with pytest.raises(core.DataError, match=f"'images/000.jpg'.*{message}"):
    blender.open_source(str(tmp_path), "test")
