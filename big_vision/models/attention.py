"""Attention: one function, several implementations behind it.

An implementation is a function registered under a name. Its keyword-only
arguments say what it can honour; `attend` refuses the rest, so that a mask is
never dropped silently. To add one, write and register it here.

Dimensions: b batch, n queries, s keys, m heads of the queries, m_kv of keys and
values, g = m / m_kv query heads to each of those, d features of a head.
"""

from collections.abc import Callable
import inspect
from typing import Any

import flax.linen as nn
import jax
from jax.extend import backend as jax_backend
import jax.numpy as jnp

from big_vision import config as config_lib
from big_vision import op_string
from big_vision.models import common

IMPLEMENTATIONS: dict[str, Callable] = {}


def register(name: str):
  """Makes the decorated function `attend(..., impl=name)`.

  It is called as `fn(q, k, v, **what_was_asked_for)` with checked shapes; a
  `mask` or `bias` it takes has four axes, each 1 or of full size.
  """
  def decorate(fn):
    if name in IMPLEMENTATIONS:
      raise ValueError(f"There is an attention {name!r} already.")
    IMPLEMENTATIONS[name] = fn
    return fn
  return decorate


def attend(q, k, v, *, mask=None, bias=None, causal: bool = False,
           impl: str = "dense", **options):
  """Mixes values by softmax(q k^T / sqrt(d) + bias).

  Args:
    q: [b, n, m, d] queries, float32 or bfloat16.
    k: [b, s, m_kv, d] keys. m_kv divides m: query head i reads the keys of
      head i // (m / m_kv), so m_kv = 1 is multi-query attention.
    v: [b, s, m_kv, d] values.
    mask: bool, broadcastable to [b, m, n, s]; only where True is looked at. A
      query that may look at nothing gets the mean of all values.
    bias: broadcastable to [b, m, n, s], added to the logits, units of nats.
    causal: query i sees keys 0..i only.
    impl: a name in IMPLEMENTATIONS.
    **options: what the implementation takes beyond; all of today's take
      `scale`, a float in place of 1 / sqrt(d).

  Returns:
    [b, n, m, d], dtype of `q`. The softmax is computed in float32.

  Raises:
    ValueError: an unknown implementation, something it does not honour (says
      which ones do), shapes that do not fit, a mask that is not bool.

  Source: arXiv:1706.03762; grouped heads: arXiv:2305.13245.
  """
  common.check_choice("attention", impl, IMPLEMENTATIONS)
  _check_shapes(q, k, v)
  logits_shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
  if mask is not None:
    if mask.dtype != jnp.bool_:
      raise ValueError(
          f"An attention mask must be bool, this one is {mask.dtype}; what is "
          "added to the logits is called bias.")
    options["mask"] = _with_four_axes(mask, "mask", logits_shape)
  if bias is not None:
    options["bias"] = _with_four_axes(bias, "bias", logits_shape)
  if causal:
    options["causal"] = True
  for option in options:
    if option not in _honoured(impl):
      able = [name for name in IMPLEMENTATIONS if option in _honoured(name)]
      known = {name for each in IMPLEMENTATIONS for name in _honoured(each)}
      raise ValueError(
          f"Attention {impl!r} cannot honour {option!r}; "
          + (f"{able} can." if able else
             f"none can{config_lib.nearest(option, known)}.")
          + f" It takes {_honoured(impl)}.")
  return IMPLEMENTATIONS[impl](q, k, v, **options)


def _honoured(impl: str) -> list[str]:
  """Names of what an implementation takes."""
  return [p.name for p in
          inspect.signature(IMPLEMENTATIONS[impl]).parameters.values()
          if p.kind is p.KEYWORD_ONLY]


def _check_shapes(q, k, v):
  """Raises ValueError unless queries, keys and values fit together."""
  fit = (
      q.ndim == k.ndim == 4 and k.shape == v.shape and
      (q.shape[0], q.shape[3]) == (k.shape[0], k.shape[3]) and
      q.shape[2] % k.shape[2] == 0)
  if not fit or not q.dtype == k.dtype == v.dtype:
    raise ValueError(
        "Attention wants q [b, n, m, d] and k, v [b, s, m_kv, d] of one dtype, "
        f"where m_kv divides m; it got q {q.dtype}{list(q.shape)}, "
        f"k {k.dtype}{list(k.shape)}, v {v.dtype}{list(v.shape)}.")


