"""The Universal Transformer's transition, an `mlp` of `transformer.Block`.

Dimensions: b batch, n tokens, d width.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from big_vision.layers import activation_sharding
from big_vision.layers import checks

TRANSITIONS = ("dense", "conv")


class Transition(nn.Module):
  """Two layers with a ReLU between them.

  "dense" layers look at each token alone. "conv" layers are separable
  convolutions, 3 wide along each axis of the grid: along the text or, in
  images, along rows and columns. Padding is zero to them.

  Attributes:
    mlp_dim: Hidden width.
    grid: (n,) of a text, (h, w) of images.
    transition: One of TRANSITIONS.
    dtype: Dtype of activations.

  Source: arXiv:1807.03819, Section 2.1, where the convolution is along one axis
  and its width is not given.
  """
  mlp_dim: int
  grid: Sequence[int]
  transition: str = "dense"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool = False, mask=None):
    """[b, n, d] -> [b, n, d]; `mask` is bool[b, n] or None."""
    del train
    checks.check_choice("transition", self.transition, TRANSITIONS)
    width = x.shape[-1]
    x = self._mix(self._dense(self.mlp_dim, 0), self._conv(width, 0), x, mask)
    x = activation_sharding.constrain(x, "act_batch", "act_len", "act_mlp")
    x = nn.relu(x)
    return self._mix(
        self._dense(width, 1), self._conv(self.mlp_dim, 1), x, mask)

  def _dense(self, width, i):
    return nn.Dense(
        width, dtype=self.dtype, name=f"Dense_{i}",
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=nn.initializers.normal(stddev=1e-6))

  def _conv(self, width, i):
    """Makes a depthwise convolution; the dense layer after it has the bias."""
    if self.transition == "dense":
      return None
    return nn.Conv(
        width, (3,) * len(self.grid), feature_group_count=width,
        use_bias=False, dtype=self.dtype, name=f"Conv_{i}")

  def _mix(self, dense, conv, x, mask):
    """Applies a layer: the convolution, if there is one, and `dense`."""
    if conv is not None:
      if mask is not None:
        # Mask again before each convolution: biases make padding nonzero.
        x = jnp.where(mask[..., None], x, 0)
      b, n, d = x.shape
      x = conv(x.reshape(b, *self.grid, d)).reshape(b, n, d)
    return dense(x)
