"""A radiance field without a network: density and colour at grid points.

Source: arXiv:2111.11215 (DVGO), section 4, simplified: there is one grid,
colours do not depend on the direction, and empty space is not skipped. Density
is activated after interpolation (section 4.2), so that edges can be sharp
within a voxel.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision import ranges


def interpolate(grid, points, bound: float):
  """Interpolates trilinearly in a grid over the cube [-bound, bound]^3.

  Args:
    grid: float32[g + 1, g + 1, g + 1, c], values at grid points, the outermost
      of which lie on the faces of the cube.
    points: float32[..., 3], x, y, z; a point outside the cube gets the value at
      the nearest point of its surface.
    bound: Half the length of the cube.

  Returns:
    float32[..., c].
  """
  size = grid.shape[0] - 1
  place = jnp.clip((points + bound) * (size / (2 * bound)), 0.0, size)
  # The last voxel owns its upper face.
  low = jnp.minimum(jnp.floor(place).astype(jnp.int32), size - 1)
  t = place - low
  flat = grid.reshape(-1, grid.shape[-1])
  total = 0.0
  for corner in range(8):
    step = jnp.asarray([corner >> 2 & 1, corner >> 1 & 1, corner & 1])
    x, y, z = jnp.moveaxis(low + step, -1, 0)
    weight = jnp.prod(jnp.where(step == 1, t, 1 - t), axis=-1, keepdims=True)
    total += weight * flat[(x * (size + 1) + y) * (size + 1) + z]
  return total


class Model(nn.Module):
  """A radiance field with the interface of `mlp.Model`.

  Density is softplus(value + b) per length of a voxel, with b chosen such that
  each voxel starts with the opacity `alpha_init`. Outside the cube it is 0.
  Colour is the sigmoid of the interpolated values.

  Attributes:
    size: Number of voxels along each edge; there is one more grid point.
    bound: Half the length of the cube around the origin, world units.
    alpha_init: Opacity of a voxel before training, in (0, 1).

  Raises:
    ValueError: While tracing, if an attribute is out of its range.
  """
  size: ranges.Count = 128
  bound: ranges.Positive = 1.5
  alpha_init: ranges.Positive = 1e-2

  @nn.compact
  def __call__(self, points, directions, noise=0.0):
    """Computes density and colour, see `mlp.Model`; ignores directions."""
    del directions
    if self.size < 1 or self.bound <= 0 or not 0 < self.alpha_init < 1:
      raise ValueError(
          f"size={self.size} and bound={self.bound} must be positive, "
          f"alpha_init={self.alpha_init} between 0 and 1.")
    shape = (self.size + 1,) * 3
    density = self.param("density", nn.initializers.zeros, (*shape, 1))
    colour = self.param("colour", nn.initializers.zeros, (*shape, 3))
    value = interpolate(
        jnp.concatenate([density, colour], axis=-1), points, self.bound)
    # DVGO, Eq. 9, for an interval as long as a voxel.
    shift = math.log(1 / (1 - self.alpha_init) - 1)
    voxel = 2 * self.bound / self.size
    inside = jnp.all(jnp.abs(points) <= self.bound, axis=-1)
    sigma = jax.nn.softplus(value[..., 0] + shift + noise) / voxel
    return jnp.where(inside, sigma, 0.0), nn.sigmoid(value[..., 1:])
