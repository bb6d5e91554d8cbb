"""Attention: one function, several implementations behind it.

An implementation is a function registered under a name. Its keyword-only
arguments say what it can honour; `attend` refuses the rest, so that a mask is
never dropped silently. To add one, write it, in a file of its own if it is
long, and register it here.

Dimensions: b batch, n queries, s keys, m heads of the queries, m_kv of keys and
values, g = m / m_kv query heads to each of those, d features of a head.
"""

from collections.abc import Callable
import inspect
from typing import Any, NamedTuple
import zlib

import flax.linen as nn
import jax
from jax.extend import backend as jax_backend
import jax.numpy as jnp

from big_vision import config as config_lib
from big_vision import op_string
from big_vision import tree
from big_vision.layers import common
from big_vision.layers.attention import favor
from big_vision.layers.attention import fused
from big_vision.layers.attention import memory_efficient

# The collection of the random draws that implementations look at.
FEATURES = "features"


class Implementation(NamedTuple):
  """What is registered under a name.

  Attributes:
    fn: (q, k, v, **what was asked for) -> [b, n, m, d].
    draw: (rng, (num_features, d)) -> the argument `projection` of `fn`, for
      implementations that have it; more axes in front are independent draws.
    any_mask: whether a mask may differ between queries; otherwise it is refused
      unless its third axis is 1.
  """
  fn: Callable
  draw: Callable | None = None
  any_mask: bool = True


IMPLEMENTATIONS: dict[str, Implementation] = {}


def register(
    name: str, *, draw: Callable | None = None, any_mask: bool = True):
  """Makes the decorated function `attend(..., impl=name)`.

  It is called as `fn(q, k, v, **what_was_asked_for)` with checked shapes; a
  `mask` or `bias` it takes has four axes, each 1 or of full size.

  Args:
    name: in configs and errors.
    draw: see `Implementation`; `MultiHeadAttention` calls it and keeps what it
      draws in the collection FEATURES.
    any_mask: see `Implementation`.
  """
  def decorate(fn):
    if name in IMPLEMENTATIONS:
      raise ValueError(f"There is an attention {name!r} already.")
    IMPLEMENTATIONS[name] = Implementation(fn, draw, any_mask)
    return fn
  return decorate


