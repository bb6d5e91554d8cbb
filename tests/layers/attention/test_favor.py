"""Linear-time attention against sums over all pairs, position by position.

A single draw of features can show whatever one likes: what is random is
measured over at least ten. The numbers F1, ... are mistakes that others made.
"""

import functools
import math

from big_vision.layers import attention
from big_vision.layers.attention import features
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests import drawn

B, N, S, M, M_KV, D, R = 2, 5, 7, 4, 2, 4, 6
_jit = drawn.jit


def _qkv(n=N, s=S, m=M, m_kv=M_KV, d=D, b=B, scale=1.0, seed=0):
  rng = np.random.default_rng(seed)
  return [(scale * rng.normal(size=shape)).astype(np.float32)
          for shape in ((b, n, m, d), (b, s, m_kv, d), (b, s, m_kv, d))]


def _draw(seed, *shape):
  return _jit(features.draw_projection, static_argnums=1)(
      jax.random.key(seed), shape)


def _attend(q, k, v, *, mask=None, projection=None, **kw):
  def run(q, k, v, mask, projection):
    drawn = {"projection": projection} if kw["impl"] == "favor" else {}
    return attention.attend(q, k, v, mask=mask, **drawn, **kw)
  return _jit(run)(q, k, v, mask, projection)


def _softmax(q, k, v, mask=None, causal=False):
  """Exact attention, float64; mask [b, s]."""
  q, k, v = (x.astype(np.float64) for x in (q, k, v))
  k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
  logits = np.einsum("bnmd,bsmd->bmns", q, k) / math.sqrt(q.shape[-1])
  allowed = np.ones(logits.shape, bool)
  if causal:
    allowed &= np.tri(*logits.shape[2:], dtype=bool)
  if mask is not None:
    allowed &= mask[:, None, None]
  table = np.where(allowed, np.exp(logits), 0)
  table /= table.sum(axis=-1, keepdims=True)
  return np.einsum("bmns,bsmd->bnmd", table, v)


# --- The projection -----------------------------------------------------------


@functools.cache
def _directions():
  """2000 draws of 16 rows in 16 dimensions, of length 1."""
  rows = np.asarray(_draw(0, 2000, 16, 16), np.float64)
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_rows_are_orthogonal_and_as_long_as_gaussian_ones():
  rows = np.asarray(_draw(0, 500, 16, 16))
  np.testing.assert_allclose(
      _directions() @ _directions().swapaxes(1, 2),
      np.broadcast_to(np.eye(16), (2000, 16, 16)), atol=1e-5)
  lengths = np.linalg.norm(rows, axis=-1)
  assert scipy.stats.kstest(lengths.ravel(), scipy.stats.chi(16).cdf)[1] > 0.01
  assert abs(np.corrcoef(lengths[:, 0], lengths[:, 1])[0, 1]) < 0.15


def test_directions_have_no_preferred_sign():
  """A QR decomposition with its own signs has a mean diagonal of -0.57."""
  directions = _directions()
  for entry in ((0, 0), (7, 7), (15, 15), (3, 12)):
    positive = int((directions[:, *entry] > 0).sum())
    assert scipy.stats.binomtest(positive, 2000).pvalue > 0.01, entry
  diagonal = np.diagonal(directions, axis1=1, axis2=2)
  assert abs(diagonal.mean()) < 4 * 0.25 / math.sqrt(diagonal.size)
  # Rotations and reflections are equally likely; QR alone gives one kind.
  reflections = int((np.linalg.det(directions) < 0).sum())
  assert scipy.stats.binomtest(reflections, 2000).pvalue > 0.01


@pytest.mark.parametrize("entry", [(0, 0), (7, 7), (15, 15), (15, 0)])
def test_directions_are_uniform_on_the_sphere(entry):
  """The square of a coordinate has the distribution Beta(1/2, (d - 1) / 2)."""
  squares = _directions()[:, *entry] ** 2
  beta = scipy.stats.beta(0.5, 15 / 2)
  assert scipy.stats.kstest(squares, beta.cdf)[1] > 0.01


