"""Multi-head attention as a flax module, and its random features.

Dimensions: b batch, n queries, s keys, c width of the tokens, m heads of the
queries, m_kv heads of keys and values, d features of a head.
"""

from collections.abc import Callable
from typing import Any
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision import op_string
from big_vision import tree
from big_vision.layers import activation_sharding
from big_vision.layers import checks
from big_vision.layers.attention import registry

# The collection of random features that implementations use.
FEATURES = "features"


class MultiHeadAttention(nn.Module):
  """Multi-head attention with the parameters of flax's own module.

  The parameters are query/key/value {kernel [c, m, d], bias [m, d]} and out
  {kernel [m, d, c], bias [c]}, float32; c = m d is the width of the queries'
  tokens.

  Attributes:
    num_heads: Number of heads of the queries, m.
    num_kv_heads: Number of heads of keys and values; None means m.
    attention: Name in IMPLEMENTATIONS, with options if needed:
      "name(option=1)". Implementations with random features keep
      float32[num_features, d] in the collection FEATURES, under their name;
      the option `num_features` is 256 by default, 0 for none.
    dtype: Dtype of activations.
    kernel_init: Initializer of all kernels; sees them as matrices [c, m d].
  """
  num_heads: int
  num_kv_heads: int | None = None
  attention: str = "dense"
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.xavier_uniform()

  @nn.compact
  def __call__(self, x, x_kv=None, *, mask=None, bias=None,
               causal: bool = False, cache=None, place=None):
    """Attends from `x` to `x_kv` or, without it, to `x` itself.

    Args:
      x: [b, n, c].
      x_kv: [b, s, c'], or None.
      mask: see `attend`.
      bias: see `attend`.
      causal: see `attend`.
      cache: (keys, values) of earlier calls, each [b, s, m_kv, d]. `x` is then
        [b, 1, c] and sees the cached tokens before `place` and itself; no mask
        or bias is accepted. The implementation is always "dense", whose logits
        take memory linear in s for a single query.
      place: int32[], position of `x` in the cache.

    Returns:
      [b, n, c], dtype of the activations.
      out: with the option `return_weights` of "dense", "weights" float32
        [b, m, n, s], see `attend`; with a `cache`, "cache" with the keys and
        values of `x` added.

    Raises:
      ValueError: Invalid options or numbers of heads, and see `attend`.
    """
    x_kv = x if x_kv is None else x_kv
    d = self._features_of_a_head(x.shape[-1])
    impl, options = self._options(d)

    def project(x, name, num_heads):
      return nn.DenseGeneral(
          (num_heads, d), name=name, dtype=self.dtype,
          kernel_init=self.kernel_init)(x)

    num_kv_heads = (
        self.num_heads if self.num_kv_heads is None else self.num_kv_heads)
    q = project(x, "query", self.num_heads)
    k = project(x_kv, "key", num_kv_heads)
    v = project(x_kv, "value", num_kv_heads)
    out = {}
    if cache is not None:
      if mask is not None or bias is not None or causal:
        raise ValueError("A cache has a mask of its own; it takes no other.")
      k, v = out["cache"] = tuple(
          jax.lax.dynamic_update_slice_in_dim(old, new, place, axis=1)
          for old, new in zip(cache, (k, v)))
      impl, options = "dense", {}
      mask = (jnp.arange(k.shape[1]) <= place)[None, None, None, :]
    # A single query (a probe) has no length to split.
    names = ("act_batch", "act_len" if x.shape[1] > 1 else None, "act_heads",
             None)
    q = activation_sharding.constrain(q, *names)
    y = registry.attend(
        q, k, v, mask=mask, bias=bias, causal=causal, impl=impl, **options)
    if options.get("return_weights"):
      y, out["weights"] = y
    y = activation_sharding.constrain(y, *names)
    y = nn.DenseGeneral(
        x.shape[-1], axis=(-2, -1), name="out", dtype=self.dtype,
        kernel_init=self.kernel_init)(y)
    return y, out

  def _features_of_a_head(self, width: int) -> int:
    """Returns d, after checking the numbers of heads."""
    if width % self.num_heads:
      raise ValueError(
          f"width {width} does not divide into num_heads {self.num_heads}.")
    if self.num_kv_heads is not None and (
        self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads):
      raise ValueError(
          f"num_kv_heads {self.num_kv_heads} does not divide num_heads "
          f"{self.num_heads}.")
    return width // self.num_heads

  def _options(self, d: int) -> tuple[str, dict[str, Any]]:
    """Returns the implementation's name and options, features included."""
    op, = op_string.parse(self.attention)
    if op.args:
      raise ValueError(
          f"Options of attention need names: {op.text!r} has {op.args}.")
    checks.check_choice("attention", op.name, registry.IMPLEMENTATIONS)
    options = dict(op.kwargs)
    draw = registry.IMPLEMENTATIONS[op.name].draw
    if draw is not None:
      options["projection"] = self._projection(
          op.name, draw, options.pop("num_features", 256), d)
    return op.name, options

  def _projection(self, impl, draw, num_features, d):
    """Returns the projection of this layer, or None without features."""
    if not isinstance(num_features, int) or num_features < 0:
      raise ValueError(
          f"num_features of attention {impl!r} must be an integer of at least "
          f"0, it is {num_features!r}.")
    if not num_features:
      return None
    return self.variable(
        FEATURES, impl,
        lambda: draw(self.make_rng("params"), (num_features, d))).value


def redraw(features, rng, step, every: int):
  """Draws new random features every so many steps.

  A draw is a function of `rng`, the name of the layer and, for blocks that are
  scanned, their index.

  Args:
    features: The collection FEATURES, a tree of projections, each
      float32[..., num_features, d].
    rng: jax key that depends on the run's seed and the step.
    step: int, number of updates so far; the first steps have the initial draws.
    every: Number of steps that share draws.

  Returns:
    `features`, or new draws if `step` is a positive multiple of `every`.
  """
  def draw(name, leaf):
    impl = name.rpartition("/")[2]
    rng_leaf = jax.random.fold_in(rng, zlib.crc32(name.encode()))
    return registry.IMPLEMENTATIONS[impl].draw(rng_leaf, leaf.shape)
  return jax.lax.cond(
      (step > 0) & (step % every == 0),
      lambda: tree.map_with_names(draw, features), lambda: features)
