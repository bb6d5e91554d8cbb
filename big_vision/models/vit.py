"""Vision Transformer.

Source: arXiv:2010.11929, with the parameter names of google-research/big_vision
and its differences from the paper: the class token has no position embedding,
and the head can read the mean of the tokens, a probe that attends to them
(arXiv:2106.04560) or the class token.

Dimensions: b batch, h w rows and columns of patches, n tokens, d width,
k classes.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from big_vision import ranges
from big_vision.layers import activation_sharding
from big_vision.layers import checks
from big_vision.layers import pooling
from big_vision.layers import posemb as posemb_lib
from big_vision.layers import transformer
from big_vision.layers import variants
from big_vision.weights import vit as vit_weights

POSEMBS = ("learn", "sincos2d")
POOL_TYPES = ("gap", "map", "tok", "0", "none")

# name: (width, depth, mlp_dim, num_heads)
VARIANTS = {
    "mu": (32, 1, 128, 2),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "g-opt": (1536, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
    "G-opt": (1536, 48, 8192, 16),
    "e": (1792, 56, 15360, 16),
}


def decode_variant(variant: str | None) -> dict[str, Any]:
  """Returns the arguments for "B/16"; see `variants.decode_variant`."""
  return variants.decode_variant(
      variant, VARIANTS, ("width", "depth", "mlp_dim", "num_heads"),
      family="ViT")


class ViT(nn.Module):
  """Vision Transformer; make it with `Model`.

  Images are float32[b, height, width, channels], usually in [-1, 1].

  Attributes:
    num_classes: Number of classes, k; None has no head and returns features.
    patch_size: (height, width) of patches, in pixels.
    width: Width of the tokens, d.
    depth: Number of blocks.
    mlp_dim: Hidden width of the MLPs; None is 4 * width.
    num_heads: Number of heads of attention.
    posemb: "learn" (one vector per position of the grid) or "sincos2d" (fixed).
    rep_size: Width of a dense layer with tanh before the head; True is `width`,
      False has none.
    dropout: Dropout rate, after the position embedding, in MLPs and on both
      branches.
    stoch_depth: Drop rate of the last block, see `stochastic_depth.rates`;
      examples and branches are dropped independently.
    stoch_depth_mode: see `stochastic_depth.drop_branch`.
    pool_type: Input of the head: "gap" the mean of all tokens, "map" a probe
      that attends to them, "tok" a class token, "0" the first token, "none"
      each token.
    head_zeroinit: Whether the head's kernel starts at zero.
    scan: Whether to compile one block instead of `depth`: compiles faster.
    remat_policy: Activations to keep for the backward pass, see
      `rematerialization.remat`.
    dtype_mm: Dtype of activations. Parameters, LayerNorm statistics, softmax,
      pooling by mean, pre_logits and logits are float32 regardless.
    attention: Implementation, with options if needed ("local(window=16)"), see
      `attention.MultiHeadAttention`; "dense(return_weights=True)" adds the
      weights to `out`. A probe's attention is always dense.
    gelu: "tanh" (approximation, as published weights) or "erf" (exact).
  """
  num_classes: ranges.Count | None = None
  patch_size: ranges.Count | Sequence[ranges.Count] = (16, 16)
  width: ranges.Count = 768
  depth: ranges.Count = 12
  mlp_dim: ranges.Count | None = None
  num_heads: ranges.Count = 12
  posemb: str = "learn"
  rep_size: ranges.Count | bool = False
  dropout: ranges.Decay = 0.0
  stoch_depth: ranges.Decay = 0.0
  stoch_depth_mode: str = "inverted"
  pool_type: str = "gap"
  head_zeroinit: bool = True
  scan: bool = False
  remat_policy: str = "none"
  dtype_mm: str = "float32"
  attention: str = "dense"
  gelu: str = "tanh"

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Classifies images.

    Args:
      image: float32[b, height, width, channels].
      train: Whether dropout and stochastic depth act; they draw from the rng
        stream "dropout".

    Returns:
      logits: float32[b, k]; without a head the features, float32[b, d]; with
        pool_type "none" these per token, [b, n, ...].
      out: intermediates in order, in dtype_mm unless stated:
        stem [b, h, w, d], with_posemb [b, n, d],
        encoder/blockNN/{sa, +sa, mlp, +mlp} and encoder/pre_ln [b, n, d],
        encoder/blockNN/sa_weights float32[b, heads, n, n], the weights of
        attention, if it returns them,
        encoded float32[b, n, d] (n counts the class token from the blocks on),
        head_input float32[b, d],
        pre_logits_2d float32[b, h, w, d] and pre_logits float32[b, d] (of
        width rep_size, if that is set),
        logits_2d float32[b, h, w, k] and logits float32[b, k] with a head. The
        ones in 2d are the head applied to each patch.

    Raises:
      ValueError: An option is invalid, or the image is not a multiple of the
        patch.
    """
    checks.check_choice("posemb", self.posemb, POSEMBS)
    checks.check_choice("pool_type", self.pool_type, POOL_TYPES)
    dtype = checks.compute_dtype(self.dtype_mm)
    patch_size = checks.check_patches(image, self.patch_size)
    mlp_dim = self.mlp_dim or 4 * self.width
    out = {}

    x = out["stem"] = nn.Conv(
        self.width, patch_size, strides=patch_size, padding="VALID",
        dtype=dtype, name="embedding")(image)
    b, h, w, d = x.shape
    x = x.reshape(b, h * w, d)
    if self.posemb == "learn":
      posemb = posemb_lib.learned(self, h * w, d)
    else:
      posemb = posemb_lib.sincos2d(h, w, d)
    x = out["with_posemb"] = (x + posemb).astype(dtype)

    if self.pool_type == "tok":
      cls = self.param("cls", nn.initializers.zeros, (1, 1, d), jnp.float32)
      cls = jnp.tile(cls.astype(dtype), (b, 1, 1))
      x = jnp.concatenate([cls, x], axis=1)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = activation_sharding.constrain(x, "act_batch", "act_len", "act_emb")

    block = transformer.block_args(
        mlp_dim, self.num_heads, dropout=self.dropout, dtype=dtype,
        attention=self.attention, gelu=self.gelu)
    x, out["encoder"] = transformer.Encoder(
        depth=self.depth,
        block=dict(block, stoch_depth_mode=self.stoch_depth_mode),
        stoch_depth=self.stoch_depth, scan=self.scan,
        remat_policy=self.remat_policy, name="Transformer")(x, train)
    tokens = out["encoded"] = x

    if self.pool_type == "map":
      x = pooling.MAPHead(mlp_dim, self.num_heads, dtype, self.gelu)(tokens)
    elif self.pool_type == "gap":
      x = jnp.mean(tokens, axis=1)
    elif self.pool_type in ("tok", "0"):
      x = tokens[:, 0]
    x = out["head_input"] = x.astype(jnp.float32)
    if self.pool_type == "tok":
      tokens = tokens[:, 1:]
    x_2d = tokens.reshape(b, h, w, d)

    if self.rep_size:
      rep_size = d if self.rep_size is True else self.rep_size
      dense = nn.Dense(rep_size, name="pre_logits")
      x, x_2d = nn.tanh(dense(x)), nn.tanh(dense(x_2d))
    out["pre_logits_2d"], out["pre_logits"] = x_2d, x

    if self.num_classes:
      head_init = {"kernel_init": nn.initializers.zeros} if (
          self.head_zeroinit) else {}
      head = nn.Dense(self.num_classes, name="head", **head_init)
      x, x_2d = head(x), head(x_2d)
      out["logits_2d"], out["logits"] = x_2d, x
    return x, out


@variants.takes_fields_of(ViT)
def Model(num_classes: ranges.Count | None = None, *,
          variant: str | None = None, **kw) -> ViT:  # pylint: disable=invalid-name
  """Makes a ViT; `variant` ("B/16") gives the sizes that `kw` does not."""
  return ViT(num_classes, **{**decode_variant(variant), **kw})


load = vit_weights.load
