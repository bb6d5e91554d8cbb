"""Radiance fields against parameter counts, closed forms and SciPy."""

from big_vision import tree
from big_vision.proj.nerf import mlp
from big_vision.proj.nerf import voxels
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from tests import drawn

POINTS = np.random.default_rng(0).uniform(-1, 1, (2, 5, 3)).astype(np.float32)
DIRECTIONS = np.asarray([[[0, 0.6, 0.8]], [[1, 0, 0]]], np.float32).repeat(5, 1)


def _init(model):
  shapes = jax.eval_shape(model.init, jax.random.key(0), POINTS, DIRECTIONS)
  return shapes["params"]


def test_both_encodings_match_their_formulas():
  x = np.asarray([[0.25, -0.5, 1.0]], np.float32)
  code, paper = map(np.asarray, drawn.jit(lambda x: (
      mlp.encode(x, 10),
      mlp.encode(x, 10, include_input=False, use_pi=True)))(x))
  assert code.shape == (1, 63) and paper.shape == (1, 60)
  for include, size in ((True, 27), (False, 24)):
    shape = jax.eval_shape(
        lambda x, i=include: mlp.encode(x, 4, include_input=i), x)
    assert shape.shape == (1, size)
  np.testing.assert_array_equal(code[:, :3], x)
  for k in range(10):
    for got, factor in ((code[0, 3:], 1), (paper[0], np.pi)):
      angle = np.float64(x[0]) * 2 ** k * factor
      np.testing.assert_allclose(
          got[6 * k:6 * k + 3], np.sin(angle), atol=2e-4)
      np.testing.assert_allclose(
          got[6 * k + 3:6 * k + 6], np.cos(angle), atol=2e-4)
  # Of .25 with pi: sin(pi/4), cos(pi/4), sin(pi/2), cos(pi/2), ...
  np.testing.assert_allclose(
      paper[0, 0:18:3], [.5 ** .5, .5 ** .5, 1, 0, 0, -1], atol=1e-6)


def test_the_parameter_count_is_the_published_one():
  params = _init(mlp.Model())
  assert tree.num_elements(params) == 595_844
  assert params["layer4"]["kernel"].shape == (256, 256)
  assert params["layer5"]["kernel"].shape == (256 + 63, 256)
  assert params["density"]["kernel"].shape == (256, 1)
  # Not after the last layer, where nothing would be left to use it.
  shallow = _init(mlp.Model(depth=5))
  assert shallow["density"]["kernel"].shape == (256, 1)


def _numpy_mlp(params, model, points, directions):
  dense = lambda x, name: x @ np.float64(params[name]["kernel"]) + np.float64(
      params[name]["bias"])
  def encode(x, num):
    return np.concatenate([x] + [f(2 ** k * np.float64(x)) for k in range(num)
                                 for f in (np.sin, np.cos)], -1)
  place = encode(points, model.point_frequencies)
  x = place
  for i in range(model.depth):
    x = np.maximum(dense(x, f"layer{i}"), 0)
    if i == model.skip:
      x = np.concatenate([place, x], -1)
  raw = dense(x, "density")[..., 0]
  way = encode(directions, model.direction_frequencies)
  x = np.concatenate([dense(x, "bottleneck"), way], -1)
  x = np.maximum(dense(x, "colour_hidden"), 0)
  return raw, 1 / (1 + np.exp(-dense(x, "colour")))


@pytest.fixture(scope="module")
def small():
  model = mlp.Model(width=8, depth=4, skip=1, colour_width=6,
                    point_frequencies=3, direction_frequencies=2)
  rng = np.random.default_rng(1)
  params = jax.tree.map(
      lambda s: rng.normal(size=s.shape).astype(np.float32) * 0.5, _init(model))
  return model, params, _numpy_mlp(params, model, POINTS, DIRECTIONS)


def test_the_network_is_that_of_figure_7(small):
  model, params, (raw, rgb) = small
  assert (raw > 0).any() and (raw < 0).any()
  got = drawn.apply(model, params, POINTS, DIRECTIONS)
  np.testing.assert_allclose(got[0], np.maximum(raw, 0), atol=1e-5)
  np.testing.assert_allclose(got[1], rgb, atol=1e-5)


def test_noise_is_added_before_the_relu(small):
  model, params, (raw, _) = small
  noise = np.random.default_rng(2).normal(size=raw.shape).astype(np.float32)
  density, _ = drawn.apply(model, params, POINTS, DIRECTIONS, noise)
  np.testing.assert_allclose(density, np.maximum(raw + noise, 0), atol=1e-5)
  assert (density >= 0).all()


def test_lower_precision_is_of_products_alone(small):
  model, params, (raw, rgb) = small
  low = model.clone(dtype_mm="bfloat16")
  assert {leaf.dtype for leaf in jax.tree.leaves(_init(low))} == {
      jnp.dtype("float32")}
  density, colour = drawn.apply(low, params, POINTS, DIRECTIONS)
  assert density.dtype == colour.dtype == jnp.float32
  np.testing.assert_allclose(density, np.maximum(raw, 0), atol=0.15)
  np.testing.assert_allclose(colour, rgb, atol=0.05)
  with pytest.raises(ValueError, match="float61"):
    _init(model.clone(dtype_mm="float61"))


def test_interpolation_is_that_of_scipy():
  rng = np.random.default_rng(0)
  grid = rng.normal(size=(5, 5, 5, 2)).astype(np.float32)
  points = rng.uniform(-1.6, 1.6, (200, 3)).astype(np.float32)
  points[0], points[1], points[2] = 1.5, -1.5, (0.75, -0.75, 0)  # On vertices.
  got = drawn.jit(voxels.interpolate)(grid, points, 1.5)
  place = (np.float64(points) + 1.5) / 3 * 4
  expected = [scipy.ndimage.map_coordinates(
      grid[..., c], place.T, order=1, mode="nearest") for c in range(2)]
  np.testing.assert_allclose(got, np.stack(expected, -1), atol=1e-5)
  np.testing.assert_array_equal(got[0], grid[4, 4, 4])
  np.testing.assert_array_equal(got[2], grid[3, 1, 2])


def test_voxels_begin_as_thin_grey_fog():
  model = voxels.Model(size=4, bound=1.5, alpha_init=0.01)
  params = drawn.jit(model.init)(
      jax.random.key(0), POINTS, DIRECTIONS)["params"]
  assert params["density"].shape == (5, 5, 5, 1)
  assert params["colour"].shape == (5, 5, 5, 3)
  points = np.asarray([[0, 0, 0], [1.4, -1.4, 1.4], [1.6, 0, 0], [0, 0, -9]],
                      np.float32)
  density, rgb = drawn.apply(model, params, points, points)
  # Over the length of a voxel, 0.75, a hundredth is absorbed.
  np.testing.assert_allclose(
      1 - np.exp(-0.75 * density), [0.01, 0.01, 0, 0], atol=1e-6)
  np.testing.assert_array_equal(rgb, 0.5)
  noisy, _ = drawn.apply(
      model, params, points, points, np.full(4, 3, np.float32))
  raw = np.log(1 / 0.99 - 1) + 3
  np.testing.assert_allclose(
      noisy[:2], np.log1p(np.exp(raw)) / 0.75, rtol=1e-5)
  with pytest.raises(ValueError, match="alpha_init=1.5"):
    _init(voxels.Model(alpha_init=1.5))
