"""Universal Transformer: one block, applied as often as each token asks for.

Images or sequences of integers. What a step does, with t from 1:

  x   = H^(t-1) + P^t             coordinates, of places and of the step
  p^t = sigmoid(w x + b)          of halting, see `act`
  A   = LN(x + attention(x))
  H^t = LN(A + transition(A))     for the tokens that are running

and the output is the mean of H^1, H^2, ... by the weights of `act`. A token
that has halted keeps its state, which the others still attend to.

Training scans over all steps, because a loop of unknown length has no gradient;
evaluation stops when every token of the batch has halted. Both compute the
same.

Source: arXiv:1807.03819. Differs in that norms may come first, as in the
authors' own later code, and in `act`.

Dimensions: b batch, h w rows and columns of patches, n tokens, d width,
k classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision import weights
from big_vision.layers import act
from big_vision.layers import attention as attention_lib
from big_vision.layers import common
from big_vision.models import vit

HALTINGS = ("act", "none")
NORMS = ("post", "pre")
TRANSITIONS = ("dense", "conv")
POSEMBS = ("sincos", "sincos2d")
POOL_TYPES = ("gap", "none")
EVAL_LOOPS = ("while", "scan")


def sincos(position, width: int):
  """Sines and cosines of a coordinate, of geometrically falling frequencies.

  Args:
    position: number[...].
    width: even; channel 2j is the sine and 2j + 1 the cosine of
      position / 10000^(2j / width).

  Returns:
    float32[..., width] in [-1, 1].

  Raises:
    ValueError: `width` is odd.

  Source: arXiv:1807.03819, Section 2.1, one of the two summands.
  """
  if width % 2:
    raise ValueError(f"Coordinates want an even width, it is {width}.")
  omega = 10_000. ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  angle = jnp.asarray(position, jnp.float32)[..., None] * omega
  both = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
  return both.reshape(*angle.shape[:-1], width)


class Transition(nn.Module):
  """What happens to each token after attention: two layers, a ReLU between.

  "dense" layers look at the token alone. "conv" layers are separable
  convolutions, 3 wide along each axis of the grid: of the text or, in images,
  of both rows and columns. What is no token is zero to them.

  Source: arXiv:1807.03819, Section 2.1, where the convolution is along one axis
  and its width is not given.
  """
  mlp_dim: int
  grid: Sequence[int]
  transition: str = "dense"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, mask=None):
    """[b, n, d] -> [b, n, d]; `mask` is bool[b, n] or None."""
    width = x.shape[-1]
    x = self._mix(self._dense(self.mlp_dim, 0), self._conv(width, 0), x, mask)
    x = common.constrain(x, "act_batch", "act_len", "act_mlp")
    x = nn.relu(x)
    return self._mix(
        self._dense(width, 1), self._conv(self.mlp_dim, 1), x, mask)

  def _dense(self, width, i):
    return nn.Dense(
        width, dtype=self.dtype, name=f"Dense_{i}",
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=nn.initializers.normal(stddev=1e-6))

  def _conv(self, width, i):
    """Each channel by itself; without a bias, as a dense layer follows."""
    if self.transition == "dense":
      return None
    return nn.Conv(
        width, (3,) * len(self.grid), feature_group_count=width,
        use_bias=False, dtype=self.dtype, name=f"Conv_{i}")

  def _mix(self, dense, conv, x, mask):
    """A layer."""
    if conv is not None:
      if mask is not None:
        # Every time anew: a bias makes something of what was zero.
        x = jnp.where(mask[..., None], x, 0)
      b, n, d = x.shape
      x = conv(x.reshape(b, *self.grid, d)).reshape(b, n, d)
    return dense(x)


class Carry(NamedTuple):
  """What goes from step to step.

  Attributes:
    state: [b, n, d], H of the step before.
    output: float32[b, n, d], the weighted sum of states up to here.
    halting: act.Halting of [b, n].
  """
  state: Any
  output: Any
  halting: act.Halting


class Block(nn.Module):
  """A step of all tokens."""
  mlp_dim: int
  num_heads: int
  grid: Sequence[int]
  max_steps: int
  halting: str = "act"
  epsilon: float = 0.01
  transition: str = "dense"
  norm: str = "post"
  dropout: float = 0.0
  dtype: Any = jnp.float32
  attention: str = "dense"

  @nn.compact
  def __call__(self, carry: Carry, t, train: bool, posemb, mask=None):
    """The step number `t`, int32[], the first is 1.

    Args:
      carry: after the step before.
      t: number of the step.
      train: whether dropout acts.
      posemb: float32[n, d] or [b, n, d], what is added at every step.
      mask: bool[b, n], False for padding; None if there is none.

    Returns:
      carry: after the step.
      out: state [b, n, d] after the step, weight float32[b, n] of it.
    """
    running = carry.halting.running
    coordinates = posemb + sincos(t, posemb.shape[-1])
    # Of those who have halted, too: they are looked at like the others.
    x = (carry.state + coordinates).astype(self.dtype)
    if self.halting == "act":
      # Starts at sigmoid(1) = .73 for every token: two steps, at any width.
      p = nn.sigmoid(nn.Dense(
          1, kernel_init=nn.initializers.zeros,
          bias_init=nn.initializers.ones, name="halting")(
              x.astype(jnp.float32))[..., 0])
    else:
      p = jnp.zeros(running.shape, jnp.float32)

    attention = attention_lib.MultiHeadAttention(
        self.num_heads, attention=self.attention, dtype=self.dtype,
        name="MultiHeadDotProductAttention_0")
    transition = Transition(self.mlp_dim, self.grid, self.transition,
                            self.dtype, name="transition")
    seen = None if mask is None else mask[:, None, None, :]
    x = self._add(x, lambda x: attention(x, mask=seen), train)
    x = self._add(x, lambda x: transition(x, mask), train)

    state = jnp.where(running[..., None], x, carry.state)
    halting, weight = act.advance(
        carry.halting, p, t >= self.max_steps, epsilon=self.epsilon)
    output = carry.output + weight[..., None] * state.astype(jnp.float32)
    return Carry(state, output, halting), {"state": state, "weight": weight}

  def _add(self, x, branch, train):
    """A branch beside the residual, and the norm before it or after both."""
    norm = nn.LayerNorm(dtype=self.dtype)
    y = branch(norm(x) if self.norm == "pre" else x)
    x = x + nn.Dropout(self.dropout)(y, deterministic=not train)
    x = x if self.norm == "pre" else norm(x)
    return common.constrain(x, "act_batch", "act_len", "act_emb")


class Encoder(nn.Module):
  """The block in depth: as a scan, or as a loop that stops early."""
  block: Mapping[str, Any]
  max_steps: int
  eval_loop: str = "while"
  remat_policy: str = "none"

  @nn.compact
  def __call__(self, x, posemb, train: bool, mask=None):
    """[b, n, d] -> float32[b, n, d] (0 for padding), out."""
    b, n, _ = x.shape
    real = jnp.ones((b, n), bool) if mask is None else mask
    carry = Carry(x, jnp.zeros(x.shape, jnp.float32), act.start(real))
    # Parameters are made in the scan: the loop may not add any.
    is_loop = not (
        train or self.eval_loop == "scan" or self.is_initializing())
    carry, out, num_executed = (self._loop if is_loop else self._scan)(
        carry, posemb, train, mask)
    x = carry.output
    if self.block["norm"] == "pre":
      out["pre_ln"] = x
      x = nn.LayerNorm(name="encoder_norm", dtype=jnp.float32)(x)
      x = jnp.where(real[..., None], x, 0)
    out["num_steps"] = carry.halting.num_steps
    out["ponder"] = act.ponder(carry.halting)
    out["num_executed"] = num_executed
    return x, out

  def _scan(self, carry, posemb, train, mask):
    block = common.remat(Block, self.remat_policy, in_scan=True)
    carry, outs = nn.scan(
        block, variable_broadcast=["params", attention_lib.FEATURES],
        split_rngs={"params": False, "dropout": True},
        in_axes=(0,) + (nn.broadcast,) * 3, length=self.max_steps)(
            **self.block, max_steps=self.max_steps, name="block")(
                carry, jnp.arange(1, self.max_steps + 1), train, posemb, mask)
    out = {f"step{t + 1:02d}": outs["state"][t] for t in range(self.max_steps)}
    out["weights"] = jnp.moveaxis(outs["weight"], 0, -1)
    return carry, out, jnp.asarray(self.max_steps, jnp.int32)

  def _loop(self, carry, posemb, train, mask):
    def is_anyone_running(_, loop):
      return jnp.any(loop[1].halting.running)

    def step(block, loop):
      num_steps, carry, all_weights = loop
      carry, out = block(carry, num_steps + 1, train, posemb, mask)
      all_weights = jax.lax.dynamic_update_index_in_dim(
          all_weights, out["weight"], num_steps, 0)
      return num_steps + 1, carry, all_weights

    b, n, _ = carry.state.shape
    num_executed, carry, all_weights = nn.while_loop(
        is_anyone_running, step,
        Block(**self.block, max_steps=self.max_steps, name="block"),
        (jnp.zeros((), jnp.int32), carry,
         jnp.zeros((self.max_steps, b, n), jnp.float32)),
        broadcast_variables=True)
    return carry, {"weights": jnp.moveaxis(all_weights, 0, -1)}, num_executed


class UniversalTransformer(nn.Module):
  """Universal Transformer for images or for text; a config calls it `Model`.

  Attributes:
    num_classes: of the head; None has no head and returns features.
    vocab_size: of text; None is for images.
    patch_size: (height, width) of patches, in pixels; of images only.
    width: of the tokens.
    mlp_dim: hidden width of the transition; None is 4 * width.
    num_heads: of attention.
    max_steps: the last step; parameters do not depend on it.
    halting: "act", or "none" where each token takes all steps and the last
      state is the output.
    epsilon: a token halts when its probabilities add up to 1 - epsilon.
    transition: "dense" or "conv", see `Transition`.
    norm: "post", LayerNorm after each residual, as in the paper; or "pre",
      before each branch and once at the end.
    posemb: of places, "sincos" (tokens one after the other) or "sincos2d"
      (images, rows and columns). Sines of the step are added to either, both
      anew at every step.
    max_shift: in training, places are counted from a random number up to this,
      another for every example, so that a model learns distances more than
      places and may read longer texts (Section 3.3); "sincos" only.
    pool_type: what the head sees: "gap" the mean of the tokens, "none" each.
    head_zeroinit: whether the head's kernel starts at zero.
    dropout: rate, of what enters the first step and on both branches.
    eval_loop: "while" stops when all tokens of a batch have halted, but has no
      gradient; "scan" takes all steps, as training always does.
    remat_policy: what to keep for the backward pass, see `common.remat`.
    dtype_mm: dtype of states. Parameters, LayerNorm statistics, softmax,
      everything about halting, output and logits are float32 regardless.
    attention: implementation, see `attention.MultiHeadAttention`.
  """
  num_classes: int | None = None
  vocab_size: int | None = None
  patch_size: int | Sequence[int] = (16, 16)
  width: int = 768
  mlp_dim: int | None = None
  num_heads: int = 12
  max_steps: int = 12
  halting: str = "act"
  epsilon: float = 0.01
  transition: str = "dense"
  norm: str = "post"
  posemb: str = "sincos"
  max_shift: int = 0
  pool_type: str = "gap"
  head_zeroinit: bool = True
  dropout: float = 0.0
  eval_loop: str = "while"
  remat_policy: str = "none"
  dtype_mm: str = "float32"
  attention: str = "dense"

  @nn.compact
  def __call__(self, image, mask=None, *, train: bool = False):
    """Classifies images or sequences, or each of their tokens.

    Args:
      image: float32[b, height, width, channels], by custom in [-1, 1]; with
        `vocab_size` instead text, int[b, n] in [0, vocab_size).
      mask: bool or number[b, n], 0 for padding, which no token sees, no mean
        counts and no step is taken for; None if there is none.
      train: whether all steps are taken, and dropout and shifts act; they draw
        from the rng stream "dropout".

    Returns:
      logits: float32[b, k], with pool_type "none" per token, [b, n, k] (of
        padding: those of zeros); without a head the features, [..., d].
      out: what is on the way:
        stem [b, h, w, d] or [b, n, d] in dtype_mm;
        encoder/stepNN [b, n, d] in dtype_mm, states after each step, the first
        is 01, of a scan only; encoder/weights float32[b, n, max_steps] of the
        states, which sum to 1; encoder/num_steps int32[b, n], N;
        encoder/ponder float32[b, n], N + R; encoder/num_executed int32[], steps
        that were computed; encoder/pre_ln float32[b, n, d] with norm "pre";
        encoded float32[b, n, d], 0 for padding; pre_logits float32[b, d] or
        [b, n, d]; with a head logits.
        With halting "act": losses/ponder_cost float32[], N + R, the mean over
        an example's tokens that are no padding, then over the batch;
        measurements/mean_steps, that of N, and measurements/executed_steps,
        what was computed. A scan computes all steps, however small the mean: of
        the work of max_steps, a loop does at best the share mean_steps /
        max_steps, and did executed_steps / max_steps.

    Raises:
      ValueError: sizes that do not fit, unknown options.
    """
    self._check()
    dtype = common.compute_dtype(self.dtype_mm)
    x = self._tokens(image, dtype)
    out = {"stem": x}
    grid = x.shape[1:-1]
    x = x.reshape(x.shape[0], -1, self.width)
    b, n, d = x.shape
    mask = common.check_mask(mask, (b, n))
    if self.posemb == "sincos2d":
      posemb = vit.posemb_sincos2d(*grid, d)[0]
    else:
      place = jnp.arange(1, n + 1)
      if train and self.max_shift:
        place += jax.random.randint(
            self.make_rng("dropout"), (b, 1), 0, self.max_shift + 1)
      posemb = sincos(place, d)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = common.constrain(x, "act_batch", "act_len", "act_emb")

    x, out["encoder"] = Encoder(
        dict(mlp_dim=self.mlp_dim or 4 * d, num_heads=self.num_heads,
             grid=grid, halting=self.halting, epsilon=self.epsilon,
             transition=self.transition, norm=self.norm, dropout=self.dropout,
             dtype=dtype, attention=self.attention),
        max_steps=self.max_steps, eval_loop=self.eval_loop,
        remat_policy=self.remat_policy, name="Transformer")(
            x, posemb, train, mask)
    out["encoded"] = x
    if self.halting == "act":
      # Per example first, so that parts of a batch average to the whole.
      mean = lambda name: common.mean_of_tokens(
          out["encoder"][name].astype(jnp.float32), mask).mean()
      out["losses"] = {"ponder_cost": mean("ponder")}
      out["measurements"] = {
          "mean_steps": mean("num_steps"),
          "executed_steps":
              out["encoder"]["num_executed"].astype(jnp.float32)}

    if self.pool_type == "gap":
      x = common.mean_of_tokens(x, mask)
    out["pre_logits"] = x
    if self.num_classes:
      head_init = {"kernel_init": nn.initializers.zeros} if (
          self.head_zeroinit) else {}
      x = out["logits"] = nn.Dense(
          self.num_classes, name="head", **head_init)(x)
    return x, out

  def _tokens(self, image, dtype):
    """[b, h, w, d] of images, [b, n, d] of text."""
    if self.vocab_size is not None:
      common.check_text(
          image, self.vocab_size, "For images, leave vocab_size out.")
      # As large as the coordinates, which it would drown in otherwise.
      return nn.Embed(
          self.vocab_size, self.width, dtype=dtype, name="embedding",
          embedding_init=nn.initializers.normal(stddev=1.0))(image)
    patch_size = common.check_patches(
        image, self.patch_size, "For text, set vocab_size.")
    return nn.Conv(
        self.width, patch_size, strides=patch_size, padding="VALID",
        dtype=dtype, name="embedding")(image)

  def _check(self):
    """Raises ValueError for options that cannot be."""
    for what, options in (
        ("halting", HALTINGS), ("norm", NORMS), ("transition", TRANSITIONS),
        ("posemb", POSEMBS), ("pool_type", POOL_TYPES),
        ("eval_loop", EVAL_LOOPS), ("remat_policy", common.REMAT_POLICIES)):
      common.check_choice(what, getattr(self, what), options)
    if self.max_steps < 1:
      raise ValueError(f"max_steps must be at least 1, it is {self.max_steps}.")
    if not 0 < self.epsilon < 1:
      raise ValueError(f"epsilon must be in (0, 1), it is {self.epsilon}.")
    if self.max_shift < 0 or (self.max_shift and self.posemb != "sincos"):
      raise ValueError(
          f"max_shift={self.max_shift} must be at least 0, and 0 unless posemb "
          f"is 'sincos'; it is {self.posemb!r}.")
    if self.posemb == "sincos2d" and self.vocab_size is not None:
      raise ValueError("posemb='sincos2d' is for images; text has 'sincos'.")


Model = UniversalTransformer
load = weights.load  # Nothing is published.
