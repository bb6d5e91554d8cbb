"""Attention within a window around each token.

Dimensions: b batch, n tokens, m heads of the queries, k heads of keys and
values, g = m / k query heads to each of those, d features of a head, t blocks,
i j queries and keys of a block.
"""

import jax
import jax.numpy as jnp

from big_vision.layers.attention import memory_efficient


def local(q, k, v, *, mask=None, causal=False, scale=None, window: int = 128):
  """Computes softmax attention to keys at most `window` places away.

  Tokens attend to each other. Blocks of `window` tokens look at themselves and
  their neighbours: O(n window) time and memory.

  Args:
    q: [b, n, m, d].
    k: [b, n, k, d].
    v: [b, n, k, d].
    mask: bool, [1 or b, 1 or m, 1, 1 or n], or None.
    causal: Whether query i sees keys 0..i only.
    scale: Factor of the logits; None is 1 / sqrt(d).
    window: Largest distance that is seen, at least 1. The tokens of an image
      are in raster order.

  Returns:
    [b, n, m, d], dtype of `q`; weights are float32. A query that sees no key
    gets the mean of all values.

  Raises:
    ValueError: The numbers of queries and keys differ, or `window` is below 1.
  """
  b, n, m, d = q.shape
  if n != k.shape[1] or window < 1:
    raise ValueError(
        "Attention 'local' wants a window of at least 1 and as many keys as "
        f"queries; it got window={window}, {n} queries and {k.shape[1]} keys.")
  window = min(window, n)
  heads, blocks = k.shape[2], -(-n // window)
  scale = d ** -0.5 if scale is None else scale
  reach = (-1, 0) if causal else (-1, 0, 1)

  def split(x, fill=0):
    """Splits [b, n, ...] into [b, blocks, window, ...]."""
    x = jnp.pad(x, [(0, 0), (0, blocks * window - n)] + [(0, 0)] * (x.ndim - 2),
                constant_values=fill)
    return x.reshape(x.shape[0], blocks, window, *x.shape[2:])

  def around(x):
    """Joins blocks and neighbours: [b, blocks, window * len(reach), ...]."""
    x = jnp.pad(split(x), [(0, 0), (1, 1)] + [(0, 0)] * (x.ndim - 1))
    return jnp.concatenate(
        [x[:, 1 + i:1 + i + blocks] for i in reach], axis=2)

  logits = scale * jnp.einsum(
      "btikgd,btjkd->btkgij", split(q.reshape(b, n, heads, m // heads, d)),
      around(k), preferred_element_type=jnp.float32)
  ones = jnp.ones((1, n, 1), bool)
  if mask is not None:
    ones &= jnp.broadcast_to(mask[:, :, 0], (*mask.shape[:2], n)).swapaxes(1, 2)
  offset = (window * reach[0] + jnp.arange(window * len(reach))
            - jnp.arange(window)[:, None])
  seen = (abs(offset) <= window) & (offset <= 0 if causal else True)
  allowed = around(ones)[:, :, None] & seen[..., None]  # [b, t, i, j, 1 or m]
  groups = (1, 1) if allowed.shape[-1] == 1 else (heads, m // heads)
  allowed = jnp.moveaxis(allowed, -1, 2).reshape(
      -1, blocks, *groups, window, window * len(reach))
  weights = jax.nn.softmax(
      jnp.where(allowed, logits, memory_efficient.LOWEST), axis=-1)
  out = jnp.einsum("btkgij,btjkd->btikgd", weights.astype(v.dtype), around(v))
  # As in all implementations, a query that sees no key gets the mean of all
  # values, not only of those in its window.
  mean = jnp.mean(v, axis=1).reshape(b, 1, 1, heads, 1, d)
  anything = jnp.moveaxis(jnp.any(allowed, axis=-1, keepdims=True), 4, 2)
  out = jnp.where(anything, out, mean)
  return out.reshape(b, blocks * window, m, d)[:, :n].astype(q.dtype)
