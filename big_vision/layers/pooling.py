"""Pooling: one vector for all tokens."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from big_vision.layers import attention
from big_vision.layers import transformer


def mean_of_tokens(x, mask=None):
  """Averages over the tokens of each example.

  Args:
    x: [b, n, ...].
    mask: bool[b, n], False for tokens to leave out; None averages all.

  Returns:
    [b, ...]; 0 where the mask leaves no token.
  """
  if mask is None:
    return jnp.mean(x, axis=1)
  mask = mask.reshape(*mask.shape, *(1,) * (x.ndim - 2))
  return (jnp.sum(jnp.where(mask, x, 0), axis=1)
          / jnp.maximum(jnp.sum(mask, axis=1), 1))


class MAPHead(nn.Module):
  """Multi-head attention pooling: [b, n, d] -> [b, d].

  One learned query attends to all tokens; a block's MLP follows.

  Attributes:
    mlp_dim: Hidden width of the MLP.
    num_heads: Number of heads; divides d.
    dtype: Dtype of activations.
    gelu: One of `transformer.GELUS`.

  Source: arXiv:2106.04560, Section 3.1.
  """
  mlp_dim: int
  num_heads: int
  dtype: Any = jnp.float32
  gelu: str = "tanh"

  @nn.compact
  def __call__(self, x):
    b, _, d = x.shape
    probe = self.param(
        "probe", nn.initializers.xavier_uniform(), (1, 1, d), jnp.float32)
    # Always dense: a single query's logits take memory linear in n anyway.
    x, _ = attention.MultiHeadAttention(
        self.num_heads, dtype=self.dtype,
        name="MultiHeadDotProductAttention_0")(jnp.tile(probe, (b, 1, 1)), x)
    y = nn.LayerNorm(dtype=self.dtype)(x)
    x = x + transformer.MlpBlock(
        self.mlp_dim, dtype=self.dtype, gelu=self.gelu)(y)
    return x[:, 0]
