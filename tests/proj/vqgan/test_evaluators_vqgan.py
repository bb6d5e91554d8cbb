"""Evaluators of VQGAN, on arrays in memory."""

import types

from big_vision import config as config_lib
from big_vision.proj.vqgan import bits_per_code
from big_vision.proj.vqgan import codebook_usage
from big_vision.proj.vqgan import discriminator_accuracy
from big_vision.proj.vqgan import frechet
from big_vision.proj.vqgan import perceptual
from big_vision.proj.vqgan import reconstruction
from big_vision.proj.vqgan import samples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from tests.array_data import assert_is_key

RNG = np.random.default_rng(0)
COMMON = dict(data={"name": "x"}, pp_fn="")


def _predicts(fn):
  """Makes a predict function of a function of the batch alone."""
  def predict(state, batch, *, rng=None):
    del state
    assert_is_key(rng)
    return fn(batch)
  return predict


def _run(evaluator, state=None):
  return dict(evaluator.run(state or {}))


def test_codes_are_counted_over_the_whole_set(serve, loader, capsys):
  """Each batch uses one code; together they use four of eight."""
  codes = np.repeat([0, 3, 5, 7], 16)[:60, None].repeat(2, axis=1)
  serve({"x": {"codes": codes.astype(np.int32)}})
  evaluator = codebook_usage.Evaluator(
      _predicts(lambda batch: {
          "codes": batch["codes"],
          "num_codes": jnp.full(len(batch["codes"]), 8)}),
      loader, **COMMON)
  values = _run(evaluator)
  assert values["usage"] == 0.5
  p = np.array([16, 16, 16, 12]) / 60
  bits = -np.sum(p * np.log2(p))
  np.testing.assert_allclose(values["bits_per_code"], bits)
  np.testing.assert_allclose(values["perplexity"], 2 ** bits)
  assert "WARNING" not in capsys.readouterr().out


def test_a_collapsed_codebook_causes_a_warning(serve, loader, capsys):
  serve({"x": {"codes": np.full((20, 3), 4, np.int32)}})
  evaluator = codebook_usage.Evaluator(
      _predicts(lambda batch: {
          "codes": batch["codes"],
          "num_codes": jnp.full(len(batch["codes"]), 64)}),
      loader, **COMMON)
  values = _run(evaluator, {"step": np.int32(0)})
  assert values == {"usage": 1 / 64, "perplexity": 1, "bits_per_code": 0}
  assert not capsys.readouterr().out  # Before any update.
  _run(evaluator, {"step": np.int32(9)})
  assert "1 of 64 codes are used: the codebook collapses" in (
      capsys.readouterr().out)


def test_bits_per_code_and_their_unigram_entropy(serve, loader):
  nll = RNG.uniform(0, 5, (37, 6)).astype(np.float32)
  codes = RNG.integers(0, 4, (37, 6)).astype(np.int32)
  serve({"x": {"nll": nll, "codes": codes}})
  values = _run(bits_per_code.Evaluator(
      _predicts(lambda batch: {"nll": batch["nll"], "codes": batch["codes"]}),
      loader, **COMMON))
  np.testing.assert_allclose(
      values["bits_per_code"], nll.mean() / np.log(2), rtol=1e-6)
  np.testing.assert_allclose(
      values["bits_per_image"], nll.sum(axis=1).mean() / np.log(2), rtol=1e-6)
  p = np.bincount(codes.ravel()) / codes.size
  np.testing.assert_allclose(
      values["unigram_bits"], scipy.stats.entropy(p, base=2))


def test_discriminator_accuracy_counts_patches(serve, loader):
  real, fake = RNG.normal(size=(2, 37, 3, 2)).astype(np.float32) + 0.3
  serve({"x": {"real": real, "fake": fake}})
  values = _run(discriminator_accuracy.Evaluator(
      _predicts(lambda batch: {"real": batch["real"], "fake": batch["fake"]}),
      loader, **COMMON))
  right = np.mean(real > 0), np.mean(fake < 0)
  np.testing.assert_allclose(
      (values["accuracy_real"], values["accuracy_fake"]), right)
  np.testing.assert_allclose(values["accuracy"], np.mean(right))


def test_reconstructions_are_clipped_before_they_are_measured(serve, loader):
  metrics = pytest.importorskip("skimage.metrics")
  image = RNG.uniform(-1, 1, (19, 12, 12, 1)).astype(np.float32)
  serve({"x": {"image": image}})
  values = _run(reconstruction.Evaluator(
      _predicts(lambda batch: {"image": 1.5 * batch["image"]}),
      loader, num_pictures=5, **COMMON))
  cut = np.clip(1.5 * image, -1, 1)
  np.testing.assert_allclose(
      values["l1"], np.abs(image - cut).mean(), rtol=1e-5)
  np.testing.assert_allclose(values["psnr"], np.mean([
      metrics.peak_signal_noise_ratio(a, b, data_range=1)
      for a, b in zip((image + 1) / 2, (cut + 1) / 2)]), rtol=1e-5)
  np.testing.assert_allclose(values["ssim"], np.mean([
      metrics.structural_similarity(
          a, b, data_range=1, channel_axis=-1, gaussian_weights=True, sigma=1.5,
          use_sample_covariance=False)
      for a, b in zip((image + 1) / 2, (cut + 1) / 2)]), rtol=1e-4)
  assert values["sharpness"] > 1
  assert values["images"].shape == (2 * 13 - 1, 5 * 13 - 1, 1)
  np.testing.assert_array_equal(
      values["images"][13:25, 13:25, 0],
      np.round((cut[1, ..., 0] + 1.0) * 127.5))