@pytest.mark.parametrize("r", [8, 64, 100, 256])
def test_any_number_of_rows(r):
  """The last block has fewer rows; their lengths are distributed as always."""
  rows = np.asarray(_draw(1, 12, r, 16))
  assert rows.shape == (12, r, 16) and rows.dtype == np.float32
  lengths = np.linalg.norm(rows, axis=-1)
  np.testing.assert_allclose(
      lengths[:, -8:].mean(), scipy.stats.chi(16).mean(), rtol=0.05)
  last = rows[:, (r - 1) // 16 * 16:] / lengths[:, (r - 1) // 16 * 16:, None]
  np.testing.assert_allclose(
      last @ last.swapaxes(1, 2),
      np.broadcast_to(np.eye(last.shape[1]), (12,) + (last.shape[1],) * 2),
      atol=1e-5)


def test_draws_depend_on_the_key_alone():
  np.testing.assert_array_equal(_draw(0, 6, 4), _draw(0, 6, 4))
  assert np.abs(_draw(0, 6, 4) - _draw(1, 6, 4)).max() > 0.1


# --- Features -----------------------------------------------------------------

FEATURES = {"positive": features.positive_features,
            "trigonometric": features.trigonometric_features}


def _estimates(kernel, projections, x, y):
  """One estimate of exp(x . y) for each projection [draws, r, d]."""
  def estimate(projection):
    (phi_x, offset_x), (phi_y, offset_y) = (
        FEATURES[kernel](jnp.asarray(z, jnp.float32), projection)
        for z in (x, y))
    return jnp.sum(phi_x * phi_y) * jnp.exp(offset_x + offset_y)
  return np.asarray(_jit(jax.vmap(estimate))(projections), np.float64)


@pytest.mark.parametrize("kernel,sign", [
    ("positive", 1), ("positive", -1), ("trigonometric", 1)])
def test_estimates_are_unbiased_along_the_diagonal(kernel, sign):
  """With the signs of QR, they are off by a factor of 0.74 or 1.26."""
  x = sign * np.ones(16) / 4
  for y in (x, -x, np.eye(16)[3]):
    ratio = _estimates(kernel, _draw(2, 2000, 16, 16), x, y) / np.exp(x @ y)
    error = ratio.std() / math.sqrt(2000)
    assert error < 0.04
    assert abs(ratio.mean() - 1) < 3 * error + 1e-4


def _independent(num_draws, seed):
  """Projections of a single row: its direction is no other's business."""
  return _draw(seed, num_draws, 1, 4)


def test_variance_of_positive_features_is_that_of_theory():
  """arXiv:2009.14794, Lemma 2."""
  x, y = np.array([.3, .2, 0, 0]), np.array([.1, .3, -.2, 0])
  z = np.exp(np.sum((x + y) ** 2))
  wanted = z * np.exp(2 * x @ y) * (1 - 1 / z)
  got = _estimates("positive", _independent(40_000, 3), x, y)
  np.testing.assert_allclose(got.var(), wanted, rtol=0.05)


def test_variance_of_trigonometric_features_is_that_of_theory():
  """arXiv:2009.14794, Lemma 2."""
  x, y = np.array([.3, .2, 0, 0]), np.array([.1, -.6, -.2, .5])
  wanted = (0.5 * np.exp(np.sum((x + y) ** 2)) * np.exp(-2 * x @ y)
            * (1 - np.exp(-np.sum((x - y) ** 2))) ** 2)
  got = _estimates("trigonometric", _independent(40_000, 4), x, y)
  np.testing.assert_allclose(got.var(), wanted, rtol=0.05)


def test_orthogonal_rows_estimate_better_than_independent_ones():
  """arXiv:2009.14794, Theorem 2."""
  x = y = np.array([.5, .5, .5, .5])
  orthogonal = _estimates("positive", _draw(5, 10_000, 4, 4), x, y)
  independent = _estimates(
      "positive", _independent(40_000, 6), x, y).reshape(-1, 4).mean(axis=1)
  assert orthogonal.var() < 0.9 * independent.var()


def test_positive_features_are_positive_and_positions_independent():
  x = 20 * _qkv()[0]
  phi, offset = features.positive_features(x, _draw(0, R, D))
  assert (phi > 0).all() and np.isfinite(offset).all()
  phi_one, offset_one = features.positive_features(x[:1, 2:3], _draw(0, R, D))
  np.testing.assert_allclose(phi[:1, 2:3], phi_one, rtol=1e-5)
  np.testing.assert_allclose(offset[:1, 2:3], offset_one, rtol=1e-5)


# --- Attention is the brute-force sum -----------------------------------------


def _phi(kernel, x, w):
  """Features in float64, straight from the formulas, no offset."""
  x = x.astype(np.float64)
  if kernel == "elu":
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))
  if kernel == "relu":
    x = x if w is None else x @ w.T / math.sqrt(len(w))
    return np.maximum(x, 0) + 1e-3
  w = np.asarray(w, np.float64)
  x = x / x.shape[-1] ** 0.25  # Half the scale for each side.
  norm = (x ** 2).sum(axis=-1, keepdims=True)
  if kernel == "positive":  # With the norm.
    return np.exp(x @ w.T - norm / 2) / math.sqrt(len(w))
  return np.exp(norm / 2) * np.concatenate(
      [np.cos(x @ w.T), np.sin(x @ w.T)], axis=-1) / math.sqrt(len(w))


