"""Compares PSNR and SSIM with scikit-image, and sharpness with a loop."""

from big_vision import image_quality
import numpy as np
import pytest

RNG = np.random.default_rng(0)
A = RNG.uniform(size=(3, 14, 17, 3)).astype(np.float32)
B = np.clip(A + RNG.normal(size=A.shape, scale=[[[[0.05]]], [[[0.2]]],
                                                [[[1.0]]]]), 0, 1).astype(
                                                    np.float32)


def test_psnr_is_computed_for_each_image():
  measure = pytest.importorskip("skimage.metrics")
  np.testing.assert_allclose(
      image_quality.psnr(A, B),
      [measure.peak_signal_noise_ratio(a, b, data_range=1)
       for a, b in zip(A, B)], rtol=1e-5)
  # The mean of two images' PSNR is not that of their pooled error.
  assert np.ptp(image_quality.psnr(A, B)) > 5


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_equals_that_of_scikit_image(channels):
  measure = pytest.importorskip("skimage.metrics")
  a, b = A[..., :channels], B[..., :channels]
  np.testing.assert_allclose(
      image_quality.ssim(a, b),
      [measure.structural_similarity(
          x, y, data_range=1, channel_axis=-1, gaussian_weights=True, sigma=1.5,
          use_sample_covariance=False) for x, y in zip(a, b)],
      rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(image_quality.ssim(a, a), 1, rtol=1e-5)
  with pytest.raises(ValueError, match="at least 11 x 11"):
    image_quality.ssim(a[:, :10], b[:, :10])


def test_sharpness_is_the_mean_laplacian():
  total = np.zeros(3)
  for n, i, j, c in np.ndindex(3, 12, 15, 3):
    around = (A[n, i, j + 1, c] + A[n, i + 2, j + 1, c] + A[n, i + 1, j, c]
              + A[n, i + 1, j + 2, c])
    total[n] += abs(around - 4 * A[n, i + 1, j + 1, c])
  np.testing.assert_allclose(
      image_quality.sharpness(A), total / (12 * 15 * 3), rtol=1e-5)
