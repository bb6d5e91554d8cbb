"""Autoencoder and discriminator: architecture details that are easy to miss."""

from big_vision.proj.vqgan import autoencoder
from big_vision.proj.vqgan import discriminator
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import drawn

IMAGE = drawn.image((2, 8, 12, 3))
TINY = dict(width=4, mults=(1, 2), depth=1, attn_factors=(2,), z_width=6,
            quantizer="vq(num_codes=5, width=3)")


@pytest.fixture(scope="module")
def tiny():
  model = autoencoder.Model(**TINY)
  return model, drawn.params(model, IMAGE)


def test_shapes_names_and_the_last_layer(tiny):
  model, params = tiny
  reconstruction, out = drawn.apply(model, params, IMAGE)
  assert reconstruction.shape == IMAGE.shape
  assert out["z"].shape == (2, 4, 6, 3) and out["codes"].shape == (2, 4, 6)
  assert set(out["losses"]) == {"codebook", "commitment"}
  assert (model.factor, model.num_codes) == (2, 5)
  assert set(params) == {"encoder", "decoder", "quantize", "quant_conv",
                         "post_quant_conv", "conv_out"}
  assert set(params["encoder"]) == {
      "conv_in", "down_0_block_0", "down_0_downsample", "down_1_block_0",
      "down_1_attn_0", "mid_block_1", "mid_attn_1", "mid_block_2", "norm_out",
      "conv_out"}
  # A block more a level than in the encoder.
  assert {"up_1_block_0", "up_1_block_1", "up_1_upsample", "up_0_block_1",
          "up_1_attn_1"} <= set(params["decoder"])
  np.testing.assert_allclose(
      autoencoder.last_layer(params, out["head_input"]), reconstruction,
      rtol=1e-4, atol=1e-5)
  # No tanh at the end.
  assert np.abs(reconstruction).max() > 1


def test_decoding_the_codes_equals_the_forward_pass(tiny):
  model, params = tiny
  reconstruction, out = drawn.apply(model, params, IMAGE)
  decoded = drawn.apply(model, params, out["codes"], method="decode_codes")
  np.testing.assert_allclose(decoded, reconstruction, rtol=1e-4, atol=1e-4)


def test_downsampling_pads_at_the_end_only():
  class Down(nn.Module):
    @nn.compact
    def __call__(self, x):
      return autoencoder.downsample(x, "conv", jnp.float32)
  kernel = np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1) + 1
  params = {"conv": {"kernel": kernel, "bias": np.zeros(1, np.float32)}}
  x = np.random.default_rng(0).normal(size=(1, 4, 6, 1)).astype(np.float32)
  padded = np.zeros((5, 7))
  padded[:4, :6] = x[0, ..., 0]
  wanted = [[np.sum(padded[2 * i:2 * i + 3, 2 * j:2 * j + 3]
                    * kernel[..., 0, 0]) for j in range(3)] for i in range(2)]
  got = Down().apply({"params": params}, x)
  np.testing.assert_allclose(got[0, ..., 0], wanted, rtol=1e-5)


def test_upsampling_repeats_pixels():
  class Up(nn.Module):
    @nn.compact
    def __call__(self, x):
      return autoencoder.upsample(x, "conv", jnp.float32)
  kernel = np.zeros((3, 3, 1, 1), np.float32)
  kernel[1, 1] = 1
  x = np.random.default_rng(0).normal(size=(1, 2, 3, 1)).astype(np.float32)
  got = Up().apply({"params": {"conv": {
      "kernel": kernel, "bias": np.zeros(1, np.float32)}}}, x)
  np.testing.assert_array_equal(
      got[0, ..., 0], np.kron(x[0, ..., 0], np.ones((2, 2))))


@pytest.mark.parametrize(
    "channels, groups",
    [(2, 1), (8, 2), (14, 1), (64, 16), (144, 16), (256, 32)])
