"""Position embeddings: learned ones, fixed ones, and grids of another size.

They are added to tokens before the first block. Embeddings that act within
attention plug in elsewhere: rotary ones turn queries and keys in
`attention.MultiHeadAttention`, relative ones are a `bias` of
`attention.attend`.

Dimensions: b batch, h w rows and columns of patches, n tokens, d width.
"""

from collections.abc import Sequence
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import scipy.ndimage


def learned(module: nn.Module, num_tokens: int, width: int):
  """Creates one learned vector per position, float32[1, n, d].

  It is the parameter "pos_embedding" of `module`, from whose compact method
  this is called, and begins as N(0, 1 / d).
  """
  return module.param(
      "pos_embedding", nn.initializers.normal(stddev=1 / math.sqrt(width)),
      (1, num_tokens, width), jnp.float32)


def sincos(position, width: int):
  """Returns sines and cosines of a coordinate, at falling frequencies.

  Args:
    position: number[...].
    width: Even number of channels; channel 2j is the sine and 2j + 1 the cosine
      of position / 10000^(2j / width).

  Returns:
    float32[..., width] in [-1, 1].

  Raises:
    ValueError: `width` is odd.

  Source: arXiv:1706.03762, Section 3.5.
  """
  if width % 2:
    raise ValueError(f"Coordinates want an even width, it is {width}.")
  omega = 10_000. ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  angle = jnp.asarray(position, jnp.float32)[..., None] * omega
  both = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
  return both.reshape(*angle.shape[:-1], width)


def sincos2d(h: int, w: int, width: int, temperature: float = 10_000.):
  """Returns a fixed embedding of a grid, in raster order.

  The channels are four equal parts: sin x, cos x, sin y, cos y, each at
  geometrically falling frequencies.

  Args:
    h: Number of rows.
    w: Number of columns.
    width: D, a multiple of 4 and at least 8.
    temperature: Ratio of the highest frequency to the lowest.

  Returns:
    float32[1, h * w, d] in [-1, 1].

  Raises:
    ValueError: `width` is not a multiple of 4, or less than 8.

  Source: arXiv:2104.02057 (MoCo v3).
  """
  if width % 4 or width < 8:
    raise ValueError(
        f"posemb='sincos2d' wants a width that is a multiple of 4 and at least "
        f"8, it is {width}.")
  omega = temperature ** -(np.arange(width // 4) / (width // 4 - 1))
  y, x = jnp.asarray(
      np.mgrid[:h, :w].reshape(2, h * w, 1), jnp.float32) * omega
  # Computed in jnp: NumPy constants of this size would swell the program.
  return jnp.concatenate(
      [jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=1)[None]


def resample(
    posemb, grid: tuple[int, int], new_grid: tuple[int, int]) -> np.ndarray:
  """Interpolates the embeddings of a grid linearly to another grid.

  The corners stay in place ("align corners"): 4 numbers 0, 1, 2, 3 become, for
  8, 0, 3/7, 6/7, ... 3.

  Args:
    posemb: float[1, h * w, d].
    grid: (h, w) of `posemb`.
    new_grid: (h, w) of the result.

  Returns:
    float32[1, new h * new w, d], in NumPy.
  """
  old = np.asarray(posemb, np.float32).reshape(*grid, -1)
  zoom = (new_grid[0] / grid[0], new_grid[1] / grid[1], 1)
  new = scipy.ndimage.zoom(old, zoom, order=1)
  return new.reshape(1, math.prod(new_grid), -1)


def infer_grid(
    num_patches: int, given: Sequence[int] | None,
    argument: str) -> tuple[int, int]:
  """Returns the grid that was given, or else the square of `num_patches`.

  Args:
    num_patches: Number of position embeddings.
    given: (height, width) in patches, or None.
    argument: Name of the argument that gives it, for errors.

  Raises:
    ValueError: The given grid does not hold `num_patches`, or none is given and
      they do not form a square.
  """
  if given is None:
    side = math.isqrt(num_patches)
    if side * side != num_patches:
      raise ValueError(
          f"{num_patches} position embeddings do not form a square grid; state "
          f"its (height, width) in patches as {argument}.")
    return side, side
  grid = tuple(given)
  if len(grid) != 2 or math.prod(grid) != num_patches:
    raise ValueError(
        f"{argument} is {grid}, which does not hold the {num_patches} position "
        "embeddings there are.")
  return grid