def attend(q, k, v, *, mask=None, bias=None, causal: bool = False,
           impl: str = "dense", **options):
  """Mixes values by softmax(q k^T / sqrt(d) + bias).

  That is what "dense", "xla", "cudnn" and "memory_efficient" compute; "local"
  does within a window, "favor" estimates it, "linear" has other weights.

  Args:
    q: [b, n, m, d] queries, float32 or bfloat16.
    k: [b, s, m_kv, d] keys. m_kv divides m: query head i reads the keys of
      head i // (m / m_kv), so m_kv = 1 is multi-query attention.
    v: [b, s, m_kv, d] values.
    mask: bool, broadcastable to [b, m, n, s]; only where True is looked at. A
      query that may look at nothing gets the mean of all values, if causal of
      later ones too: what it gets is not to be used.
    bias: broadcastable to [b, m, n, s], added to the logits, units of nats.
    causal: query i sees keys 0..i only.
    impl: a name in IMPLEMENTATIONS.
    **options: what the implementation takes beyond, see its function.

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
  fn, _, any_mask = IMPLEMENTATIONS[impl]
  if mask is not None:
    if mask.dtype != jnp.bool_:
      raise ValueError(
          f"An attention mask must be bool, this one is {mask.dtype}; what is "
          "added to the logits is called bias.")
    options["mask"] = mask = _with_four_axes(mask, "mask", logits_shape)
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
  if mask is not None and mask.shape[2] != 1 and not any_mask:
    able = [name for name, other in IMPLEMENTATIONS.items()
            if other.any_mask and "mask" in _honoured(name)]
    raise ValueError(
        f"Attention {impl!r} honours only masks that are the same for all "
        f"queries, [b, m, 1, s]; this one is {list(mask.shape)}. {able} honour "
        "any.")
  needed = [p.name for p in _parameters(impl) if p.default is p.empty]
  if missing := [name for name in needed if name not in options]:
    raise ValueError(
        f"Attention {impl!r} needs {missing}, which `MultiHeadAttention` would "
        f"draw; it got {sorted(options)}.")
  return fn(q, k, v, **options)


def _parameters(impl: str) -> list[inspect.Parameter]:
  """What an implementation takes by name."""
  return [p for p in
          inspect.signature(IMPLEMENTATIONS[impl].fn).parameters.values()
          if p.kind is p.KEYWORD_ONLY]


def _honoured(impl: str) -> list[str]:
  """Names of what an implementation takes."""
  return [p.name for p in _parameters(impl)]


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
  lowest = memory_efficient.LOWEST
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


register("memory_efficient")(memory_efficient.memory_efficient)
register("linear", any_mask=False)(favor.linear)
register("favor", any_mask=False, draw=favor.draw_projection)(favor.favor)
register("fused")(fused.fused)


@register("local", any_mask=False)
def _local(q, k, v, *, mask=None, causal=False, scale=None, window: int = 128):
  """Dense within a window: query i sees keys i - window .. i + window.

  Blocks of `window` tokens look at themselves and their neighbours: O(n window)
  time and memory. Tokens of an image are in raster order.

  Raises:
    ValueError: as many queries as keys are wanted, and a window of 1 or more.
  """
  b, n, m, d = q.shape
  if n != k.shape[1] or window < 1:
    raise ValueError(
        "Attention 'local' wants a window of at least 1 and tokens that look "
        f"at each other; it got window={window}, {n} queries and {k.shape[1]} "
        "keys.")
  window = min(window, n)
  heads, blocks = k.shape[2], -(-n // window)
  scale = d ** -0.5 if scale is None else scale
  reach = (-1, 0) if causal else (-1, 0, 1)

  def split(x, fill=0):
    """[b, n, ...] -> [b, blocks, window, ...]."""
    x = jnp.pad(x, [(0, 0), (0, blocks * window - n)] + [(0, 0)] * (x.ndim - 2),
                constant_values=fill)
    return x.reshape(x.shape[0], blocks, window, *x.shape[2:])

  def around(x):
    """Each block and its neighbours: [b, blocks, window * len(reach), ...]."""
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
  # As everywhere, who sees nothing gets the mean of all, not of the window.
  mean = jnp.mean(v, axis=1).reshape(b, 1, 1, heads, 1, d)
  anything = jnp.moveaxis(jnp.any(allowed, axis=-1, keepdims=True), 4, 2)
  out = jnp.where(anything, out, mean)
  return out.reshape(b, blocks * window, m, d)[:, :n].astype(q.dtype)


def redraw(features, rng, step, every: int):
  """The collection FEATURES at a step: new draws every so many, or the old.

  A draw is a function of `rng`, of the name of the layer and, for blocks that
  are scanned, of their number.

  Args:
    features: tree of projections, each float32[..., num_features, d].
    rng: a jax key that depends on the run's seed and the step.
    step: int, updates done so far; the first steps have the initial draws.
    every: number of steps that share draws.
  """
  def draw(name, leaf):
    impl = name.rpartition("/")[2]
    rng_leaf = jax.random.fold_in(rng, zlib.crc32(name.encode()))
    return IMPLEMENTATIONS[impl].draw(rng_leaf, leaf.shape)
  return jax.lax.cond(
      (step > 0) & (step % every == 0),
      lambda: tree.map_with_names(draw, features), lambda: features)


class MultiHeadAttention(nn.Module):
  """Multi-head attention with the parameters of flax's module of that kind.

  Those are query/key/value {kernel [c, m, d], bias [m, d]} and out {kernel
  [m, d, c], bias [c]}, float32; c = m d is the width of the queries' tokens.

  Attributes:
    num_heads: of the queries.
    num_kv_heads: of keys and values; None is as many.
    attention: a name in IMPLEMENTATIONS, or with options: "name(option=1)".
      What an implementation draws is float32[num_features, d], in the
      collection FEATURES under the implementation's name; the option
      `num_features` says how many, 256 by default, 0 for none.
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
    common.check_choice("attention", op.name, IMPLEMENTATIONS)
    options = dict(op.kwargs)
    if (draw := IMPLEMENTATIONS[op.name].draw) is not None:
      options["projection"] = self._drawn(
          op.name, draw, options.pop("num_features", 256),
          width // self.num_heads)

    def project(x, name, num_heads):
      return nn.DenseGeneral(
          (num_heads, width // self.num_heads), name=name, dtype=self.dtype,
          kernel_init=nn.initializers.xavier_uniform())(x)

    num_kv_heads = (
        self.num_heads if self.num_kv_heads is None else self.num_kv_heads)
    if num_kv_heads < 1 or self.num_heads % num_kv_heads:
      raise ValueError(
          f"num_kv_heads {num_kv_heads} does not divide num_heads "
          f"{self.num_heads}.")
    q = project(x, "query", self.num_heads)
    k = project(x_kv, "key", num_kv_heads)
    v = project(x_kv, "value", num_kv_heads)
    # A single query (a probe) has no length to split.
    names = ("act_batch", "act_len" if x.shape[1] > 1 else None, "act_heads",
             None)
    q = common.constrain(q, *names)
    y = attend(q, k, v, mask=mask, bias=bias, causal=causal, impl=op.name,
               **options)
    y = common.constrain(y, *names)
    return nn.DenseGeneral(
        width, axis=(-2, -1), name="out", dtype=self.dtype,
        kernel_init=nn.initializers.xavier_uniform())(y)

  def _drawn(self, impl, draw, num_features, d):
    """The projection of this layer, or None without features."""
    if not isinstance(num_features, int) or num_features < 0:
      raise ValueError(
          f"num_features of attention {impl!r} must be a number from 0, it is "
          f"{num_features!r}.")
    if not num_features:
      return None
    return self.variable(
        FEATURES, impl,
        lambda: draw(self.make_rng("params"), (num_features, d))).value
