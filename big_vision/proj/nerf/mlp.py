"""NeRF's network: maps a point and a direction to density and colour.

Source: arXiv:2003.08934, section 5.1 and figure 7. Where the published code
(bmild/nerf, JaxNeRF) differs, the defaults are the code's: frequencies without
pi, the encoded point includes the point itself, the colour branch has one layer
of width 128, and the encoded point is concatenated again after the fifth layer.
"""

import flax.linen as nn
import jax.numpy as jnp

from big_vision import ranges
from big_vision.layers import checks


def encode(x, num_frequencies: int, *, include_input: bool = True,
           use_pi: bool = False):
  """Returns sines and cosines of x at frequencies 1, 2, 4, ... (times pi).

  Args:
    x: float32[..., 3].
    num_frequencies: Number of frequencies, L of Eq. 4.
    include_input: Whether x itself comes first, as in the published code.
    use_pi: Whether frequencies are 2**k pi, as in the paper, rather than 2**k,
      as in the published code.

  Returns:
    float32[..., 3 * (2 * L + include_input)]: x, sin x, cos x, sin 2x, ...

  Source: arXiv:2003.08934, Eq. 4.
  """
  parts = [x] if include_input else []
  for k in range(num_frequencies):
    angle = x * (2.0 ** k * (jnp.pi if use_pi else 1.0))
    parts += [jnp.sin(angle), jnp.cos(angle)]
  return jnp.concatenate(parts, axis=-1)


class Model(nn.Module):
  """A radiance field as a multilayer perceptron, see `__call__`.

  Attributes:
    width, depth: Size of the trunk.
    skip: Index of the layer after which the encoded point is concatenated
      again; ignored if it is the last one.
    colour_width: Width of the layer before the colour.
    point_frequencies, direction_frequencies: Numbers of frequencies, see
      `encode`.
    include_input, use_pi: Form of the encoding, see `encode`.
    dtype_mm: Dtype of matrix products and activations; the encoding, density
      and colour are float32.
  """
  width: ranges.Count = 256
  depth: ranges.Count = 8
  skip: ranges.CountOrZero = 4
  colour_width: ranges.Count = 128
  point_frequencies: ranges.CountOrZero = 10
  direction_frequencies: ranges.CountOrZero = 4
  include_input: bool = True
  use_pi: bool = False
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(self, points, directions, noise=0.0):
    """Computes density and colour at points seen from a direction.

    Args:
      points: float32[..., 3].
      directions: float32[..., 3], unit vectors.
      noise: float32[...] or a number, added to the density before its ReLU.

    Returns:
      density: float32[...], per unit of length, non-negative.
      rgb: float32[..., 3] in [0, 1].
    """
    dtype = checks.compute_dtype(self.dtype_mm)

    def dense(width, name):
      return nn.Dense(
          width, dtype=dtype, kernel_init=nn.initializers.glorot_uniform(),
          name=name)

    kw = dict(include_input=self.include_input, use_pi=self.use_pi)
    point = encode(points, self.point_frequencies, **kw).astype(dtype)
    direction = encode(
        directions, self.direction_frequencies, **kw).astype(dtype)
    x = point
    for i in range(self.depth):
      x = nn.relu(dense(self.width, f"layer{i}")(x))
      if i == self.skip and i < self.depth - 1:
        x = jnp.concatenate([point, x], axis=-1)
    raw = dense(1, "density")(x)[..., 0].astype(jnp.float32)
    x = dense(self.width, "bottleneck")(x)
    x = jnp.concatenate([x, direction], axis=-1)
    x = nn.relu(dense(self.colour_width, "colour_hidden")(x))
    rgb = nn.sigmoid(dense(3, "colour")(x).astype(jnp.float32))
    return nn.relu(raw + noise), rgb