def _brute_force(kernel, q, k, v, w=None, *, mask=None, causal=False):
  """One query after the other, a loop over what it sees; all of it float64."""
  mask = np.broadcast_to(True if mask is None else mask,
                         (*q.shape[:1], q.shape[2], 1, k.shape[1]))
  out = np.zeros(q.shape)
  for b, i, m in np.ndindex(q.shape[:3]):
    kv = m // (q.shape[2] // k.shape[2])
    phi_q = _phi(kernel, q[b, i, m], w)
    total, weight = np.zeros(q.shape[-1]), 0.0
    for j in range(min(i + 1, k.shape[1]) if causal else k.shape[1]):
      if mask[b, m, 0, j]:
        a = phi_q @ _phi(kernel, k[b, j, kv], w)
        total, weight = total + a * v[b, j, kv], weight + a
    out[b, i, m] = total / weight if weight else v[b, :, kv].mean(axis=0)
  return out


_MASK = np.random.default_rng(8).random((B, M, 1, S)) < 0.6
_MASK[0, 0, 0, :2] = False  # Causally, the first two queries see nothing.
_MASK[1, 1] = False         # This head sees nothing at all.
CASES = {
    "plain": dict(), "causal": dict(causal=True), "mask": dict(mask=_MASK),
    "mask_of_heads_together": dict(mask=_MASK[:, 2:3], causal=True),
    "mask_and_causal": dict(mask=_MASK, causal=True),
}
VARIANTS = {
    "linear": ("elu", dict(impl="linear")),
    "positive": ("positive", dict(impl="favor")),
    "trigonometric": ("trigonometric",
                      dict(impl="favor", kernel="trigonometric")),
    "relu": ("relu", dict(impl="favor", kernel="relu")),
}


@pytest.mark.parametrize("variant,case", [
    *(("positive", case) for case in CASES),
    *((variant, case) for variant in ("linear", "trigonometric", "relu")
      for case in ("mask", "mask_and_causal"))])
def test_is_the_sum_over_all_pairs(variant, case):
  """A loop over all pairs of positions gives the same."""
  kernel, kw = VARIANTS[variant]
  q, k, v = _qkv(scale=0.5)
  w = None if kernel == "elu" else _draw(7, R, D)
  chunk = dict(chunk_size=3) if CASES[case].get("causal") else {}
  got = _attend(q, k, v, projection=w, **kw, **CASES[case], **chunk)
  assert got.dtype == jnp.float32 and got.shape == q.shape
  np.testing.assert_allclose(
      got, _brute_force(kernel, q, k, v, w, **CASES[case]),
      rtol=1e-3, atol=1e-4)


def test_what_is_added_to_positive_features():
  """It is 1e-6; with 1e-4 or 0 the result would differ."""
  x, w = _qkv(scale=0.5)[0], _draw(7, R, D)
  x = 20 * x
  phi, _ = features.positive_features(x, w)
  exponent = x.astype(np.float64) @ np.asarray(w, np.float64).T
  exponent -= exponent.max(axis=-1, keepdims=True)  # The norm's share, too.
  wanted = (np.exp(exponent) + 1e-6) / math.sqrt(R)
  assert (wanted < 2e-6).any()
  np.testing.assert_allclose(phi, wanted, rtol=1e-3)


@pytest.mark.parametrize("n,s,chunk_size", [
    (7, 5, 3), (6, 6, 2), (1, 1, 64), (4, 9, 64)])
