"""Universal Transformer: one block, repeated as often as each token needs.

It reads images or sequences of integers. Step t = 1, 2, ... computes

  x   = H^(t-1) + P^t             adds coordinates, of positions and of the step
  p^t = sigmoid(w x + b)          probability of halting, see `act`
  A   = LN(x + attention(x))
  H^t = LN(A + transition(A))     for the tokens that are running

and the output is the mean of H^1, H^2, ..., weighted as in `act`. A token that
has halted keeps its state, and the others still attend to it.

Training scans over all steps, because a loop of unknown length has no gradient;
evaluation stops when every token of the batch has halted. The results are the
same.

Source: arXiv:1807.03819. Differs in that norms may come first, as in the
authors' own later code, and in `act`.

Dimensions: b batch, h w rows and columns of patches, n tokens, d width,
k classes.
"""

from collections.abc import Sequence
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision import ranges
from big_vision import weights
from big_vision.layers import activation_sharding
from big_vision.layers import adaptive_steps
from big_vision.layers import attention as attention_lib
from big_vision.layers import checks
from big_vision.layers import pooling
from big_vision.layers import posemb as posemb_lib
from big_vision.layers import rematerialization
from big_vision.layers import transformer
from big_vision.layers import transition

POSEMBS = ("sincos", "sincos2d")
POOL_TYPES = ("gap", "none")


