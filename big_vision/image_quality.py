"""Measures images: PSNR and SSIM of two images, sharpness of one.

All functions take batches of images with values in [0, 1] and return one number
for each image. Dimensions: b batch, h w rows and columns, c channels.
"""

import jax
import jax.numpy as jnp
import numpy as np


def psnr(a, b):
  """Computes the peak signal-to-noise ratio, dB; infinite for equal images.

  Args:
    a, b: float32[b, h, w, c] in [0, 1].

  Returns:
    float32[b], -10 log10 of the mean squared error of each image.
  """
  return -10 * jnp.log10(jnp.mean((a - b) ** 2, axis=(1, 2, 3)))


def ssim(a, b):
  """Computes the structural similarity; 1 for equal images, less for others.

  The window is a Gaussian of sigma 1.5 and 11 pixels. The mean is taken over
  all places where the window lies inside the image, and over channels.

  Args:
    a, b: float32[b, h, w, c] in [0, 1], at least 11 x 11.

  Returns:
    float32[b].

  Raises:
    ValueError: The images are smaller.

  Source: Wang et al. 2004, "Image Quality Assessment", with K = (.01, .03).
  """
  if min(a.shape[1:3]) < 11:
    raise ValueError(
        f"SSIM needs images of at least 11 x 11 pixels; they are {a.shape}.")
  taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
  taps = jnp.asarray(taps / taps.sum(), jnp.float32)

  def blur(x):
    for axis in (1, 2):
      n = x.shape[axis] - 10
      x = sum(tap * jax.lax.slice_in_dim(x, i, i + n, axis=axis)
              for i, tap in enumerate(taps))
    return x

  mean_a, mean_b = blur(a), blur(b)
  var_a, var_b = blur(a * a) - mean_a ** 2, blur(b * b) - mean_b ** 2
  cov = blur(a * b) - mean_a * mean_b
  c1, c2 = 0.01 ** 2, 0.03 ** 2
  value = ((2 * mean_a * mean_b + c1) * (2 * cov + c2)
           / ((mean_a ** 2 + mean_b ** 2 + c1) * (var_a + var_b + c2)))
  return jnp.mean(value, axis=(1, 2, 3))


def sharpness(image):
  """Computes the mean absolute value of the Laplacian; 0 for a flat image.

  Args:
    image: float32[b, h, w, c] in [0, 1].

  Returns:
    float32[b].
  """
  inner = image[:, 1:-1, 1:-1]
  laplacian = (
      image[:, :-2, 1:-1] + image[:, 2:, 1:-1] + image[:, 1:-1, :-2]
      + image[:, 1:-1, 2:] - 4 * inner)
  return jnp.mean(jnp.abs(laplacian), axis=(1, 2, 3))