def _with_four_axes(x, what, shape):
  """`x` with axes of size 1 put in front, after checking that it broadcasts."""
  full = (1,) * (4 - x.ndim) + x.shape
  if len(full) != 4 or any(i not in (1, j) for i, j in zip(full, shape)):
    raise ValueError(
        f"An attention {what} must broadcast to [b, m, n, s] = {list(shape)}, "
        f"this one has shape {list(x.shape)}.")
  return x.reshape(full)


@register("dense")
def _dense(q, k, v, *, mask=None, bias=None, causal=False, scale=None):
  """All logits in memory: O(n s), plain, runs anywhere."""
  b, n, m, d = q.shape
  _, s, m_kv, _ = k.shape
  scale = d ** -0.5 if scale is None else scale
  logits = scale * jnp.einsum(
      "bnkgd,bskd->bkgns", q.reshape(b, n, m_kv, m // m_kv, d), k,
      preferred_element_type=jnp.float32).reshape(b, m, n, s)
  if bias is not None:
    logits += bias.astype(jnp.float32)
  # Finite, so that a row that is masked altogether is a mean and not NaN.
  lowest = 0.7 * jnp.finfo(jnp.float32).min
  if mask is not None:
    logits = jnp.where(mask, logits, lowest)
  if causal:
    logits = jnp.where(jnp.tri(n, s, dtype=bool), logits, lowest)
  weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  return jnp.einsum(
      "bkgns,bskd->bnkgd", weights.reshape(b, m_kv, m // m_kv, n, s),
      v).reshape(b, n, m, d)


@register("xla")
def _xla(q, k, v, *, mask=None, bias=None, causal=False, scale=None):
  """JAX's own: XLA may fuse it as it sees fit."""
  return jax.nn.dot_product_attention(
      q, k, v, bias=bias, mask=mask, is_causal=causal, scale=scale,
      implementation="xla")


@register("cudnn")
def _cudnn(q, k, v, *, mask=None, bias=None, causal=False, scale=None):
  """cuDNN's flash attention: O(n) memory, Nvidia GPUs, bfloat16 only."""
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
  def spread(x):  # It broadcasts over batch and heads only.
    return None if x is None else jnp.broadcast_to(x, x.shape[:2] + full[2:])
  if bias is not None:
    bias = spread(bias).astype(q.dtype)
  return jax.nn.dot_product_attention(
      q, k, v, bias=bias, mask=spread(mask), is_causal=causal, scale=scale,
      implementation="cudnn")


class MultiHeadAttention(nn.Module):
  """Multi-head attention with the parameters of flax's module of that kind.

  Those are query/key/value {kernel [c, m, d], bias [m, d]} and out {kernel
  [m, d, c], bias [c]}, float32; c = m d is the width of the queries' tokens.

  Attributes:
    num_heads: of the queries.
    num_kv_heads: of keys and values; None is as many.
    attention: a name in IMPLEMENTATIONS, or with options: "name(option=1)".
    dtype: what is computed in.
  """
  num_heads: int
  num_kv_heads: int | None = None
  attention: str = "dense"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, x_kv=None, *, mask=None, bias=None,
               causal: bool = False):
    """Tokens [b, n, c] look at `x_kv` [b, s, c'] or, without it, each other."""
    x_kv = x if x_kv is None else x_kv
    width = x.shape[-1]
    if width % self.num_heads:
      raise ValueError(
          f"width {width} does not divide into num_heads {self.num_heads}.")
    op, = op_string.parse(self.attention)
    if op.args:
      raise ValueError(
          f"Options of attention need names: {op.text!r} has {op.args}.")

    def project(x, name, num_heads):
      return nn.DenseGeneral(
          (num_heads, width // self.num_heads), name=name, dtype=self.dtype,
          kernel_init=nn.initializers.xavier_uniform())(x)

    num_kv_heads = self.num_kv_heads or self.num_heads
    q = project(x, "query", self.num_heads)
    k = project(x_kv, "key", num_kv_heads)
    v = project(x_kv, "value", num_kv_heads)
    # A single query (a probe) has no length to split.
    names = ("act_batch", "act_len" if x.shape[1] > 1 else None, "act_heads",
             None)
    q = common.constrain(q, *names)
    y = attend(q, k, v, mask=mask, bias=bias, causal=causal, impl=op.name,
               **op.kwargs)
    y = common.constrain(y, *names)
    return nn.DenseGeneral(
        width, axis=(-2, -1), name="out", dtype=self.dtype,
        kernel_init=nn.initializers.xavier_uniform())(y)
