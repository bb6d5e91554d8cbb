"""The transformer block, its MLP, and stacks of blocks.

`Block` is composed from factories: functions that take a `name` and make a
flax module, such as `functools.partial(MlpBlock, 3072)`. New parts plug in as
follows:
  a gated MLP (SwiGLU) or a mixture of experts is another `mlp`;
  rotary embeddings and normalized queries and keys belong in the module that
    `attention` makes, between its projections and `attention.attend`;
  relative position embeddings are a `bias` of `attention.attend`;
  scales of the branches (LayerScale) go into `Block._add`, before stochastic
    depth;
  registers are tokens that a model puts beside the others before the blocks,
    as ViT does with its class token.

Dimensions: b batch, n queries, s keys, m heads, d width.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision.layers import activation_sharding
from big_vision.layers import attention as attention_lib
from big_vision.layers import checks
from big_vision.layers import rematerialization
from big_vision.layers import stochastic_depth

GELUS = ("tanh", "erf")
NORMS = ("pre", "post")


class MlpBlock(nn.Module):
  """Two dense layers with a GELU between them, on the last axis.

  Attributes:
    mlp_dim: Hidden width.
    dropout: Rate of dropout on the hidden units.
    dtype: Dtype of activations.
    gelu: "tanh" (an approximation, as in published weights) or "erf" (exact).
  """
  mlp_dim: int
  dropout: float = 0.0
  dtype: Any = jnp.float32
  gelu: str = "tanh"

  @nn.compact
  def __call__(self, x, train: bool = False, mask=None):
    """[b, n, d] -> [b, n, d]; `mask` makes no difference."""
    del mask
    checks.check_choice("gelu", self.gelu, GELUS)
    dense = functools.partial(
        nn.Dense, dtype=self.dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=nn.initializers.normal(stddev=1e-6))
    width = x.shape[-1]
    x = dense(self.mlp_dim)(x)
    x = activation_sharding.constrain(x, "act_batch", "act_len", "act_mlp")
    x = nn.gelu(x, approximate=self.gelu == "tanh")
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    return dense(width)(x)


class BlockNames(NamedTuple):
  """Names of a block's parts in the tree of parameters.

  Attributes:
    norms: Names of the LayerNorms of attention and MLP.
    attention: Name of attention; None puts its parameters directly into the
      block's own.
    mlp: Name of the MLP; None likewise.
  """
  norms: tuple[str, str] = ("LayerNorm_0", "LayerNorm_1")
  attention: str | None = "MultiHeadDotProductAttention_0"
  mlp: str | None = "MlpBlock_0"


class Block(nn.Module):
  """A transformer block: attention, then an MLP, each beside a residual.

  Attributes:
    attention: Factory of a module with the interface of
      `attention.MultiHeadAttention`.
    mlp: Factory of a module (x, train, mask) -> [b, n, d], like `MlpBlock`.
    norm: "pre", LayerNorm before each branch; or "post", after each sum.
    epsilon: Constant that LayerNorm adds to the variance.
    causal: Whether token i sees tokens 0..i only.
    dropout: Rate of dropout on the output of both branches.
    stoch_depth_mode: see `stochastic_depth.drop_branch`.
    dtype: Dtype of activations.
    names: Names of the parts; the default ones are those of published ViTs.
  """
  attention: Callable[..., nn.Module]
  mlp: Callable[..., nn.Module]
  norm: str = "pre"
  epsilon: float = 1e-6
  causal: bool = False
  dropout: float = 0.0
  stoch_depth_mode: str = "inverted"
  dtype: Any = jnp.float32
  names: BlockNames = BlockNames()

  @nn.compact
  def __call__(self, x, rate, train: bool, mask=None, cache=None, place=None):
    """Applies the block.

    Args:
      x: [b, n, d].
      rate: Drop rate of stochastic depth, or None for no stochastic depth.
      train: Whether stochastic depth and dropout act; static.
      mask: bool[b, n], False for tokens that no token sees; None if all are
        seen.
      cache: Keys and values of earlier calls, see `MultiHeadAttention`.
      place: int32[], position of `x` in the cache.

    Returns:
      [b, n, d], dtype of the activations.
      out: the outputs of the branches, "sa" and "mlp", and the sums, "+sa" and
        "+mlp", all [b, n, d]. If attention returns its weights,
        "sa_weights", float32[b, m, n, s]; with a `cache`, the updated "cache".
    """
    checks.check_choice("norm", self.norm, NORMS)
    out = {}

    def attend(x):
      y, extra = self._make(self.attention, self.names.attention)(
          x, mask=None if mask is None else mask[:, None, None, :],
          causal=self.causal and cache is None, cache=cache, place=place)
      out["sa"] = y
      if "weights" in extra:
        out["sa_weights"] = extra["weights"]
      if "cache" in extra:
        out["cache"] = extra["cache"]
      return y

    def transform(x):
      out["mlp"] = self._make(self.mlp, self.names.mlp)(x, train, mask)
      return out["mlp"]

    norm_sa, norm_mlp = (
        nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)
        for name in self.names.norms)
    x = out["+sa"] = self._add(x, attend, norm_sa, rate, train)
    x = out["+mlp"] = self._add(x, transform, norm_mlp, rate, train)
    return x, out

  def _make(self, factory, name):
    """Makes a part, within the block's own scope if it has no name."""
    part = factory(name=name)
    if name is None:
      nn.share_scope(self, part)
    return part

  def _add(self, x, branch, norm, rate, train):
    """Adds a branch to its input, normalized before or after."""
    y = branch(norm(x) if self.norm == "pre" else x)
    y = nn.Dropout(self.dropout)(y, deterministic=not train)
    if rate is not None:
      y = stochastic_depth.drop_branch(
          y, rate, self.make_rng("dropout") if train else None,
          mode=self.stoch_depth_mode, train=train)
    x = x + y if self.norm == "pre" else norm(x + y)
    return activation_sharding.constrain(x, "act_batch", "act_len", "act_emb")


