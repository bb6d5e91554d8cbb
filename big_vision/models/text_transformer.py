"""Transformer encoder of text: of any sequence of integers.

Every token sees every other that is no padding. The parameters are named as in
google-research/big_vision's model of that name.

Dimensions: b batch, n tokens, d width, k classes.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from big_vision import weights
from big_vision.layers import common
from big_vision.models import universal_transformer
from big_vision.models import vit

POSEMBS = ("learn", "sincos")
POOL_TYPES = ("gap", "none")


class TextTransformer(nn.Module):
  """Transformer encoder of text; a config calls it `Model`.

  Attributes:
    num_classes: of the head; None has no head and returns features.
    vocab_size: tokens are in [0, vocab_size).
    width: of the tokens.
    depth: number of blocks.
    mlp_dim: hidden width of the MLPs; None is 4 * width.
    num_heads: of attention.
    posemb: "learn" (one vector per place, for sequences of one length) or
      "sincos" (fixed, for any length).
    pool_type: what the head sees: "gap" the mean of the tokens, "none" each.
    head_zeroinit: whether the head's kernel starts at zero.
    dropout: rate, after the position embedding, in MLPs and on both branches.
    scan: one compiled block instead of `depth`: compiles faster.
    remat_policy: what to keep for the backward pass, see `common.remat`.
    dtype_mm: dtype of activations. Parameters, LayerNorm statistics, softmax,
      pooling and logits are float32 regardless.
    attention: implementation, see `attention.MultiHeadAttention`.
  """
  num_classes: int | None = None
  vocab_size: int = 32_000
  width: int = 512
  depth: int = 12
  mlp_dim: int | None = None
  num_heads: int = 8
  posemb: str = "learn"
  pool_type: str = "gap"
  head_zeroinit: bool = True
  dropout: float = 0.0
  scan: bool = False
  remat_policy: str = "none"
  dtype_mm: str = "float32"
  attention: str = "dense"

  @nn.compact
  def __call__(self, text, mask=None, *, train: bool = False):
    """Classifies sequences, or each of their tokens.

    Args:
      text: int[b, n] in [0, vocab_size).
      mask: bool or number[b, n], 0 for padding, which no token sees and no mean
        counts; None if there is none.
      train: whether dropout acts; it draws from the rng stream "dropout".

    Returns:
      logits: float32[b, k], with pool_type "none" per token, [b, n, k]; without
        a head the features, [..., d].
      out: what is on the way: embedded, with_posemb [b, n, d] in dtype_mm,
        encoder/... as in `vit.ViT`, encoded float32[b, n, d], pre_logits
        float32[b, d] or [b, n, d], and with a head logits. What is there of
        padding means nothing.

    Raises:
      ValueError: text or a mask of another type or shape, unknown options.
    """
    common.check_choice("posemb", self.posemb, POSEMBS)
    common.check_choice("pool_type", self.pool_type, POOL_TYPES)
    common.check_text(text, self.vocab_size)
    mask = common.check_mask(mask, text.shape)
    dtype = common.compute_dtype(self.dtype_mm)
    n, d = text.shape[1], self.width
    out = {}

    x = out["embedded"] = nn.Embed(
        self.vocab_size, d, dtype=dtype, name="Embed_0",
        embedding_init=nn.initializers.normal(stddev=1 / math.sqrt(d)))(text)
    if self.posemb == "learn":
      posemb = self.param(
          "pos_embedding", nn.initializers.normal(stddev=1 / math.sqrt(d)),
          (1, n, d), jnp.float32)
    else:
      # As large as the embeddings, which would drown in it otherwise.
      posemb = universal_transformer.sincos(
          jnp.arange(1, n + 1), d) / math.sqrt(d)
    x = out["with_posemb"] = (x + posemb).astype(dtype)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = common.constrain(x, "act_batch", "act_len", "act_emb")

    x, out["encoder"] = vit.Encoder(
        depth=self.depth, mlp_dim=self.mlp_dim or 4 * d,
        num_heads=self.num_heads, dropout=self.dropout, scan=self.scan,
        remat_policy=self.remat_policy, dtype=dtype, attention=self.attention,
        name="Encoder_0")(x, train, mask)
    out["encoded"] = x

    if self.pool_type == "gap":
      x = common.mean_of_tokens(x, mask)
    out["pre_logits"] = x
    if self.num_classes:
      head_init = {"kernel_init": nn.initializers.zeros} if (
          self.head_zeroinit) else {}
      x = out["logits"] = nn.Dense(
          self.num_classes, name="head", **head_init)(x)
    return x, out


Model = TextTransformer
load = weights.load  # Published ones are of two towers at once.
