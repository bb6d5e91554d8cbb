"""A discriminator of patches: each logit sees a part of the image.

Source: arXiv:1611.07004, in the form of CompVis/taming-transformers, but with
GroupNorm in place of BatchNorm. Batch statistics would mix examples, depend on
how a batch is split for gradient accumulation, and add a state that real and
generated images update in turn.

Dimensions: b batch, h w rows and columns, c channels.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from big_vision import ranges
from big_vision.layers import checks
from big_vision.proj.vqgan import group_norm


class Model(nn.Module):
  """Stacks 4 x 4 convolutions, the first `depth` of which have stride 2.

  With depth 3, a logit sees 70 x 70 pixels.

  Attributes:
    width: Number of channels of the first convolution; it doubles from one to
      the next, up to 8 times this.
    depth: Number of convolutions with stride 2.
    dtype_mm: Dtype of activations; the logits are float32.
  """
  width: ranges.Count = 64
  depth: ranges.CountOrZero = 3
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(self, image):
    """Judges patches: float32[b, H, W, c] in [-1, 1] -> float32[b, h, w].

    Logits are positive for images that look real.

    Raises:
      ValueError: The image is too small for a single logit.
    """
    dtype = checks.compute_dtype(self.dtype_mm)
    x = image
    for i in range(self.depth + 1):
      x = _conv(x, self.width * min(2 ** i, 8), f"conv_{i}", dtype,
                stride=2 if i < self.depth else 1, use_bias=not i)
      if i:
        x = nn.GroupNorm(
            group_norm.num_groups(x.shape[-1]), dtype=dtype, name=f"norm_{i}",
            scale_init=_scale)(x)
      x = nn.leaky_relu(x, 0.2)
    x = _conv(x, 1, "head", jnp.float32)
    if 0 in x.shape:
      raise ValueError(
          f"Images of {image.shape[1]} x {image.shape[2]} are too small for a "
          f"discriminator of depth {self.depth}; use a lower one.")
    return x[..., 0]


def _conv(x, channels: int, name: str, dtype: Any, stride=1, use_bias=True):
  return nn.Conv(
      channels, (4, 4), strides=stride, padding=1, use_bias=use_bias,
      dtype=dtype, kernel_init=nn.initializers.normal(0.02), name=name)(x)


def _scale(rng, shape, dtype=jnp.float32):
  return 1 + nn.initializers.normal(0.02)(rng, shape, dtype)
