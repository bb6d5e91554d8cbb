"""A transformer that predicts codes in raster order, and draws them.

The sequence is a condition (the class, or a start token if there are none),
then the codes; at each place the transformer predicts the code that follows.

Source: arXiv:2012.09841, Section 3.2; GPT-2's pre-norm blocks, as minGPT and
CompVis/taming-transformers have them.

Dimensions: b batch, n places, d width, m heads, k codes.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision.layers import attention as attention_lib
from big_vision.layers import common

_INIT = nn.initializers.normal(0.02)
# Those that compute what codes are drawn with: an exact softmax.
ATTENTIONS = ("dense", "xla", "cudnn", "memory_efficient", "fused")


class Block(nn.Module):
  """Causal attention, then an MLP, each normalized before, with residuals."""
  num_heads: int
  mlp_dim: int
  dropout: float
  attention: str
  dtype: Any

  @nn.compact
  def __call__(self, x, train: bool, cache=None, place=None):
    """[b, n, d] -> [b, n, d], (keys, values).

    With a `cache` of keys and values [b, s, m, d / m], `x` is [b, 1, d], what
    stands at `place`; it sees what the cache has before, and itself.
    """
    b, n, d = x.shape
    shape = (b, n, self.num_heads, d // self.num_heads)
    y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_1")(x)
    q, k, v = (
        nn.Dense(d, kernel_init=_INIT, dtype=self.dtype, name=name)(y)
        .reshape(shape) for name in ("query", "key", "value"))
    q = common.constrain(q, "act_batch", None, "act_heads", None)
    if cache is None:
      y = attention_lib.attend(q, k, v, causal=True, impl=self.attention)
    else:
      k, v = (jax.lax.dynamic_update_slice_in_dim(old, new, place, axis=1)
              for old, new in zip(cache, (k, v)))
      seen = jnp.arange(k.shape[1]) <= place
      y = attention_lib.attend(q, k, v, mask=seen[None, None, None, :])
    y = nn.Dense(d, kernel_init=_INIT, dtype=self.dtype, name="out")(
        y.reshape(b, n, d))
    x = x + nn.Dropout(self.dropout)(y, deterministic=not train)

    y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln_2")(x)
    y = nn.Dense(self.mlp_dim, kernel_init=_INIT, dtype=self.dtype,
                 name="mlp_in")(y)
    y = common.constrain(y, "act_batch", None, "act_mlp")
    y = nn.Dense(d, kernel_init=_INIT, dtype=self.dtype, name="mlp_out")(
        nn.gelu(y, approximate=False))
    x = x + nn.Dropout(self.dropout)(y, deterministic=not train)
    return common.constrain(x, "act_batch", None, None), (k, v)


class Model(nn.Module):
  """GPT over codes.

  Attributes:
    num_codes: k.
    num_places: n, codes of the grid it is trained on.
    num_classes: what images are conditioned on; 0 for nothing.
    width: of the tokens.
    depth: number of blocks.
    num_heads: of attention.
    mlp_dim: hidden width of the MLPs; None is 4 * width.
    dropout: rate, after the embedding and on both branches.
    attention: in training, one of ATTENTIONS, see `attention.attend`. Drawing
      computes the same, a code at a time, with "dense".
    dtype_mm: dtype of activations; parameters and logits are float32.
  """
  num_codes: int
  num_places: int
  num_classes: int = 0
  width: int = 512
  depth: int = 8
  num_heads: int = 8
  mlp_dim: int | None = None
  dropout: float = 0.0
  attention: str = "dense"
  dtype_mm: str = "float32"

  def setup(self):
    if self.width % self.num_heads:
      raise ValueError(f"width {self.width} does not divide into num_heads "
                       f"{self.num_heads}.")
    common.check_choice("attention", self.attention, ATTENTIONS)
    dtype = common.compute_dtype(self.dtype_mm)
    self.codes = nn.Embed(self.num_codes, self.width, embedding_init=_INIT)
    self.condition = nn.Embed(
        max(1, self.num_classes), self.width, embedding_init=_INIT)
    self.pos_embedding = self.param(
        "pos_embedding", nn.initializers.zeros, (self.num_places, self.width),
        jnp.float32)
    self.drop = nn.Dropout(self.dropout)
    self.blocks = [
        Block(self.num_heads, self.mlp_dim or 4 * self.width, self.dropout,
              self.attention, dtype, name=f"block_{i}")
        for i in range(self.depth)]
    self.norm = nn.LayerNorm(epsilon=1e-5, name="ln_f")
    self.head = nn.Dense(self.num_codes, use_bias=False, kernel_init=_INIT)

  def __call__(self, codes, label=None, *, train: bool = False):
    """Predicts each code from those before it.

    Args:
      codes: int32[b, n] in raster order.
      label: int32[b]; without classes it is not looked at.
      train: whether dropout acts, rng stream "dropout".

    Returns:
      float32[b, n, k]; logits [:, i] are for codes[:, i] and see only
      codes[:, :i] and the label. The last code is not looked at.

    Raises:
      ValueError: another number of codes, or no label where there are classes.
    """
    if codes.ndim != 2 or codes.shape[1] != self.num_places:
      raise ValueError(
          f"Codes must be [b, {self.num_places}], they are "
          f"{list(codes.shape)}.")
    before = self.codes(codes[:, :-1])
    x = jnp.concatenate([self._start(label, len(codes))[:, None], before], 1)
    x = self.drop(x + self.pos_embedding, deterministic=not train)
    for block in self.blocks:
      x, _ = block(x.astype(block.dtype), train)
    return self.head(self.norm(x.astype(jnp.float32)))

  def _start(self, label, batch_size):
    if not self.num_classes:
      label = jnp.zeros(batch_size, jnp.int32)
    elif label is None:
      raise ValueError(
          f"The model has {self.num_classes} classes; it needs a label.")
    return self.condition(label)

  def next_logits(self, place, code, label, caches):
    """One step of drawing: the logits at `place`, from the code before it.

    Args:
      place: int32[], from 0.
      code: int32[b], the one at place - 1; at place 0 it is not looked at.
      label: int32[b] or None, see `__call__`.
      caches: of `empty_caches`, or of the step before.

    Returns:
      float32[b, k] and the next step's caches.
    """
    x = jnp.where(place > 0, self.codes(code), self._start(label, len(code)))
    x = (x + self.pos_embedding[place])[:, None]
    new_caches = []
    for block, cache in zip(self.blocks, caches):
      x, cache = block(x.astype(block.dtype), False, cache, place)
      new_caches.append(cache)
    return self.head(self.norm(x.astype(jnp.float32)))[:, 0], new_caches

  def empty_caches(self, batch_size: int):
    """(keys, values) of zeros for each block, [b, n, m, d / m]."""
    shape = (batch_size, self.num_places, self.num_heads,
             self.width // self.num_heads)
    zeros = jnp.zeros(shape, common.compute_dtype(self.dtype_mm))
    return [(zeros, zeros)] * self.depth


def draw(logits, rng, temperature: float = 1.0, top_k: int | None = None):
  """Draws codes.

  Args:
    logits: float32[b, k].
    rng: not used at temperature 0.
    temperature: divides the logits; 0 takes the most likely code.
    top_k: how many of the most likely codes are drawn from; None for all.

  Returns:
    int32[b].

  Raises:
    ValueError: a negative temperature, or top_k is not in 1..k.
  """
  k = logits.shape[-1]
  if temperature < 0 or top_k is not None and not 0 < top_k <= k:
    raise ValueError(
        f"Drawing wants temperature >= 0 and top_k in 1..{k}, not "
        f"temperature={temperature}, top_k={top_k}.")
  if temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  if top_k is not None:
    lowest = jax.lax.top_k(logits, top_k)[0][:, -1:]
    logits = jnp.where(logits < lowest, -jnp.inf, logits)
  return jax.random.categorical(rng, logits / temperature).astype(jnp.int32)


def sample(model: Model, params, rng, batch_size: int, label=None,
           temperature: float = 1.0, top_k: int | None = None):
  """Draws grids of codes one after the other, keys and values kept.

  Place i draws with `fold_in(rng, i)`.

  Args:
    model: unbound.
    params: its own.
    rng: of all draws.
    batch_size: b.
    label: int32[b] or None, see `Model`.
    temperature, top_k: see `draw`.

  Returns:
    int32[b, n].
  """
  def step(carry, place):
    code, caches = carry
    logits, caches = model.apply(
        {"params": params}, place, code, label, caches,
        method=Model.next_logits)
    code = draw(logits, jax.random.fold_in(rng, place), temperature, top_k)
    return (code, caches), code

  start = jnp.zeros(batch_size, jnp.int32), model.empty_caches(batch_size)
  _, codes = jax.lax.scan(step, start, jnp.arange(model.num_places))
  return codes.T


def sample_sliding(model: Model, params, rng, batch_size: int,
                   window: tuple[int, int], size: tuple[int, int], label=None,
                   temperature: float = 1.0, top_k: int | None = None):
  """Draws grids that are larger than those of training.

  Each code sees what of its past lies in a window of the trained size around
  it, which stops at the borders of the grid. Places count from the window's
  corner, so none is beyond what was trained. With `size` equal to `window`
  these are the draws of `sample`.

  Args:
    model, params, rng, batch_size, label, temperature, top_k: see `sample`.
    window: (rows, columns) of the trained grid.
    size: (rows, columns) to draw.

  Returns:
    int32[b, rows, columns].

  Raises:
    ValueError: the window is not the model's, or larger than the grid.

  Source: arXiv:2012.09841, Section 3.2, "Generating High-Resolution Images".
  """
  rows, columns = window
  if rows * columns != model.num_places or any(
      s < w for s, w in zip(size, window)):
    raise ValueError(
        f"A window of {model.num_places} codes that fits in the grid {size} is "
        f"wanted, not {window}.")

  def step(place, codes):
    i, j = place // size[1], place % size[1]
    top = jnp.clip(i - rows // 2, 0, size[0] - rows)
    left = jnp.clip(j - columns // 2, 0, size[1] - columns)
    seen = jax.lax.dynamic_slice(
        codes, (0, top, left), (batch_size, rows, columns))
    # What comes later is still zero, and is not looked at.
    logits = model.apply({"params": params}, seen.reshape(batch_size, -1),
                         label)
    logits = logits[:, (i - top) * columns + j - left]
    code = draw(logits, jax.random.fold_in(rng, place), temperature, top_k)
    return codes.at[:, i, j].set(code)

  return jax.lax.fori_loop(
      0, size[0] * size[1], step, jnp.zeros((batch_size, *size), jnp.int32))
