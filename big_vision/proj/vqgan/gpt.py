"""A transformer that predicts codes in raster order, and samples them.

The sequence is a condition (the class, or a start token without classes), then
the codes; at each position the transformer predicts the code that follows.

Source: arXiv:2012.09841, Section 3.2; GPT-2's pre-norm blocks, as in minGPT and
CompVis/taming-transformers.

Dimensions: b batch, n positions, d width, m heads, k codes.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision import ranges
from big_vision.layers import activation_sharding
from big_vision.layers import attention as attention_lib
from big_vision.layers import checks
from big_vision.layers import transformer

_INIT = nn.initializers.normal(0.02)
# Exact softmax attention, because sampling with "dense" must agree with
# training.
ATTENTIONS = ("dense", "xla", "cudnn", "memory_efficient", "fused")
# The names of minGPT.
_NAMES = transformer.BlockNames(
    norms=("ln_1", "ln_2"), attention=None, mlp=None)


class Mlp(nn.Module):
  """GPT-2's MLP, with its initialization and names, and exact GELU."""
  mlp_dim: int
  dtype: Any

  @nn.compact
  def __call__(self, x, train: bool = False, mask=None):
    """[b, n, d] -> [b, n, d]; `train` and `mask` make no difference."""
    del train, mask
    dense = functools.partial(nn.Dense, kernel_init=_INIT, dtype=self.dtype)
    y = dense(self.mlp_dim, name="mlp_in")(x)
    y = activation_sharding.constrain(y, "act_batch", "act_len", "act_mlp")
    return dense(x.shape[-1], name="mlp_out")(nn.gelu(y, approximate=False))