def test_each_batch_of_samples_has_a_key_of_its_own(serve, loader):
  serve({"x": {"label": np.zeros(40, np.int32)}})
  def draw(state, batch, *, rng):
    return {"image": jax.random.uniform(rng, (len(batch["label"]), 4, 4, 1))}
  values = _run(samples.Evaluator(
      draw, loader, num_samples=30, num_pictures=24,
      **COMMON))
  assert set(values) == {"images"}
  cells = values["images"][:, :, 0]
  cells = [cells[5 * i:5 * i + 4, 5 * j:5 * j + 4].tobytes()
           for i in range(3) for j in range(8)]
  assert len(set(cells)) == 24


def _classifier_of_the_mean(monkeypatch):
  """The class of an image is the tenth that its mean is in."""
  def classify(variables, image):
    del variables
    number = jnp.floor(image.mean(axis=(1, 2, 3)) * 10).astype(jnp.int32)
    return jax.nn.one_hot(number, 10), {}
  monkeypatch.setattr(
      samples.pretrained, "classifier", lambda *unused: (classify, {}))


@pytest.mark.parametrize("num_samples", [1, 16, 21, 40, None])
def test_exactly_num_samples_images_are_recognized(
    serve, loader, monkeypatch, num_samples):
  """Of the images, number i is drawn rightly if i is a multiple of 3."""
  _classifier_of_the_mean(monkeypatch)
  number = np.arange(40)
  label = np.where(number % 3 == 0, 2, 1).astype(np.int32)
  serve({"x": {"label": label}})
  values = _run(samples.Evaluator(
      _predicts(lambda batch: {
          "image": jnp.full((len(batch["label"]), 4, 4, 1), 0.25)}),
      loader, classifier="finished", num_samples=num_samples, num_pictures=0,
      **COMMON))
  used = 40 if num_samples is None else num_samples
  assert values["recognized"] == np.mean(number[:used] % 3 == 0)


@pytest.mark.parametrize("module, options", [
    (samples, {}), (frechet, {"network": {}})])
def test_more_samples_than_examples_are_refused(
    serve, loader, monkeypatch, module, options):
  _use_network(monkeypatch)
  serve({"x": {"label": np.zeros(40, np.int32)}})
  with pytest.raises(
      config_lib.ConfigError, match="is 41; it must be from 1 to 40"):
    module.Evaluator(_predicts(lambda batch: batch), loader, num_samples=41,
                     **options, **COMMON)


@pytest.mark.parametrize("module, options", [
    (samples, {}), (frechet, {"network": {}})])
def test_images_that_are_not_finite_are_an_error(
    serve, loader, monkeypatch, module, options):
  _use_network(monkeypatch)
  image = np.zeros((40, 3, 3, 1), np.float32)
  image[[3, 17], 0] = np.nan
  serve({"x": {"image": np.zeros_like(image), "found": image}})
  evaluator = module.Evaluator(
      _predicts(lambda batch: {"image": batch["found"]}), loader, **options,
      **COMMON)
  with pytest.raises(ValueError, match="2 of 40 .* are not finite"):
    _run(evaluator)


# --- Frechet ------------------------------------------------------------------


def test_frechet_distance_equals_that_by_matrix_root():
  a = RNG.normal(size=(50, 4)) @ RNG.normal(size=(4, 4))
  b = RNG.normal(size=(40, 4)) @ RNG.normal(size=(4, 4)) + 1
  cov_a, cov_b = np.cov(a.T), np.cov(b.T)
  root = scipy.linalg.sqrtm(cov_a @ cov_b).real
  wanted = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(
      cov_a + cov_b - 2 * root)
  np.testing.assert_allclose(frechet.distance(a, b), wanted, rtol=1e-9)
  np.testing.assert_allclose(frechet.distance(a, a), 0, atol=1e-9)
  # With fewer images than features the covariance is singular.
  assert np.isfinite(frechet.distance(a[:3], b[:2]))


def test_frechet_distance_of_one_feature_equals_its_closed_form():
  a, b = RNG.normal(size=(30, 1)), 3 * RNG.normal(size=(20, 1)) + 2
  wanted = (a.mean() - b.mean()) ** 2 + (
      a.std(ddof=1) - b.std(ddof=1)) ** 2
  np.testing.assert_allclose(frechet.distance(a, b), wanted, rtol=1e-9)


def _use_network(monkeypatch):
  """Replaces the network by one whose last features are twice the pixels."""
  network = perceptual.Network(
      "classifier", load=lambda: {"w": np.float32(2)},
      features=lambda variables, image: [image[..., :1],
                                         variables["w"] * image],
      distance=None)
  monkeypatch.setattr(frechet, "perceptual", types.SimpleNamespace(
      make=lambda options, where: network))


@pytest.mark.parametrize("num_samples", [None, 19])
def test_the_distance_is_of_num_samples_and_named_after_its_network(
    serve, loader, monkeypatch, num_samples):
  _use_network(monkeypatch)
  image = RNG.uniform(-1, 1, (37, 3, 3, 2)).astype(np.float32)
  serve({"x": {"image": image}})
  values = _run(frechet.Evaluator(
      _predicts(lambda batch: {"image": batch["image"] / 2}),
      loader, network={}, num_samples=num_samples, **COMMON))
  pooled = 2 * image[:num_samples].mean(axis=(1, 2))
  assert set(values) == {"frechet_classifier"}
  np.testing.assert_allclose(
      values["frechet_classifier"], frechet.distance(pooled, pooled / 2),
      rtol=1e-4)