def test_causal_sums_with_any_lengths_and_chunks(n, s, chunk_size):
  q, k, v = _qkv(n=n, s=s, scale=0.5)
  w = _draw(7, R, D)
  np.testing.assert_allclose(
      _attend(q, k, v, impl="favor", projection=w, causal=True,
              chunk_size=chunk_size),
      _brute_force("positive", q, k, v, w, causal=True), rtol=1e-3, atol=1e-4)


def test_chunk_size_is_checked():
  with pytest.raises(ValueError, match="chunk_size must be at least 1"):
    attention.attend(*_qkv(), impl="linear", causal=True, chunk_size=0)


def test_relu_without_projection_is_the_attention_of_long_range_arena():
  q, k, v = _qkv()
  np.testing.assert_allclose(
      _attend(q, k, v, impl="favor", kernel="relu"),
      _brute_force("relu", q, k, v), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant,causal", [
    ("linear", True), ("positive", True), ("positive", False),
    ("trigonometric", True)])
def test_gradients_agree_with_finite_differences(variant, causal):
  kernel, kw = VARIANTS[variant]
  args = _qkv(n=4, s=4, b=1, m=2, m_kv=1, scale=0.5)
  w = None if kernel == "elu" else np.asarray(_draw(9, R, D))
  drawn = {} if w is None else {"projection": w}
  target = np.random.default_rng(2).normal(size=args[0].shape)
  loss = lambda *args: (attention.attend(
      *args, causal=causal, **kw, **drawn) * target).sum()
  grads = _jit(jax.grad(loss, (0, 1, 2)))(*args)
  for argnum, grad in enumerate(grads):
    step = np.random.default_rng(3).normal(size=args[argnum].shape)
    def at(t, argnum=argnum, step=step):
      moved = [x.astype(np.float64) for x in args]
      moved[argnum] = moved[argnum] + t * step
      return (_brute_force(kernel, *moved, w, causal=causal) * target).sum()
    np.testing.assert_allclose(
        (grad * step).sum(), (at(1e-5) - at(-1e-5)) / 2e-5,
        rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
def test_large_vectors_give_finite_means_and_gradients(causal):
  """Exponents of -1000 and more: every offset has to be taken off."""
  q, k, v = _qkv(scale=40.0)
  w = _draw(0, R, D)
  fn = lambda q, k, v: attention.attend(
      q, k, v, impl="favor", projection=w, causal=causal, chunk_size=2)
  out, grads = _jit(lambda *args: (
      fn(*args), jax.grad(lambda *args: fn(*args).sum(), (0, 1))(*args)))(
          q, k, v)
  assert all(np.isfinite(x).all() for x in (out, *grads))
  spread = np.repeat(v, M // M_KV, axis=2)
  assert (out <= spread.max(axis=1, keepdims=True) + 1e-3).all()
  assert (out >= spread.min(axis=1, keepdims=True) - 1e-3).all()


def test_bfloat16_is_computed_in_float32():
  q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in _qkv())
  w = _draw(0, R, D)
  got = _attend(q, k, v, impl="favor", projection=w)
  assert got.dtype == jnp.bfloat16
  wide = [x.astype(jnp.float32) for x in (q, k, v)]
  wanted = _attend(*wide, impl="favor", projection=w).astype(jnp.bfloat16)
  np.testing.assert_array_equal(
      got.astype(np.float32), wanted.astype(np.float32))


# --- Positions that a query must not see -------------------------------------


@pytest.mark.parametrize("variant,chunk_size", [
    *((variant, 4) for variant in VARIANTS), ("positive", 2)])
def test_causal_attention_does_not_see_the_future(variant, chunk_size):
  """With one maximum over all keys, the past would change by 0.32."""
  kernel, kw = VARIANTS[variant]
  q, k, v = _qkv(n=6, s=6)
  w = None if kernel == "elu" else _draw(0, R, D)
  changed_k, changed_v = k.copy(), v.copy()
  changed_k[:, -1] *= 10
  changed_v[:, -1] += 100
  before, after = (
      _attend(q, *kv, projection=w, causal=True, chunk_size=chunk_size, **kw)
      for kv in ((k, v), (changed_k, changed_v)))
  np.testing.assert_allclose(after[:, :-1], before[:, :-1], atol=1e-6)
  assert np.abs(after[:, -1] - before[:, -1]).max() > 0.1


@pytest.mark.parametrize("variant,causal", [
    ("linear", False), ("positive", False), ("positive", True),
    ("trigonometric", False)])
def test_masked_keys_are_as_if_absent(variant, causal):
  kernel, kw = VARIANTS[variant]
  q, k, v = _qkv(s=N)
  w = None if kernel == "elu" else _draw(0, R, D)
  rubbish = np.full((B, 2, M_KV, D), 30, np.float32)
  padded = [np.concatenate([x, rubbish], axis=1) for x in (k, v)]
  mask = np.broadcast_to(np.arange(N + 2) < N, (B, 1, 1, N + 2))
  np.testing.assert_allclose(
      _attend(q, *padded, mask=mask, projection=w, causal=causal, **kw),
      _attend(q, k, v, projection=w, causal=causal, **kw), rtol=1e-5, atol=1e-6)


def test_an_example_does_not_depend_on_its_batch():
  x = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)
  module = attention.MultiHeadAttention(
      num_heads=2, attention="favor(num_features=8)")
  variables = _jit(module.init)(jax.random.key(0), x)
  apply = _jit(lambda *args: module.apply(*args)[0])
  together = apply(variables, x)
  np.testing.assert_array_equal(together, apply(variables, x))
  for i in range(3):
    np.testing.assert_allclose(
        together[i:i + 1], apply(variables, x[i:i + 1]), rtol=1e-4, atol=1e-5)