class Model(nn.Module):
  """GPT over codes.

  Attributes:
    num_codes: Number of different codes, k.
    num_places: Number of codes in the grid that it is trained on, n.
    num_classes: Number of classes of images; 0 for unconditional models.
    width: Width of the tokens, d.
    depth: Number of blocks.
    num_heads: Number of heads of attention.
    mlp_dim: Hidden width of the MLPs; None is 4 * width.
    dropout: Dropout rate, after the embedding and on both branches.
    attention: Implementation in training, one of ATTENTIONS, see
      `attention.attend`. Sampling computes the same, a code at a time, with
      "dense".
    dtype_mm: Dtype of activations; parameters and logits are float32.
  """
  num_codes: int
  num_places: int
  num_classes: ranges.CountOrZero = 0
  width: ranges.Count = 512
  depth: ranges.Count = 8
  num_heads: ranges.Count = 8
  mlp_dim: ranges.Count | None = None
  dropout: ranges.Decay = 0.0
  attention: str = "dense"
  dtype_mm: str = "float32"

  def setup(self):
    if self.width % self.num_heads:
      raise ValueError(f"width {self.width} does not divide into num_heads "
                       f"{self.num_heads}.")
    checks.check_choice("attention", self.attention, ATTENTIONS)
    dtype = checks.compute_dtype(self.dtype_mm)
    self.codes = nn.Embed(self.num_codes, self.width, embedding_init=_INIT)
    self.condition = nn.Embed(
        max(1, self.num_classes), self.width, embedding_init=_INIT)
    self.pos_embedding = self.param(
        "pos_embedding", nn.initializers.zeros, (self.num_places, self.width),
        jnp.float32)
    self.drop = nn.Dropout(self.dropout)
    self.blocks = [
        transformer.Block(
            attention=functools.partial(
                attention_lib.MultiHeadAttention, self.num_heads,
                attention=self.attention, dtype=dtype, kernel_init=_INIT),
            mlp=functools.partial(
                Mlp, self.mlp_dim or 4 * self.width, dtype),
            epsilon=1e-5, causal=True, dropout=self.dropout, dtype=dtype,
            names=_NAMES, name=f"block_{i}")
        for i in range(self.depth)]
    self.norm = nn.LayerNorm(epsilon=1e-5, name="ln_f")
    self.head = nn.Dense(self.num_codes, use_bias=False, kernel_init=_INIT)

  def __call__(self, codes, label=None, *, train: bool = False):
    """Predicts each code from the codes before it.

    Args:
      codes: int32[b, n] in raster order.
      label: int32[b]; ignored by unconditional models. The logits for a label
        that is not one of the classes are NaN, which stops a run.
      train: Whether dropout acts; it draws from the rng stream "dropout".

    Returns:
      float32[b, n, k]; logits [:, i] are for codes[:, i] and depend only on
      codes[:, :i] and the label. The last code is not used.

    Raises:
      ValueError: The number of codes is not `num_places`, or a conditional
        model gets no label.
    """
    if codes.ndim != 2 or codes.shape[1] != self.num_places:
      raise ValueError(
          f"Codes must be [b, {self.num_places}], they are "
          f"{list(codes.shape)}.")
    earlier = self.codes(codes[:, :-1])
    x = jnp.concatenate([self._start(label, len(codes))[:, None], earlier], 1)
    x = self.drop(x + self.pos_embedding, deterministic=not train)
    for block in self.blocks:
      x, _ = block(x.astype(block.dtype), None, train)
    return self.head(self.norm(x.astype(jnp.float32)))

  def _start(self, label, batch_size):
    """Embeds the condition, float32[b, d]."""
    if not self.num_classes:
      label = jnp.zeros(batch_size, jnp.int32)
    elif label is None:
      raise ValueError(
          f"The model has {self.num_classes} classes; it needs a label.")
    if not self.num_classes:
      return self.condition(label)
    is_class = (0 <= label) & (label < self.num_classes)
    return jnp.where(is_class[:, None], self.condition(label), jnp.nan)

  def next_logits(self, place, code, label, caches):
    """Computes the logits at one position, for sampling code by code.

    Args:
      place: int32[], the position, from 0.
      code: int32[b], the code at place - 1; ignored at place 0.
      label: int32[b] or None, see `__call__`.
      caches: Keys and values of earlier positions, from `empty_caches` or the
        step before.

    Returns:
      logits: float32[b, k].
      caches: keys and values for the next step.
    """
    x = jnp.where(place > 0, self.codes(code), self._start(label, len(code)))
    x = (x + self.pos_embedding[place])[:, None]
    new_caches = []
    for block, cache in zip(self.blocks, caches):
      x, out = block(
          x.astype(block.dtype), None, False, cache=cache, place=place)
      new_caches.append(out["cache"])
    return self.head(self.norm(x.astype(jnp.float32)))[:, 0], new_caches

  def empty_caches(self, batch_size: int):
    """Makes (keys, values) of zeros for each block, [b, n, m, d / m]."""
    shape = (batch_size, self.num_places, self.num_heads,
             self.width // self.num_heads)
    zeros = jnp.zeros(shape, checks.compute_dtype(self.dtype_mm))
    return [(zeros, zeros)] * self.depth


def draw(logits, rng, temperature: float = 1.0, top_k: int | None = None):
  """Samples one code of each example.

  Args:
    logits: float32[b, k].
    rng: jax key; unused at temperature 0.
    temperature: Divisor of the logits; 0 takes the most likely code.
    top_k: Number of the most likely codes to sample from, the lower code of
      equally likely ones; None for all.

  Returns:
    int32[b]; -1 where logits are not finite.

  Raises:
    ValueError: The temperature is negative, or top_k is not in 1..k.
  """
  k = logits.shape[-1]
  if not temperature >= 0 or top_k is not None and not 0 < top_k <= k:
    raise ValueError(
        f"Sampling needs temperature >= 0 and top_k in 1..{k}; they are "
        f"temperature={temperature}, top_k={top_k}.")
  is_finite = jnp.all(jnp.isfinite(logits), axis=-1)
  if temperature == 0:
    code = jnp.argmax(logits, axis=-1)
  else:
    if top_k is not None:
      rows = jnp.arange(len(logits))[:, None]
      is_kept = jnp.zeros(logits.shape, bool).at[
          rows, jax.lax.top_k(logits, top_k)[1]].set(True)
      logits = jnp.where(is_kept, logits, -jnp.inf)
    code = jax.random.categorical(rng, logits / temperature)
  return jnp.where(is_finite, code, -1).astype(jnp.int32)


def sample(model: Model, params, rng, batch_size: int, label=None,
           temperature: float = 1.0, top_k: int | None = None):
  """Samples grids code by code, keeping keys and values.

  Args:
    model: Unbound model.
    params: Parameters of `model`.
    rng: jax key; position i uses `fold_in(rng, i)`.
    batch_size: Number of grids, b.
    label: int32[b] or None, see `Model`.
    temperature: see `draw`.
    top_k: see `draw`.

  Returns:
    int32[b, n]; -1 where logits are not finite.
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
  """Samples grids that are larger than those of training.

  Each code sees the part of its past that lies in a window of the trained size
  around it; windows stop at the borders of the grid. Positions count from the
  window's corner, so all of them were trained. With `size` equal to `window`
  the result is that of `sample`.

  Args:
    model: see `sample`, like all arguments but the next two.
    params, rng, batch_size, label, temperature, top_k: see `sample`.
    window: (rows, columns) of the trained grid.
    size: (rows, columns) to draw.

  Returns:
    int32[b, rows, columns]; -1 where logits are not finite.

  Raises:
    ValueError: The window does not have as many codes as the model was trained
      on, or is larger than the grid.

  Source: arXiv:2012.09841, Section 3.2, "Generating High-Resolution Images".
  """
  rows, columns = window
  if rows * columns != model.num_places or any(
      s < w for s, w in zip(size, window)):
    raise ValueError(
        f"The window must have {model.num_places} codes and fit in the grid "
        f"{size}; it is {window}.")

  def step(place, codes):
    i, j = place // size[1], place % size[1]
    top = jnp.clip(i - rows // 2, 0, size[0] - rows)
    left = jnp.clip(j - columns // 2, 0, size[1] - columns)
    seen = jax.lax.dynamic_slice(
        codes, (0, top, left), (batch_size, rows, columns))
    # Later codes are still zero; the logits used here do not see them.
    logits = model.apply({"params": params}, seen.reshape(batch_size, -1),
                         label)
    logits = logits[:, (i - top) * columns + j - left]
    code = draw(logits, jax.random.fold_in(rng, place), temperature, top_k)
    return codes.at[:, i, j].set(code)

  return jax.lax.fori_loop(
      0, size[0] * size[1], step, jnp.zeros((batch_size, *size), jnp.int32))
