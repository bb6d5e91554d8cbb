"""Lenses: from pixels to directions in a camera's coordinates, and back.

A lens is eight numbers, float[8], named by FIELDS: focal lengths and the place
of the optical axis in pixels, counted from the upper left corner of the image,
and the distortion of OpenCV's model. With z forward, x right and y down, the
point (x, y, 1) appears at the pixel (fl_x * x' + cx, fl_y * y' + cy), where

  x' = x (1 + k1 r^2 + k2 r^4) + 2 p1 x y + p2 (r^2 + 2 x^2)
  y' = y (1 + k1 r^2 + k2 r^4) + p1 (r^2 + 2 y^2) + 2 p2 x y,  r^2 = x^2 + y^2.

The functions take NumPy and jax arrays alike.
"""

import numpy as np

FIELDS = ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2")


def pinhole(height: int, width: int, focal: float) -> np.ndarray:
  """Returns a lens without distortion whose axis meets the image's middle."""
  return np.asarray([focal, focal, width / 2, height / 2, 0., 0., 0., 0.])


def distort(x, y, lens):
  """Moves ideal image points to those where the lens shows them.

  Args:
    x, y: float[...], the point (x, y, 1) in units of the focal length.
    lens: float[..., 8].

  Returns:
    x', y' of the module's docstring, float[...].
  """
  k1, k2, p1, p2 = (lens[..., i] for i in range(4, 8))
  r2 = x * x + y * y
  radial = 1 + r2 * (k1 + r2 * k2)
  return (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
          y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y)


def undistort(distorted_x, distorted_y, lens, num_steps: int = 10):
  """Inverts `distort` by Newton's method, from the distorted point on.

  Args:
    distorted_x, distorted_y: float[...], x' and y'.
    lens: float[..., 8].
    num_steps: Number of iterations.

  Returns:
    x, y: float[...].
  """
  k1, k2, p1, p2 = (lens[..., i] for i in range(4, 8))
  x, y = distorted_x, distorted_y
  for _ in range(num_steps):
    at_x, at_y = distort(x, y, lens)
    error_x, error_y = at_x - distorted_x, at_y - distorted_y
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * k2)
    slope = 2 * k1 + 4 * k2 * r2  # The derivative of radial is slope * (x, y).
    # The matrix of derivatives, [[a, b], [b, c]].
    a = radial + slope * x * x + 2 * p1 * y + 6 * p2 * x
    b = slope * x * y + 2 * p1 * x + 2 * p2 * y
    c = radial + slope * y * y + 6 * p1 * y + 2 * p2 * x
    determinant = a * c - b * b
    x = x - (c * error_x - b * error_y) / determinant
    y = y - (a * error_y - b * error_x) / determinant
  return x, y


def largest_error(lens, height: int, width: int) -> float:
  """Returns how far, in pixels, undistorted pixels are from themselves.

  It is large or NaN if the distortion folds the image, so that no inverse
  exists for some of its pixels.

  Args:
    lens: float[8].
    height, width: Size of the image, pixels.
  """
  rows, columns = np.meshgrid(
      np.linspace(0, height, 17), np.linspace(0, width, 17), indexing="ij")
  lens = np.asarray(lens, np.float64)
  fl_x, fl_y, cx, cy = lens[:4]
  x, y = (columns - cx) / fl_x, (rows - cy) / fl_y
  with np.errstate(all="ignore"):
    again_x, again_y = distort(*undistort(x, y, lens), lens)
    return float(np.max(np.hypot((again_x - x) * fl_x, (again_y - y) * fl_y)))