# --- How good it is -----------------------------------------------------------


def _errors(num_features, q, k, v, *, kernel="positive", draws=12, **kw):
  """Relative error of softmax attention, one for each draw."""
  projections = _draw(11, draws, num_features, q.shape[-1])
  wanted = _softmax(q, k, v)
  got = np.asarray(_jit(jax.vmap(lambda w: attention.attend(
      q, k, v, impl="favor", projection=w, kernel=kernel, **kw)))(projections))
  return np.linalg.norm((got - wanted).reshape(draws, -1), axis=1) / (
      np.linalg.norm(wanted))


def _short(scale=0.5):
  return _qkv(n=32, s=32, b=1, m=1, m_kv=1, d=16, scale=scale)


def test_error_of_short_vectors():
  """It would be 0.19 or more with wrong offsets, norms or scales."""
  q, k, v = _short()
  v = np.random.default_rng(1).normal(size=v.shape).astype(np.float32)
  assert _errors(4096, q, k, v).mean() < 0.09


def test_error_falls_with_the_root_of_the_number_of_features():
  sizes = np.array([16, 64, 256, 1024])
  q, k, v = _short(0.3)
  errors = [np.sqrt((_errors(r, q, k, v) ** 2).mean()) for r in sizes]
  slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
  assert -0.6 < slope < -0.4


def test_which_features_are_better_depends_on_the_norms():
  """Trigonometric ones suit short vectors, positive ones long keys."""
  q, k, v = _short()
  v = np.random.default_rng(1).normal(size=v.shape).astype(np.float32)
  def both(k):
    return [np.median(_errors(256, q, k, v, kernel=kernel))
            for kernel in FEATURES]
  positive, trigonometric = both(k)
  assert trigonometric < 0.7 * positive
  lengths = np.linspace(1, 9, 32, dtype=np.float32)[None, :, None, None]
  positive, trigonometric = both(lengths * k)
  assert positive < 0.7 * trigonometric


# --- What it costs ------------------------------------------------------------


def _compiled(length, **kw):
  shape = jax.ShapeDtypeStruct((1, length, 1, 4), jnp.float32)
  loss = lambda *args: attention.attend(*args, **kw).sum()
  return _jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()


def test_operations_and_memory_grow_with_the_length():
  w = np.ones((8, 4), np.float32)
  for kw, growth in ((dict(impl="dense"), (14, 17)),
                     (dict(impl="favor", projection=w), (3, 4.4))):
    short, long = (_compiled(n, **kw) for n in (512, 2048))
    for cost in (lambda p: p.memory_analysis().temp_size_in_bytes,
                 lambda p: p.cost_analysis()["flops"]):
      assert growth[0] < cost(long) / cost(short) < growth[1]


def test_memory_of_causal_attention_grows_with_the_length():
  short, long = (
      _compiled(n, impl="linear", causal=True).memory_analysis()
      .temp_size_in_bytes for n in (512, 2048))
  assert long / short < 4.2
