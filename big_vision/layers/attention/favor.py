"""Attention in time linear in the length: sums over keys, kept as features.

With weights phi(q) . phi(k) instead of exp(q . k), what a query needs of all
keys is one matrix, sum_s phi(k_s) v_s^T, and the logits never exist.

Dimensions: b batch, n queries, s keys, m heads of the queries, k of keys and
values, g = m / k query heads to each of those, f features, d of a head,
c positions of a chunk, r rows of a projection.
"""

import jax
import jax.numpy as jnp

from big_vision.layers import checks

KERNELS = ("positive", "trigonometric", "relu")
# Positive features never vanish together, so that weights sum to more than 0.
_FLOOR = 1e-6
_RELU_FLOOR = 1e-3
# A sum of weights nearer to zero than this is none.
_TINY = 1e-30
# Below every offset that occurs, and finite, so that differences are numbers.
_LOWEST = -1e30


# --- Features -----------------------------------------------------------------


def draw_projection(rng, shape: tuple[int, ...]):
  """Rows that are each N(0, I), orthogonal within blocks of as many as columns.

  Each block is uniform over all rotations and reflections (Haar), its rows'
  lengths are those of independent Gaussian vectors. The last block is cut.

  Args:
    rng: a jax key.
    shape: (..., r, d); leading axes hold independent draws.

  Returns:
    float32[..., r, d].

  Source: arXiv:2009.14794, Section 2.4; Haar: arXiv:math-ph/0609050. The
  released code of the former leaves the signs that a QR decomposition prefers,
  and its estimates are biased along the axes.
  """
  *leading, r, d = shape
  rng_directions, rng_lengths = jax.random.split(rng)
  q, upper = jnp.linalg.qr(
      jax.random.normal(rng_directions, (*leading, -(-r // d), d, d)))
  diagonal = jnp.diagonal(upper, axis1=-2, axis2=-1)
  q *= jnp.where(diagonal < 0, -1., 1.)[..., None, :]
  rows = q.mT.reshape(*leading, -1, d)[..., :r, :]
  lengths = jnp.linalg.norm(
      jax.random.normal(rng_lengths, shape), axis=-1, keepdims=True)
  return lengths * rows


def positive_features(x, projection):
  """Features whose products estimate exp(x . y), never negative.

  phi(x) = exp(w . x - |x|^2 / 2) / sqrt(r), for every row w.

  Args:
    x: float[..., d].
    projection: float[r, d], rows distributed as N(0, I).

  Returns:
    phi: float32[..., r], times exp(-offset).
    offset: float32[...], so that the largest of `phi` is about 1 / sqrt(r).
      It is a position's own: positions do not depend on each other.

  Source: arXiv:2009.14794, Lemma 1; the offset differs from the released code,
  which takes one maximum over all keys and so shows each to those before it.
  """
  x = x.astype(jnp.float32)
  exponent = (jnp.einsum("...d,rd->...r", x, projection)
              - jnp.sum(x ** 2, axis=-1, keepdims=True) / 2)
  offset = jnp.max(exponent, axis=-1)
  phi = jnp.exp(exponent - offset[..., None]) + _FLOOR
  return phi / jnp.sqrt(len(projection)), offset


def trigonometric_features(x, projection):
  """Features whose products estimate exp(x . y), of either sign.

  phi(x) = exp(|x|^2 / 2) [cos(w . x), sin(w . x)] / sqrt(r), for every row w.
  For short vectors they vary less than positive ones, for long ones so much
  that sums of them may come out at zero or below.

  Args, returns: as `positive_features`, but phi is float32[..., 2 r].

  Source: arXiv:2009.14794, Eq. 6, after random Fourier features.
  """
  x = x.astype(jnp.float32)
  angle = jnp.einsum("...d,rd->...r", x, projection)
  phi = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
  return phi / jnp.sqrt(len(projection)), jnp.sum(x ** 2, axis=-1) / 2


def relu_features(x, projection=None):
  """Generalized features that estimate no softmax.

  phi(x) = max(w . x / sqrt(r), 0) + 0.001, for every row w.

  Args, returns: as `positive_features`; without a projection the features are
  those of `x` itself, which is what Performers of Long Range Arena have. The
  offset is 0.

  Source: arXiv:2009.14794, Section 2.2; arXiv:2011.04006.
  """
  x = x.astype(jnp.float32)
  if projection is not None:
    x = jnp.einsum("...d,rd->...r", x, projection) / jnp.sqrt(len(projection))
  return jax.nn.relu(x) + _RELU_FLOOR, jnp.zeros(x.shape[:-1])


def elu_features(x):
  """elu(x) + 1, and the offset 0. Source: arXiv:2006.16236, Eq. 7."""
  x = x.astype(jnp.float32)
  return jax.nn.elu(x) + 1, jnp.zeros(x.shape[:-1])


# --- Attention ----------------------------------------------------------------


def _weighted_mean(phi_q, phi_k, offset, v, mask, causal, chunk_size):
  """Mean of values, weighted by phi_q . phi_k exp(offset).

  Args:
    phi_q: float32[b, n, m, f].
    phi_k: float32[b, s, k, f].
    offset: float32[b, s, k], of the keys. That of a query would cancel.
    v: [b, s, k, d].
    mask: bool, [1 or b, 1 or m, 1, 1 or s], or None.
    causal: query i sees keys 0..i only, bit by bit: no others enter its sums.
    chunk_size: positions that are computed at a time if causal.

  Returns:
    float32[b, n, m, d]; where a query sees no key the mean of all values, of
    later ones too.
  """
  b, n, m, f = phi_q.shape
  mean = jnp.mean(v.astype(jnp.float32), axis=1, keepdims=True)
  mean = jnp.repeat(mean, m // v.shape[2], axis=2)
  if mask is not None:
    if mask.shape[1] > 1:
      # Heads of queries that share keys may mask them differently.
      phi_k, offset, v = (jnp.repeat(x, m // x.shape[2], axis=2)
                          for x in (phi_k, offset, v))
    allowed = jnp.broadcast_to(  # [1 or b, s, 1 or m]
        mask[:, :, 0], (*mask.shape[:2], v.shape[1])).swapaxes(1, 2)
    offset = jnp.where(allowed, offset, _LOWEST)
  kv_heads = phi_k.shape[2]
  phi_q = phi_q.reshape(b, n, kv_heads, m // kv_heads, f)
  # The sum of weights is that of a value that is 1 everywhere.
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
  """Weights times values, [b, n, k, g, d], up to a factor for each head."""
  # The factor cancels in the end, as do gradients through it.
  top = jax.lax.stop_gradient(jnp.max(offset, axis=1, keepdims=True))
  phi_k = phi_k * jnp.exp(offset - top)[..., None]
  return jnp.einsum("bnkgf,bkfd->bnkgd", phi_q,
                    jnp.einsum("bskf,bskd->bkfd", phi_k, v))


def _causal_sums(phi_q, phi_k, offset, v, chunk_size):
  """The same over keys up to the query's position, and a factor for each.

  Chunks are taken in turn. Within one, the table of weights is made; what came
  before is carried as a matrix. The factor is exp(-the largest offset so far).
  """
  b, n, kv_heads, g, f = phi_q.shape
  d = v.shape[-1]
  if chunk_size < 1:
    raise ValueError(f"chunk_size must be at least 1, it is {chunk_size}.")
  c = min(chunk_size, n)

  def split(x, fill=0):
    """[b, n or s, ...] -> [chunks, b, c, ...], cut or filled up."""
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
  """Weights (elu(q) + 1) . (elu(k) + 1): O(n + s), no softmax.

  Arguments are those of `favor`.

  Source: arXiv:2006.16236.
  """
  phi_q, _ = elu_features(q)
  phi_k, offset = elu_features(k)
  return _weighted_mean(
      phi_q, phi_k, offset, v, mask, causal, chunk_size).astype(q.dtype)


def favor(q, k, v, *, projection, mask=None, causal=False, scale=None,
          kernel: str = "positive", chunk_size: int = 64):
  """FAVOR+: softmax attention estimated by random features, O(n + s).

  Args:
    q: [b, n, m, d].
    k: [b, s, k, d].
    v: [b, s, k, d].
    projection: float32[r, d] of `draw_projection`; None for "relu" only.
    mask: bool, [1 or b, 1 or m, 1, 1 or s], or None.
    causal: query i sees keys 0..i only.
    scale: positive; None is 1 / sqrt(d). Both sides get its square root.
    kernel: "positive" and "trigonometric" estimate softmax(scale q . k), see
      the features; the error is moderate where |q| and |k|, thus scaled, are
      not above 1 or so, and falls with 1 / sqrt(r). "relu" is no estimate.
    chunk_size: positions that are computed at a time if causal.

  Returns:
    [b, n, m, d], dtype of `q`; computed in float32.

  Raises:
    ValueError: an unknown kernel; a scale that the kernel cannot use; no
      projection where it needs one; a chunk's size below 1.

  Source: arXiv:2009.14794, Algorithm 1.
  """
  checks.check_choice("kernel of favor", kernel, KERNELS)
  if kernel == "relu":
    if scale is not None:
      raise ValueError(
          "Kernel 'relu' of attention 'favor' has no scale; 'positive' and "
          "'trigonometric' have.")
    phi_q, _ = relu_features(q, projection)
    phi_k, offset = relu_features(k, projection)
  else:
    if projection is None:
      raise ValueError(
          f"Kernel {kernel!r} of attention 'favor' needs a projection; 'relu' "
          "can do without.")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if not scale > 0:
      raise ValueError(
          f"Attention 'favor' wants a scale above 0, it is {scale}.")
    features = (positive_features if kernel == "positive" else
                trigonometric_features)
    phi_q, _ = features(q.astype(jnp.float32) * scale ** 0.5, projection)
    phi_k, offset = features(k.astype(jnp.float32) * scale ** 0.5, projection)
  return _weighted_mean(
      phi_q, phi_k, offset, v, mask, causal, chunk_size).astype(q.dtype)