class UniversalTransformer(nn.Module):
  """Universal Transformer for images or for text; a config calls it `Model`.

  Attributes:
    num_classes: Number of classes, k; None has no head and returns features.
    vocab_size: Number of different tokens of text; None reads images.
    patch_size: (height, width) of patches, in pixels; for images only.
    width: Width of the tokens, d.
    mlp_dim: Hidden width of the transition; None is 4 * width.
    num_heads: Number of heads of attention.
    max_steps: Number of the last step; parameters do not depend on it.
    halting: "act"; or "none", where each token takes all steps and the output
      is the last state.
    epsilon: Margin below 1 of the sum of probabilities at which a token halts.
    transition: "dense" or "conv", see `Transition`.
    norm: "post", LayerNorm after each residual, as in the paper; or "pre",
      before each branch and once at the end.
    posemb: Coordinates of positions, "sincos" (one after the other) or
      "sincos2d" (rows and columns of images). Sines of the step are added to
      either; both are added again at every step.
    max_shift: Largest random shift of all positions of an example in training,
      so that a model learns distances rather than positions and may read longer
      texts (Section 3.3); "sincos" only.
    pool_type: Input of the head: "gap" the mean of the tokens, "none" each
      token.
    head_zeroinit: Whether the head's kernel starts at zero.
    dropout: Dropout rate, on the input of the first step and on both branches.
    eval_loop: "while" stops when all tokens of a batch have halted, but has no
      gradient; "scan" takes all steps, as training always does.
    remat_policy: Activations to keep for the backward pass, see
      `rematerialization.remat`.
    dtype_mm: Dtype of states. Parameters, LayerNorm statistics, softmax,
      everything about halting, output and logits are float32 regardless.
    attention: Implementation, see `attention.MultiHeadAttention`.
  """
  num_classes: ranges.Count | None = None
  vocab_size: ranges.Count | None = None
  patch_size: ranges.Count | Sequence[ranges.Count] = (16, 16)
  width: ranges.Count = 768
  mlp_dim: ranges.Count | None = None
  num_heads: ranges.Count = 12
  max_steps: ranges.Count = 12
  halting: str = "act"
  epsilon: ranges.Decay = 0.01
  transition: str = "dense"
  norm: str = "post"
  posemb: str = "sincos"
  max_shift: ranges.CountOrZero = 0
  pool_type: str = "gap"
  head_zeroinit: bool = True
  dropout: ranges.Decay = 0.0
  eval_loop: str = "while"
  remat_policy: str = "none"
  dtype_mm: str = "float32"
  attention: str = "dense"

  @nn.compact
  def __call__(self, image, mask=None, *, train: bool = False):
    """Classifies images or sequences, or each of their tokens.

    Args:
      image: float32[b, height, width, channels], usually in [-1, 1]; with
        `vocab_size` instead text, int[b, n] in [0, vocab_size).
      mask: bool or number[b, n], 0 for padding, which takes no steps and which
        no token sees and means leave out; None without padding.
      train: Whether all steps are taken, and dropout and shifts act; they draw
        from the rng stream "dropout".

    Returns:
      logits: float32[b, k], with pool_type "none" per token, [b, n, k] (at
        padding, those of zeros); without a head the features, [..., d].
      out: intermediates:
        stem [b, h, w, d] or [b, n, d] in dtype_mm;
        encoder/stepNN [b, n, d] in dtype_mm, states after each step from 01 on,
        and, if attention returns its weights, encoder/sa_weights
        float32[b, max_steps, heads, n, n], both from a scan only;
        encoder/weights float32[b, n, max_steps], weights of the states, which
        sum to 1; encoder/num_steps int32[b, n], N; encoder/ponder
        float32[b, n], N + R; encoder/num_executed int32[], number of steps that
        were computed; encoder/pre_ln float32[b, n, d] with norm "pre";
        encoded float32[b, n, d], 0 at padding; pre_logits float32[b, d] or
        [b, n, d]; with a head logits.
        With halting "act": losses/ponder_cost float32[], the mean of N + R over
        an example's tokens except padding, then over the batch;
        measurements/mean_steps, the same mean of N, and
        measurements/executed_steps, the number of steps that were computed. A
        scan computes max_steps steps, however small the mean; a loop computes
        executed_steps, and at best mean_steps, of them.

    Raises:
      ValueError: An option is unknown or invalid, or sizes do not fit.
    """
    self._check()
    dtype = checks.compute_dtype(self.dtype_mm)
    x = self._tokens(image, dtype)
    out = {"stem": x}
    grid = x.shape[1:-1]
    x = x.reshape(x.shape[0], -1, self.width)
    b, n, d = x.shape
    mask = checks.check_mask(mask, (b, n))
    if self.posemb == "sincos2d":
      posemb = posemb_lib.sincos2d(*grid, d)[0]
    else:
      place = jnp.arange(1, n + 1)
      if train and self.max_shift:
        place += jax.random.randint(
            self.make_rng("dropout"), (b, 1), 0, self.max_shift + 1)
      posemb = posemb_lib.sincos(place, d)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = activation_sharding.constrain(x, "act_batch", "act_len", "act_emb")

    x, out["encoder"] = adaptive_steps.Encoder(
        self._step_args(grid, dtype), norm=self.norm, max_steps=self.max_steps,
        eval_loop=self.eval_loop, remat_policy=self.remat_policy,
        name="Transformer")(x, posemb, train, mask)
    out["encoded"] = x
    if self.halting == "act":
      # Average over examples first, so that parts of a batch average to the
      # whole.
      mean = lambda name: pooling.mean_of_tokens(
          out["encoder"][name].astype(jnp.float32), mask).mean()
      out["losses"] = {"ponder_cost": mean("ponder")}
      out["measurements"] = {
          "mean_steps": mean("num_steps"),
          "executed_steps":
              out["encoder"]["num_executed"].astype(jnp.float32)}

    if self.pool_type == "gap":
      x = pooling.mean_of_tokens(x, mask)
    out["pre_logits"] = x
    if self.num_classes:
      head_init = {"kernel_init": nn.initializers.zeros} if (
          self.head_zeroinit) else {}
      x = out["logits"] = nn.Dense(
          self.num_classes, name="head", **head_init)(x)
    return x, out

  def _step_args(self, grid, dtype) -> dict[str, Any]:
    """Returns the arguments of `Step`."""
    block = dict(
        attention=functools.partial(
            attention_lib.MultiHeadAttention, self.num_heads,
            attention=self.attention, dtype=dtype),
        mlp=functools.partial(
            transition.Transition, self.mlp_dim or 4 * self.width, grid,
            self.transition, dtype),
        norm=self.norm, dropout=self.dropout, dtype=dtype,
        names=transformer.BlockNames(mlp="transition"))
    return dict(
        block=block, halting=self.halting, epsilon=self.epsilon, dtype=dtype)

  def _tokens(self, image, dtype):
    """Embeds images as [b, h, w, d], text as [b, n, d]."""
    if self.vocab_size is not None:
      checks.check_text(
          image, self.vocab_size, "For images, leave vocab_size out.")
      # As large as the coordinates that are added to it.
      return nn.Embed(
          self.vocab_size, self.width, dtype=dtype, name="embedding",
          embedding_init=nn.initializers.normal(stddev=1.0))(image)
    patch_size = checks.check_patches(
        image, self.patch_size, "For text, set vocab_size.")
    return nn.Conv(
        self.width, patch_size, strides=patch_size, padding="VALID",
        dtype=dtype, name="embedding")(image)

  def _check(self):
    """Raises ValueError for invalid options."""
    for what, options in (
        ("halting", adaptive_steps.HALTINGS), ("norm", transformer.NORMS),
        ("transition", transition.TRANSITIONS),
        ("posemb", POSEMBS), ("pool_type", POOL_TYPES),
        ("eval_loop", adaptive_steps.EVAL_LOOPS),
        ("remat_policy", rematerialization.REMAT_POLICIES)):
      checks.check_choice(what, getattr(self, what), options)
    if self.max_steps < 1:
      raise ValueError(f"max_steps must be at least 1, it is {self.max_steps}.")
    if not 0 < self.epsilon < 1:
      raise ValueError(f"epsilon must be in (0, 1), it is {self.epsilon}.")
    if self.max_shift < 0 or (self.max_shift and self.posemb != "sincos"):
      raise ValueError(
          f"max_shift={self.max_shift} must be at least 0, and 0 unless posemb "
          f"is 'sincos'; posemb is {self.posemb!r}.")
    if self.posemb == "sincos2d" and self.vocab_size is not None:
      raise ValueError("posemb='sincos2d' is for images; text has 'sincos'.")


Model = UniversalTransformer
load = weights.load  # There are no published weights.
