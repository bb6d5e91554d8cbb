"""LPIPS against loops of NumPy, and torch's VGG where it is installed."""

from big_vision.proj.vqgan import lpips
import jax
import numpy as np
import pytest

from tests import drawn


@pytest.fixture(scope="module")
def weights():
  rng = np.random.default_rng(0)
  drawn = {}
  for name, shape in lpips.expected_shapes().items():
    fan_in = max(1, np.prod(shape[1:]))
    drawn[name] = rng.normal(size=shape, scale=np.sqrt(2 / fan_in)).astype(
        np.float32)
    if name.startswith("lin"):
      drawn[name] = np.abs(drawn[name])
  return drawn


def _images():
  rng = np.random.default_rng(1)
  return rng.uniform(-1, 1, (2, 1, 16, 16, 3)).astype(np.float32)


def _numpy_features(weights, image):
  x = (image.astype(np.float64) - [-0.030, -0.088, -0.188]) / [
      0.458, 0.448, 0.450]
  x = x.transpose(0, 3, 1, 2)
  found = []
  for s, places in enumerate(
      ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), start=1):
    if s > 1:
      x = np.maximum.reduce([
          x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)])
    for place in places:
      kernel = weights[f"net.slice{s}.{place}.weight"]
      padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
      h, w = x.shape[2:]
      x = sum(np.einsum("bchw,oc->bohw", padded[:, :, i:i + h, j:j + w],
                        kernel[:, :, i, j]) for i in range(3) for j in range(3))
      x = np.maximum(
          x + weights[f"net.slice{s}.{place}.bias"][:, None, None], 0)
    found.append(x)
  return found


distance = drawn.jit(lpips.distance)


def test_distance_is_what_loops_compute(weights):
  a, b = _images()
  wanted = 0.0
  for i, (x, y) in enumerate(zip(
      _numpy_features(weights, a), _numpy_features(weights, b))):
    x, y = (v / (np.sqrt(np.sum(v ** 2, 1, keepdims=True)) + 1e-10)
            for v in (x, y))
    lin = weights[f"lin{i}.model.1.weight"][0]
    wanted += np.mean(np.sum((x - y) ** 2 * lin, axis=1), axis=(1, 2))
  got = distance(weights, a, b)
  assert got.shape == (1,) and wanted > 0.01
  np.testing.assert_allclose(got, wanted, rtol=1e-3)


def test_equal_images_have_no_distance(weights):
  a, _ = _images()
  assert distance(weights, a, a) == 0


def test_unit_vectors_have_gradients_where_nothing_is_active():
  x = np.array([[0, 0, 0], [3, 0, 4]], np.float32)
  np.testing.assert_allclose(
      lpips.unit(x), [[0, 0, 0], [0.6, 0, 0.8]], atol=1e-6)
  assert np.isfinite(jax.grad(lambda x: lpips.unit(x)[1].sum())(x)).all()
  assert np.isfinite(jax.grad(lambda x: (lpips.unit(x) ** 2).sum())(x)).all()


def test_grey_images_are_taken_as_colours_that_are_alike(weights):
  a, b = (x[..., :1] for x in _images())
  np.testing.assert_allclose(
      distance(weights, a.repeat(3, -1), b.repeat(3, -1)),
      drawn.jit(lpips.distance)(weights, a, b), rtol=1e-5)


def test_files_are_checked(weights, tmp_path):
  fname = str(tmp_path / "lpips.npz")
  np.savez(fname, **weights, unrelated=np.zeros(3))
  loaded = lpips.load(fname)
  assert set(loaded) == set(weights)
  for name, value in loaded.items():
    np.testing.assert_array_equal(value, weights[name], err_msg=name)
  np.savez(fname, **{**weights, "lin0.model.1.weight": np.zeros(3)})
  with pytest.raises(ValueError, match=r"lin0.*wanted \(1, 64, 1, 1\), it is"):
    lpips.load(fname)
  with pytest.raises(ValueError, match="missing.npz"):
    lpips.load(str(tmp_path / "missing.npz"))


@pytest.mark.peer
def test_features_are_those_of_torch(weights):
  torch = pytest.importorskip("torch")
  a, _ = _images()
  x = torch.tensor((a - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450])
  x = x.float().permute(0, 3, 1, 2)
  layers = iter(range(100))
  features = lpips.features(weights, a)
  for s, places in enumerate(lpips.SLICES, start=1):
    if s > 1:
      x = torch.nn.functional.max_pool2d(x, 2)
      next(layers)
    for place in places:
      assert next(layers) == place  # Places count ReLU and pooling too.
      x = torch.relu(torch.nn.functional.conv2d(
          x, torch.tensor(weights[f"net.slice{s}.{place}.weight"]),
          torch.tensor(weights[f"net.slice{s}.{place}.bias"]), padding=1))
      next(layers)
    np.testing.assert_allclose(
        features[s - 1], x.permute(0, 2, 3, 1), rtol=1e-3, atol=1e-4)
