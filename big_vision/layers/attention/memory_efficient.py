"""Exact attention in memory linear in the length: logits in small chunks.

Dimensions: b batch, n queries, s keys, m heads of queries, k heads of keys and
values, g = m / k heads of queries for each of those, d features of a head, i
queries of a chunk, j keys of a chunk.
"""

import jax
import jax.numpy as jnp

# Value of masked logits. It is finite, so that a fully masked row gives a mean
# and not NaN.
LOWEST = 0.7 * float(jnp.finfo(jnp.float32).min)


def memory_efficient(
    q, k, v, *, mask=None, bias=None, causal=False, scale=None,
    query_chunk_size: int = 512, key_chunk_size: int = 512):
  """Computes softmax attention over chunks of queries and of keys.

  Each chunk of queries visits the chunks of keys in turn and keeps a running
  maximum, the sum of weights and the weighted sum of values. The backward pass
  computes the logits again, so that nothing of size n s is stored for it.
  Chunks have nearly equal sizes and need not divide the lengths.

  Args:
    q: [b, n, m, d].
    k: [b, s, k, d].
    v: [b, s, k, d].
    mask: bool with four axes, each 1 or that of [b, m, n, s]; or None.
    bias: float with the same axes; or None.
    causal: Whether query i sees keys 0..i only. Chunks that no query sees cost
      nothing unless there is a mask too.
    scale: Factor of the logits; None is 1 / sqrt(d).
    query_chunk_size: Largest number of queries in a chunk.
    key_chunk_size: Largest number of keys in a chunk.

  Returns:
    [b, n, m, d], dtype of `q`; weights and sums are float32.

  Raises:
    ValueError: The size of a chunk is below 1.

  Source: arXiv:2112.05682, Sections 2 and 4. Unlike in the released code,
  chunks need not divide the lengths.
  """
  b, n, m, d = q.shape
  _, s, heads, _ = k.shape
  scale = d ** -0.5 if scale is None else scale
  i, num_query_chunks = _chunks(n, query_chunk_size, "query_chunk_size")
  j, num_key_chunks = _chunks(s, key_chunk_size, "key_chunk_size")

  def grouped(x):
    """[b, 1 or m, ...] -> [b, 1 or k, 1 or g, ...]."""
    groups = (1, 1) if x.shape[1] == 1 else (heads, m // heads)
    return x.reshape(x.shape[0], *groups, *x.shape[2:])

  tables = {name: grouped(x) for name, x in (("mask", mask), ("bias", bias))
            if x is not None}
  per_query, for_all_queries = _split_tables(tables, 3, i)

  keys, values = _split(k, 1, j), _split(v, 1, j)

  def attend_queries(_, chunk):
    """Computes attention for a chunk of queries, [b, i, k, g, d]."""
    q_idx, q, per_query = chunk
    rows = q_idx * i + jnp.arange(i)
    per_key, for_all_keys = _split_tables(
        {**for_all_queries, **per_query}, 4, j)

    def add_keys(carry, chunk):
      k_idx, k, v, per_key = chunk
      tables = {**for_all_keys, **per_key}
      columns = k_idx * j + jnp.arange(j)
      logits = scale * jnp.einsum(
          "bikgd,bjkd->bkgij", q, k, preferred_element_type=jnp.float32)
      if "bias" in tables:
        logits += tables["bias"].astype(jnp.float32)
      if "mask" in tables:
        logits = jnp.where(tables["mask"], logits, LOWEST)
      if causal:
        logits = jnp.where(columns <= rows[:, None], logits, LOWEST)
      # Padding of the last chunk never counts, not even in fully masked rows.
      logits = jnp.where(columns < s, logits, -jnp.inf)
      total, weight, top = carry
      # The result does not depend on the maximum, so neither does its gradient.
      new_top = jax.lax.stop_gradient(
          jnp.maximum(top, jnp.max(logits, axis=-1)))
      decay = jnp.exp(top - new_top)
      weights = jnp.exp(logits - new_top[..., None])
      total = decay[..., None] * total + jnp.einsum(
          "bkgij,bjkd->bkgid", weights.astype(v.dtype), v,
          preferred_element_type=jnp.float32)
      weight = decay * weight + jnp.sum(weights, axis=-1)
      return (total, weight, new_top), None

    def add_visible_keys(carry, chunk):
      if not causal or mask is not None:
        return add_keys(carry, chunk)
      return jax.lax.cond(
          chunk[0] * j <= rows[-1], add_keys, lambda carry, _: (carry, None),
          carry, chunk)

    shape = (b, heads, m // heads, i)
    # Start below LOWEST, because a bias may be lower than masked logits.
    first = (jnp.zeros((*shape, d)), jnp.zeros(shape),
             jnp.full(shape, jnp.finfo(jnp.float32).min))
    (total, weight, _), _ = jax.lax.scan(
        jax.checkpoint(add_visible_keys, prevent_cse=False), first,
        (jnp.arange(num_key_chunks), keys, values, per_key))
    out = jnp.moveaxis(total / weight[..., None], 3, 1)
    return None, out.reshape(b, i, m, d).astype(q.dtype)

  _, out = jax.lax.scan(
      jax.checkpoint(attend_queries, prevent_cse=False), None,
      (jnp.arange(num_query_chunks),
       _split(q.reshape(b, n, heads, m // heads, d), 1, i), per_query))
  return out.swapaxes(0, 1).reshape(b, -1, m, d)[:, :n]


def _chunks(length, size, name):
  """Returns (size, number) of chunks of nearly equal size, at most `size`."""
  if size < 1:
    raise ValueError(f"{name} must be at least 1, it is {size}.")
  num_chunks = -(-length // size)
  return -(-length // num_chunks), num_chunks


def _split(x, axis, size):
  """Moves chunks along `axis` to a new first axis; pads the last with zeros."""
  fill = [(0, 0)] * x.ndim
  fill[axis] = 0, -x.shape[axis] % size
  x = jnp.pad(x, fill)
  x = x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1:])
  return jnp.moveaxis(x, axis, 0)


def _split_tables(tables, axis, size):
  """Splits tables along `axis`; also returns those that broadcast along it."""
  return ({name: _split(x, axis, size) for name, x in tables.items()
           if x.shape[axis] > 1},
          {name: x for name, x in tables.items() if x.shape[axis] == 1})
