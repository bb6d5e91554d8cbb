"""Registers all implementations; the short ones are defined here.

Dimensions: b batch, n queries, s keys, m heads of the queries, k heads of keys
and values, g = m / k query heads to each of those, d features of a head.
"""

import jax
from jax.extend import backend as jax_backend
import jax.numpy as jnp

from big_vision.layers.attention import favor
from big_vision.layers.attention import features
from big_vision.layers.attention import fused
from big_vision.layers.attention import local
from big_vision.layers.attention import memory_efficient
from big_vision.layers.attention import registry


@registry.register("dense")
def dense(q, k, v, *, mask=None, bias=None, causal=False, scale=None,
          return_weights: bool = False):
  """Computes all logits at once: O(n s) memory, plain, runs anywhere.

  With `return_weights`, returns a pair: the result and the weights,
  float32[b, m, n, s]. Other arguments are those of `attend`; a `scale` of None
  is 1 / sqrt(d).
  """
  b, n, m, d = q.shape
  _, s, heads, _ = k.shape
  scale = d ** -0.5 if scale is None else scale
  logits = scale * jnp.einsum(
      "bnkgd,bskd->bkgns", q.reshape(b, n, heads, m // heads, d), k,
      preferred_element_type=jnp.float32).reshape(b, m, n, s)
  if bias is not None:
    logits += bias.astype(jnp.float32)
  # Finite, so that a row that is entirely masked gives a mean and not NaN.
  lowest = memory_efficient.LOWEST
  if mask is not None:
    logits = jnp.where(mask, logits, lowest)
  if causal:
    logits = jnp.where(jnp.tri(n, s, dtype=bool), logits, lowest)
  weights = jax.nn.softmax(logits, axis=-1)
  out = jnp.einsum(
      "bkgns,bskd->bnkgd",
      weights.astype(v.dtype).reshape(b, heads, m // heads, n, s),
      v).reshape(b, n, m, d)
  return (out, weights) if return_weights else out


@registry.register("xla")
def xla(q, k, v, *, mask=None, bias=None, causal=False, scale=None):
  """Calls JAX's own attention, which XLA may fuse as it sees fit."""
  return jax.nn.dot_product_attention(
      q, k, v, bias=bias, mask=mask, is_causal=causal, scale=scale,
      implementation="xla")


@registry.register("cudnn")
def cudnn(q, k, v, *, mask=None, bias=None, causal=False, scale=None):
  """Calls cuDNN's flash attention: O(n) memory, Nvidia GPUs, bfloat16 only.

  Raises:
    ValueError: There is no Nvidia GPU, or the inputs are not bfloat16.
  """
  backend = jax_backend.get_backend()
  if "cuda" not in backend.platform_version.lower():
    raise ValueError(
        "Attention 'cudnn' needs an Nvidia GPU and jax[cuda]; JAX runs on "
        f"{backend.platform!r} here. 'dense' and 'xla' run anywhere.")
  if q.dtype != jnp.bfloat16:
    raise ValueError(
        f"Attention 'cudnn' wants bfloat16, it got {q.dtype}: set "
        "dtype_mm='bfloat16', or use 'dense' or 'xla'.")
  full = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
  def spread(x):
    # cuDNN broadcasts over batch and heads only.
    return None if x is None else jnp.broadcast_to(x, x.shape[:2] + full[2:])
  if bias is not None:
    bias = spread(bias).astype(q.dtype)
  return jax.nn.dot_product_attention(
      q, k, v, bias=bias, mask=spread(mask), is_causal=causal, scale=scale,
      implementation="cudnn")


registry.register("memory_efficient")(memory_efficient.memory_efficient)
registry.register("linear", any_mask=False)(favor.linear)
registry.register("favor", any_mask=False, draw=features.draw_projection)(
    favor.favor)
registry.register("fused")(fused.fused)
registry.register("local", any_mask=False)(local.local)
