"""Transformer encoder of text, or of any other sequence of integers.

Every token sees every other one, except for padding. The parameter names are
those of google-research/big_vision's model of the same name.

Dimensions: b batch, n tokens, d width, k classes.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from big_vision import ranges
from big_vision import weights
from big_vision.layers import activation_sharding
from big_vision.layers import checks
from big_vision.layers import pooling
from big_vision.layers import posemb as posemb_lib
from big_vision.layers import transformer

POSEMBS = ("learn", "sincos")
POOL_TYPES = ("gap", "none")


class TextTransformer(nn.Module):
  """Transformer encoder of text; a config calls it `Model`.

  Attributes:
    num_classes: Number of classes, k; None has no head and returns features.
    vocab_size: Number of different tokens.
    width: Width of the tokens, d.
    depth: Number of blocks.
    mlp_dim: Hidden width of the MLPs; None is 4 * width.
    num_heads: Number of heads of attention.
    posemb: "learn" (one vector per position, for sequences of one length) or
      "sincos" (fixed, for any length).
    pool_type: Input of the head: "gap" the mean of the tokens, "none" each
      token.
    head_zeroinit: Whether the head's kernel starts at zero.
    dropout: Dropout rate, after the position embedding, in MLPs and on both
      branches.
    scan: Whether to compile one block instead of `depth`: compiles faster.
    remat_policy: Activations to keep for the backward pass, see
      `rematerialization.remat`.
    dtype_mm: Dtype of activations. Parameters, LayerNorm statistics, softmax,
      pooling and logits are float32 regardless.
    attention: Implementation, see `attention.MultiHeadAttention`.
  """
  num_classes: ranges.Count | None = None
  vocab_size: ranges.Count = 32_000
  width: ranges.Count = 512
  depth: ranges.Count = 12
  mlp_dim: ranges.Count | None = None
  num_heads: ranges.Count = 8
  posemb: str = "learn"
  pool_type: str = "gap"
  head_zeroinit: bool = True
  dropout: ranges.Decay = 0.0
  scan: bool = False
  remat_policy: str = "none"
  dtype_mm: str = "float32"
  attention: str = "dense"

  @nn.compact
  def __call__(self, text, mask=None, *, train: bool = False):
    """Classifies sequences, or each of their tokens.

    Args:
      text: int[b, n] in [0, vocab_size).
      mask: bool or number[b, n], 0 for padding, which no token sees and means
        leave out; None without padding.
      train: Whether dropout acts; it draws from the rng stream "dropout".

    Returns:
      logits: float32[b, k], with pool_type "none" per token, [b, n, k]; without
        a head the features, [..., d].
      out: intermediates: embedded, with_posemb [b, n, d] in dtype_mm,
        encoder/... as in `vit.ViT`, encoded float32[b, n, d], pre_logits
        float32[b, d] or [b, n, d], and with a head logits. Values at padding
        are meaningless.

    Raises:
      ValueError: Text or mask have another type or shape, or an option is
        invalid.
    """
    checks.check_choice("posemb", self.posemb, POSEMBS)
    checks.check_choice("pool_type", self.pool_type, POOL_TYPES)
    checks.check_text(text, self.vocab_size)
    mask = checks.check_mask(mask, text.shape)
    dtype = checks.compute_dtype(self.dtype_mm)
    n, d = text.shape[1], self.width
    out = {}

    x = out["embedded"] = nn.Embed(
        self.vocab_size, d, dtype=dtype, name="Embed_0",
        embedding_init=nn.initializers.normal(stddev=1 / math.sqrt(d)))(text)
    if self.posemb == "learn":
      posemb = posemb_lib.learned(self, n, d)
    else:
      # Scaled down to the size of the token embeddings.
      posemb = posemb_lib.sincos(jnp.arange(1, n + 1), d) / math.sqrt(d)
    x = out["with_posemb"] = (x + posemb).astype(dtype)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = activation_sharding.constrain(x, "act_batch", "act_len", "act_emb")

    block = transformer.block_args(
        self.mlp_dim or 4 * d, self.num_heads, dropout=self.dropout,
        dtype=dtype, attention=self.attention)
    x, out["encoder"] = transformer.Encoder(
        depth=self.depth, block=block, scan=self.scan,
        remat_policy=self.remat_policy, name="Encoder_0")(x, train, mask)
    out["encoded"] = x

    if self.pool_type == "gap":
      x = pooling.mean_of_tokens(x, mask)
    out["pre_logits"] = x
    if self.num_classes:
      head_init = {"kernel_init": nn.initializers.zeros} if (
          self.head_zeroinit) else {}
      x = out["logits"] = nn.Dense(
          self.num_classes, name="head", **head_init)(x)
    return x, out


Model = TextTransformer
load = weights.load  # Published files hold two towers; name one as "FILE:txt".
