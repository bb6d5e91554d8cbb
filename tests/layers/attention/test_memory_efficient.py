"""Attention in chunks against attention with all logits at once."""

import functools

from big_vision.layers import attention
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import drawn

B, N, S, M, M_KV, D = 2, 3, 4, 4, 2, 8
# Neither divides a length.
CHUNKS = dict(impl="memory_efficient", query_chunk_size=2, key_chunk_size=3)
_jit = drawn.jit


def _qkv(n=N, s=S):
  rng = np.random.default_rng(0)
  return [rng.normal(size=shape).astype(np.float32)
          for shape in ((B, n, M, D), (B, s, M_KV, D), (B, s, M_KV, D))]


def _softmax(q, k, v, causal):
  """The definition, float64, without chunks."""
  k, v = (np.repeat(x.astype(np.float64), M // M_KV, axis=2) for x in (k, v))
  table = np.exp(np.einsum("bnmd,bsmd->bmns", q, k) / np.sqrt(D))
  if causal:
    table *= np.tri(*table.shape[2:])
  return np.einsum("bmns,bsmd->bnmd", table, v) / table.sum(
      axis=-1).swapaxes(1, 2)[..., None]


@pytest.mark.parametrize("n,s,query_chunk_size,key_chunk_size,causal", [
    (1, 1, 1, 1, False), (5, 7, 2, 3, True), (7, 5, 3, 2, True),
    (6, 6, 4, 4, False), (9, 4, 16, 1, True), (8, 8, 4, 2, True),
    (9, 9, 16, 16, False)])
def test_chunks_of_any_size_for_any_length(
    n, s, query_chunk_size, key_chunk_size, causal):
  q, k, v = _qkv(n, s)
  got = _jit(functools.partial(
      attention.attend, impl="memory_efficient", causal=causal,
      query_chunk_size=query_chunk_size, key_chunk_size=key_chunk_size))(
          q, k, v)
  np.testing.assert_allclose(
      got, _softmax(q, k, v, causal), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask,bias,causal", [
    (None, None, True), (None, (1, M, N, S), False),
    ("any", (B, 1, N, S), True), ("any", (1, 1, 1, S), False),
    ("keys", (1, M, N, 1), False)])
def test_gradients_in_chunks_are_those_of_dense(mask, bias, causal):
  q, k, v = _qkv()
  if mask is not None:  # Queries that see nothing, and keys nobody sees.
    mask = np.random.default_rng(1).random(
        (B, M, N, S) if mask == "any" else (B, 1, 1, S)) < 0.6
    mask[0, :, -1:] = False
    mask[1, :, :, -2:] = False
  args = [q, k, v]
  if bias is not None:
    args.append(np.random.default_rng(4).normal(size=bias).astype(np.float32))
  target = np.random.default_rng(5).normal(size=q.shape)
  def grads(impl):
    def loss(q, k, v, bias=None):
      return (attention.attend(
          q, k, v, mask=mask, bias=bias, causal=causal, **impl)
              * target).sum()
    return _jit(jax.grad(loss, tuple(range(len(args)))))(*args)
  for got, wanted in zip(grads(CHUNKS), grads({}), strict=True):
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_chunks_have_second_derivatives():
  q, k, v = _qkv()
  def hessian_times(vector, impl):
    loss = lambda q: (attention.attend(q, k, v, **impl) ** 2).sum()
    return _jit(lambda q: jax.jvp(jax.grad(loss), (q,), (vector,))[1])(q)
  vector = np.random.default_rng(6).normal(size=q.shape).astype(np.float32)
  np.testing.assert_allclose(
      hessian_times(vector, CHUNKS), hessian_times(vector, {}),
      rtol=1e-3, atol=1e-4)


def test_chunks_in_the_future_are_left_out():
  q, k, v = _qkv(n=4)
  wanted = _softmax(q, k, v, causal=True)
  k[:, 2:] = np.nan
  got = _jit(functools.partial(
      attention.attend, impl="memory_efficient", causal=True,
      query_chunk_size=2, key_chunk_size=2))(q, k, v)
  np.testing.assert_allclose(got[:, :2], wanted[:, :2], rtol=1e-4, atol=1e-5)
  assert np.isnan(got[:, 2:]).all()


def test_chunk_sizes_are_checked():
  for name in ("query_chunk_size", "key_chunk_size"):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, it is 0"):
      attention.attend(*_qkv(), impl="memory_efficient", **{name: 0})


def _temporary_bytes(length, **options):
  """Of the compiled gradient; nothing runs."""
  shape = jax.ShapeDtypeStruct((1, length, 1, 4), jnp.float32)
  loss = lambda *args: attention.attend(*args, **options).sum()
  return _jit(jax.grad(loss, (0, 1, 2))).lower(
      shape, shape, shape).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("options,growth", [
    (dict(impl="dense"), (15, 17)),
    (dict(impl="memory_efficient", query_chunk_size=32, key_chunk_size=32),
     (1, 4.2)),
    (dict(impl="local", window=16), (1, 4.2))], ids=str)
def test_memory_of_four_times_the_length(options, growth):
  ratio = (_temporary_bytes(2048, **options) / _temporary_bytes(512, **options))
  assert growth[0] < ratio < growth[1]