def test_normalization_has_at_most_32_groups(channels, groups):
  class Norm(nn.Module):
    @nn.compact
    def __call__(self, x):
      return autoencoder.normalize(x, "norm", jnp.float32)
  x = 1e-3 * np.random.default_rng(0).normal(size=(2, 3, 2, channels))
  got = Norm().apply({"params": {"norm": {
      "scale": np.ones(channels), "bias": np.zeros(channels)}}}, x)
  grouped = x.reshape(2, 6, groups, -1)
  mean = grouped.mean(axis=(1, 3), keepdims=True)
  # With values this small, an eps other than 1e-6 would show.
  var = grouped.var(axis=(1, 3), keepdims=True)
  wanted = ((grouped - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
  np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


def test_half_precision_keeps_parameters_codes_and_images_float32():
  model = autoencoder.Model(dtype_mm="bfloat16", **TINY)
  for name, leaf in jax.tree_util.tree_leaves_with_path(
      drawn.shapes(model, IMAGE)):
    assert leaf.dtype == jnp.float32, name
  spec, out = jax.eval_shape(
      lambda: model.init_with_output(jax.random.key(0), IMAGE))[0]
  assert spec.dtype == out["z"].dtype == jnp.float32


@pytest.mark.parametrize("shape, message", [
    ((1, 7, 8, 3), "multiples of patch_size.*mults"),
    ((1, 8, 8, 1), "Images have 1 channels; model.channels is 3")])
def test_images_that_do_not_fit_are_errors(tiny, shape, message):
  model, params = tiny
  with pytest.raises(ValueError, match=message):
    model.apply({"params": params}, np.zeros(shape, np.float32))


# --- Discriminator ------------------------------------------------------------


@pytest.mark.parametrize("depth, size", [(2, 34), (3, 70)])
def test_a_logit_sees_as_many_pixels_as_published(monkeypatch, depth, size):
  # Normalization sees the whole image; without it, the rest is local.
  monkeypatch.setattr(
      nn, "GroupNorm", lambda *args, **kw: lambda x: x)
  model = discriminator.Model(width=1, depth=depth)
  image = drawn.image((1, 96, 96, 1))
  params = drawn.params(model, image)
  def logit(image):
    logits = model.apply({"params": params}, image)
    return logits[0, logits.shape[1] // 2, logits.shape[2] // 2]
  seen = np.asarray(jax.grad(logit)(jnp.asarray(image)))[0, :, :, 0] != 0
  assert np.ptp(np.flatnonzero(seen.any(axis=1))) + 1 == size
  assert np.ptp(np.flatnonzero(seen.any(axis=0))) + 1 == size


def _numpy_conv(x, p, stride):
  """Convolves [h, w, c] with padding 1, one output after the other."""
  kernel = np.asarray(p["kernel"], np.float64)
  x = np.pad(x, ((1, 1), (1, 1), (0, 0)))
  h, w = ((size - 4) // stride + 1 for size in x.shape[:2])
  out = np.zeros((h, w, kernel.shape[-1]))
  for i, j in np.ndindex(h, w):
    patch = x[i * stride:i * stride + 4, j * stride:j * stride + 4]
    out[i, j] = np.tensordot(patch, kernel, 3)
  return out + np.asarray(p.get("bias", 0.0))


def test_logits_of_the_discriminator_are_those_of_the_definition():
  model = discriminator.Model(width=4, depth=1)
  image = drawn.image((1, 10, 12, 3))
  params = drawn.params(model, image)
  leaky = lambda x: np.where(x > 0, x, 0.2 * x)
  x = leaky(_numpy_conv(np.float64(image[0]), params["conv_0"], 2))
  x = _numpy_conv(x, params["conv_1"], 1)
  for group in (slice(0, 4), slice(4, 8)):
    x[..., group] = (x[..., group] - x[..., group].mean()) / np.sqrt(
        x[..., group].var() + 1e-6)
  x = leaky(x * params["norm_1"]["scale"] + params["norm_1"]["bias"])
  np.testing.assert_allclose(
      drawn.apply(model, params, image)[0],
      _numpy_conv(x, params["head"], 1)[..., 0], rtol=1e-4, atol=1e-5)


def test_discriminator_starts_as_published():
  model = discriminator.Model(width=16, depth=3)
  params = drawn.jit(model.init)(
      jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))["params"]
  kernels = {name: leaf["kernel"] for name, leaf in params.items()
             if "kernel" in leaf}
  assert {name: kernel.shape for name, kernel in kernels.items()} == {
      "conv_0": (4, 4, 3, 16), "conv_1": (4, 4, 16, 32),
      "conv_2": (4, 4, 32, 64), "conv_3": (4, 4, 64, 128),
      "head": (4, 4, 128, 1)}
  for kernel in kernels.values():
    np.testing.assert_allclose(np.std(kernel), 0.02, rtol=0.15)
  np.testing.assert_allclose(params["norm_3"]["scale"].mean(), 1, atol=0.01)
  assert "bias" in params["conv_0"] and "bias" not in params["conv_1"]


def test_no_statistic_mixes_the_images_of_a_batch():
  model = discriminator.Model(width=4, depth=1)
  image = drawn.image((4, 8, 8, 3))
  params = drawn.params(model, image)
  assert set(jax.eval_shape(
      lambda: model.init(jax.random.key(0), image))) == {"params"}
  together = drawn.apply(model, params, image)
  for i in range(4):
    np.testing.assert_allclose(
        drawn.apply(model, params, image[i:i + 1])[0], together[i],
        rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong, message", [
    (dict(mults=()), "mults must have a number for each level"),
    (dict(quantizer="fsq(levels=8)"), "levels is 8; it must be a list"),
    (dict(quantizer="fsq(levels=(8, 1))"), "FSQ needs levels of 2 or more"),
    (dict(quantizer="vq(num_codes=4, width=0)"), "width is 0"),
    (dict(quantizer="ema(num_codes=4, width=-1)"), "width is -1")])
def test_invalid_sizes_are_errors(wrong, message):
  with pytest.raises(ValueError, match=message):
    drawn.shapes(autoencoder.Model(**{**TINY, **wrong}), IMAGE)


def test_too_small_images_are_refused():
  with pytest.raises(ValueError, match="4 x 4 are too small.*depth 3"):
    drawn.shapes(discriminator.Model(width=4), np.zeros((1, 4, 4, 3)))
