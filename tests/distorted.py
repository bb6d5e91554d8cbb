"""Images and an oracle for tests of distortions and of RandAugment."""

import math

import numpy as np


def images():
  """Makes images: noise, few dark colours, grey, and grey but for one pixel."""
  rng = np.random.default_rng(0)
  dark = rng.integers(30, 90, (15, 17, 3)) // 7 * 7
  almost = np.full((15, 17, 3), 50)
  almost[3, 4] = 200, 50, 10
  return [
      rng.integers(0, 256, (24, 21, 3)).astype(np.uint8),
      dark.astype(np.uint8), np.full((15, 17, 3), 77, np.uint8),
      almost.astype(np.uint8)]


def gather(image, coefficients):
  """Moves pixels by an affine map as `distortions.transform` is defined."""
  a, b, c, d, e, f = coefficients
  out = np.full_like(image, 128)
  height, width, _ = image.shape
  for y in range(height):
    for x in range(width):
      from_x = math.floor(a * (x + .5) + b * (y + .5) + c)
      from_y = math.floor(d * (x + .5) + e * (y + .5) + f)
      if 0 <= from_x < width and 0 <= from_y < height:
        out[y, x] = image[from_y, from_x]
  return out
