"""Attention in time linear in the length, by features of queries and keys.

With weights phi(q) . phi(k) in place of exp(q . k), all that a query needs of
the keys is one matrix, sum_s phi(k_s) v_s^T, and the logits never exist.

Dimensions: b batch, n queries, s keys, m heads of queries, k heads of keys and
values, g = m / k heads of queries for each of those, f features, d features of
a head, c positions of a chunk, r rows of a projection.
"""

import jax
import jax.numpy as jnp

from big_vision.layers import checks
from big_vision.layers.attention import features

KERNELS = ("positive", "trigonometric", "relu")
# A sum of weights nearer to zero than this counts as zero.
_TINY = 1e-30
# Lower than every offset that occurs, and finite, so that differences of two
# are numbers.
_LOWEST = -1e30


def _weighted_mean(phi_q, phi_k, offset, v, mask, causal, chunk_size):
  """Averages values with weights phi_q . phi_k exp(offset).

  Args:
    phi_q: float32[b, n, m, f].
    phi_k: float32[b, s, k, f].
    offset: float32[b, s, k], offset of each key. A query's would cancel.
    v: [b, s, k, d].
    mask: bool, [1 or b, 1 or m, 1, 1 or s], or None.
    causal: Whether query i sees keys 0..i only; later ones do not enter its
      sums, so that its result does not change by a single bit.
    chunk_size: Number of positions computed at a time if causal.

  Returns:
    float32[b, n, m, d]; for a query that sees no key, the mean of all values,
    later ones included.
  """
  b, n, m, f = phi_q.shape
  mean = jnp.mean(v.astype(jnp.float32), axis=1, keepdims=True)
  mean = jnp.repeat(mean, m // v.shape[2], axis=2)
  if mask is not None:
    if mask.shape[1] > 1:
      # Heads of queries that share keys may have different masks.
      phi_k, offset, v = (jnp.repeat(x, m // x.shape[2], axis=2)
                          for x in (phi_k, offset, v))
    allowed = jnp.broadcast_to(  # [1 or b, s, 1 or m]
        mask[:, :, 0], (*mask.shape[:2], v.shape[1])).swapaxes(1, 2)
    offset = jnp.where(allowed, offset, _LOWEST)
  kv_heads = phi_k.shape[2]
  phi_q = phi_q.reshape(b, n, kv_heads, m // kv_heads, f)
  # An additional value that is 1 everywhere gives the sum of weights.
  v = jnp.concatenate(
      [v.astype(jnp.float32), jnp.ones((*v.shape[:3], 1))], axis=-1)
  sums = (_causal_sums(phi_q, phi_k, offset, v, chunk_size) if causal else
          _sums(phi_q, phi_k, offset, v))
  sums = sums.reshape(b, n, m, -1)
  weights = sums[..., -1:]
  out = sums[..., :-1] / jnp.where(jnp.abs(weights) < _TINY, _TINY, weights)
  if mask is not None:
    last = jnp.arange(n) if causal else jnp.full(1, v.shape[1] - 1)
    seen = jnp.cumsum(allowed, axis=1)[:, jnp.minimum(last, v.shape[1] - 1)] > 0
    out = jnp.where(seen[..., None], out, mean)
  return out


def _sums(phi_q, phi_k, offset, v):
  """Sums weighted values, [b, n, k, g, d], up to a factor for each head."""
  # The factor cancels in the end, and so do gradients through it.
  top = jax.lax.stop_gradient(jnp.max(offset, axis=1, keepdims=True))
  phi_k = phi_k * jnp.exp(offset - top)[..., None]
  return jnp.einsum("bnkgf,bkfd->bnkgd", phi_q,
                    jnp.einsum("bskf,bskd->bkfd", phi_k, v))


def _causal_sums(phi_q, phi_k, offset, v, chunk_size):
  """Sums values over keys up to each query, up to a factor for each query.

  Chunks are computed in turn. Within a chunk, the weights are computed
  explicitly; all earlier chunks are carried as one matrix. The factor is
  exp(-(the largest offset so far)).
  """
  b, n, kv_heads, g, f = phi_q.shape
  d = v.shape[-1]
  if chunk_size < 1:
    raise ValueError(f"chunk_size must be at least 1, it is {chunk_size}.")
  c = min(chunk_size, n)

  def split(x, fill=0):
    """Splits [b, n or s, ...] to [chunks, b, c, ...], cut or padded to n."""
    x = x[:, :n]
    x = jnp.pad(x, [(0, 0), (0, -(-n // c) * c - x.shape[1])] +
                [(0, 0)] * (x.ndim - 2), constant_values=fill)
    return x.reshape(b, -1, c, *x.shape[2:]).swapaxes(0, 1)

  def step(carry, chunk):
    total, top = carry  # [b, k, f, d], [b, k]
    phi_q, phi_k, offset, v = chunk
    offset = offset.swapaxes(1, 2)
    tops = jax.lax.stop_gradient(jnp.maximum(  # [b, k, c]
        jax.lax.cummax(offset, axis=2), top[..., None]))
    factor = jnp.exp(jnp.where(
        jnp.tri(c, dtype=bool), offset[:, :, None] - tops[..., None], -jnp.inf))
    weights = jnp.einsum("bnkgf,bskf->bkgns", phi_q, phi_k) * factor[:, :, None]
    before = jnp.einsum("bnkgf,bkfd->bnkgd", phi_q, total)
    before *= jnp.exp(top[..., None] - tops).swapaxes(1, 2)[..., None, None]
    sums = jnp.einsum("bkgns,bskd->bnkgd", weights, v) + before
    new_top = tops[..., -1]
    phi_k *= jnp.exp(offset - new_top[..., None]).swapaxes(1, 2)[..., None]
    total *= jnp.exp(top - new_top)[..., None, None]
    total += jnp.einsum("bskf,bskd->bkfd", phi_k, v)
    return (total, new_top), sums

  first = (jnp.zeros((b, kv_heads, f, d)), jnp.full((b, kv_heads), _LOWEST))
  _, sums = jax.lax.scan(
      jax.checkpoint(step, prevent_cse=False), first,
      (split(phi_q), split(phi_k), split(offset, _LOWEST), split(v)))
  return sums.swapaxes(0, 1).reshape(b, -1, kv_heads, g, d)[:, :n]


def linear(q, k, v, *, mask=None, causal=False, chunk_size: int = 64):
  """Attends with weights (elu(q) + 1) . (elu(k) + 1), in O(n + s).

  Arguments and result are those of `favor`.

  Source: arXiv:2006.16236.
  """
  phi_q, _ = features.elu_features(q)
  phi_k, offset = features.elu_features(k)
  return _weighted_mean(
      phi_q, phi_k, offset, v, mask, causal, chunk_size).astype(q.dtype)


def favor(q, k, v, *, projection, mask=None, causal=False, scale=None,
          kernel: str = "positive", chunk_size: int = 64):
  """Estimates softmax attention by random features (FAVOR+), in O(n + s).

  Args:
    q: [b, n, m, d].
    k: [b, s, k, d].
    v: [b, s, k, d].
    projection: float32[r, d], see `features.draw_projection`; only "relu" also
      takes None.
    mask: bool, [1 or b, 1 or m, 1, 1 or s], or None.
    causal: Whether query i sees keys 0..i only.
    scale: Positive factor of the logits; None is 1 / sqrt(d). Queries and keys
      are both multiplied by its square root.
    kernel: Kind of features. "positive" and "trigonometric" estimate
      softmax(scale q . k); the error is moderate while scaled |q| and |k| stay
      below about 1, and falls with 1 / sqrt(r). "relu" estimates no softmax.
    chunk_size: Number of positions computed at a time if causal.

  Returns:
    [b, n, m, d], dtype of `q`; computed in float32.

  Raises:
    ValueError: The kernel is unknown, does not take the scale or lacks a
      projection, or the chunk size is below 1.

  Source: arXiv:2009.14794, Algorithm 1.
  """
  checks.check_choice("kernel of favor", kernel, KERNELS)
  if kernel == "relu":
    if scale is not None:
      raise ValueError(
          "Kernel 'relu' of attention 'favor' has no scale; 'positive' and "
          "'trigonometric' have.")
    phi_q, _ = features.relu_features(q, projection)
    phi_k, offset = features.relu_features(k, projection)
  else:
    if projection is None:
      raise ValueError(
          f"Kernel {kernel!r} of attention 'favor' needs a projection; only "
          "'relu' works without one.")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if not scale > 0:
      raise ValueError(
          f"Attention 'favor' wants a scale above 0, it is {scale}.")
    to_features = (features.positive_features if kernel == "positive" else
                   features.trigonometric_features)
    phi_q, _ = to_features(q.astype(jnp.float32) * scale ** 0.5, projection)
    phi_k, offset = to_features(
        k.astype(jnp.float32) * scale ** 0.5, projection)
  return _weighted_mean(
      phi_q, phi_k, offset, v, mask, causal, chunk_size).astype(q.dtype)