def block_args(
    mlp_dim: int, num_heads: int, *, dropout: float = 0.0, dtype: Any,
    attention: str = "dense", gelu: str = "tanh") -> dict[str, Any]:
  """Returns arguments of `Block` for multi-head attention and a dense MLP.

  Args:
    mlp_dim: Hidden width of the MLP.
    num_heads: Number of heads of attention.
    dropout: Rate, on the MLP's hidden units and on both branches.
    dtype: Dtype of activations.
    attention: Implementation, see `attention.MultiHeadAttention`.
    gelu: One of GELUS.
  """
  return dict(
      attention=functools.partial(
          attention_lib.MultiHeadAttention, num_heads, attention=attention,
          dtype=dtype),
      mlp=functools.partial(MlpBlock, mlp_dim, dropout, dtype, gelu),
      dropout=dropout, dtype=dtype)


class Encoder(nn.Module):
  """A stack of blocks, then a LayerNorm.

  With `scan` the blocks are compiled once, as `encoderblock` with a leading
  depth axis; without it, they are `encoderblock_0`, ... The functions
  `weights.stack_blocks` and `unstack_blocks` convert between the two. `out` is
  the same for both.

  Attributes:
    depth: Number of blocks.
    block: Arguments of each `Block`, see `block_args`.
    stoch_depth: Drop rate of the last block, see `stochastic_depth.rates`.
    scan: Whether to scan over the blocks; it compiles faster.
    remat_policy: see `rematerialization.remat`.
  """
  depth: int
  block: Mapping[str, Any]
  stoch_depth: float = 0.0
  scan: bool = False
  remat_policy: str = "none"

  @nn.compact
  def __call__(self, x, train: bool, mask=None):
    """[b, n, d] -> float32[b, n, d], out; `mask` as in `Block`."""
    checks.check_choice(
        "stoch_depth_mode", self.block.get("stoch_depth_mode", "inverted"),
        stochastic_depth.MODES)
    rates = stochastic_depth.rates(self.stoch_depth, self.depth)
    block = rematerialization.remat(
        Block, self.remat_policy, in_scan=self.scan)
    out = {}
    if self.scan:
      x, outs = nn.scan(
          block, variable_axes={"params": 0, attention_lib.FEATURES: 0},
          split_rngs={"params": True, "dropout": True},
          in_axes=(0,) + (nn.broadcast,) * 2, length=self.depth)(
              **self.block, name="encoderblock")(
                  x, jnp.asarray(rates) if self.stoch_depth else None, train,
                  mask)
      for i in range(self.depth):
        out[f"block{i:02d}"] = jax.tree.map(lambda leaf, i=i: leaf[i], outs)
    else:
      for i, rate in enumerate(rates):
        x, out[f"block{i:02d}"] = block(
            **self.block, name=f"encoderblock_{i}")(x, rate or None, train,
                                                    mask)
    out["pre_ln"] = x
    # Float32 from here on: means over tokens and logits are sensitive.
    return nn.LayerNorm(name="encoder_norm", dtype=jnp.float32)(x), out
