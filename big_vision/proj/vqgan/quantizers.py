"""Quantizers map vectors to codes and back, by learnt codebooks or a grid.

A quantizer is a flax module. It maps float[b, h, w, d] to one of `num_codes`
vectors and reports which one:

  quantized, out = quantizer(z, train)

`quantized` is float32[b, h, w, d]. Its gradient with respect to `z` (for `FSQ`,
with respect to the bounded `z`) is the identity: straight-through,
arXiv:1308.3432. `out["codes"]` is int32[b, h, w]; `out["losses"]` is
{name: float32[]}, means over all elements of `z`. `quantizer.lookup(codes)`
returns the vectors of codes.

Distances are float32, whatever the dtype of `z`: in bfloat16, nearly all codes
found in a young codebook would be wrong.

Dimensions: b batch, h w rows and columns of codes, d width, k codes.
"""

from collections.abc import Mapping, Sequence
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from big_vision import config as config_lib
from big_vision import op_string
from big_vision import ranges
from big_vision.layers import checks

CODEBOOK = "codebook"  # The collection of `EMAQuantizer`.
# Otherwise TPUs round the factors of float32 products to bfloat16.
_HIGHEST = jax.lax.Precision.HIGHEST


def make(spec: str, **kw) -> nn.Module:
  """Makes a quantizer from a string like "vq(num_codes=1024, width=256)".

  Raises:
    ConfigError: A name or argument is unknown; the error says which exist.
  """
  op, = op_string.parse(spec)
  checks.check_choice("quantizer", op.name, QUANTIZERS)
  if op.args:
    raise config_lib.ConfigError(
        f"Arguments of quantizers need names; {spec!r} has the positional "
        f"arguments {op.args}.")
  return config_lib.call(QUANTIZERS[op.name], op.kwargs, f"quantizer {spec!r}",
                         **kw)


def nearest_codes(z, codebook):
  """Finds the nearest vectors of a codebook.

  Args:
    z: float[..., d].
    codebook: float32[k, d].

  Returns:
    int32[...] in 0..k-1; the first index in a tie.

  Source: arXiv:2012.09841, Eq. 2, without ||z||^2, which is the same for all
  codes.
  """
  z, codebook = z.astype(jnp.float32), codebook.astype(jnp.float32)
  distances = jnp.sum(codebook ** 2, axis=1) - 2 * jnp.einsum(
      "...d,kd->...k", z, codebook, precision=_HIGHEST)
  return jnp.argmin(distances, axis=-1).astype(jnp.int32)


def straight_through(z, quantized):
  """Returns `quantized` with the gradient of `z`.

  z + (quantized - z) is rounded: it equals `quantized` to about 1e-6, not
  bit by bit.
  """
  return z + jax.lax.stop_gradient(quantized - z)


class VectorQuantizer(nn.Module):
  """A codebook that is a parameter and follows its gradient.

  The losses are
    codebook    mean (sg(z) - e)^2, which moves codes to their vectors;
    commitment  beta * mean (z - sg(e))^2, which keeps vectors near their codes.

  Attributes:
    num_codes: Number of codes, k.
    width: Width of the vectors, d.
    beta: Weight of the commitment loss.
    legacy: Whether beta weighs the codebook loss instead, as in the first
      release of taming-transformers and the weights it published.

  Source: arXiv:1711.00937, Eq. 3. Codes start uniform in (-1/k, 1/k).
  """
  num_codes: ranges.Count
  width: ranges.Count
  beta: ranges.NotNegative = 0.25
  legacy: bool = False

  def setup(self):
    def init(rng, shape):
      return jax.random.uniform(rng, shape, jnp.float32, -1, 1) / shape[0]
    self.embedding = self.param(
        "embedding", init, (self.num_codes, self.width))

  def __call__(self, z, train: bool = False):
    del train
    z = z.astype(jnp.float32)
    codes = nearest_codes(z, self.embedding)
    e = self.lookup(codes)
    stop = jax.lax.stop_gradient
    codebook_weight, commitment_weight = (
        (self.beta, 1.0) if self.legacy else (1.0, self.beta))
    losses = {
        "codebook": codebook_weight * jnp.mean((stop(z) - e) ** 2),
        "commitment": commitment_weight * jnp.mean((z - stop(e)) ** 2)}
    return straight_through(z, e), {"codes": codes, "losses": losses}

  def lookup(self, codes):
    """int[...] -> float32[..., d]."""
    return self.embedding[codes]


class EMAQuantizer(nn.Module):
  """A codebook of running means of the vectors that chose each code.

  It has no parameters. The collection CODEBOOK holds
    usage  float32[k], the running share of vectors that chose each code;
    total  float32[k, d], the running sum of those vectors, divided by the
           number of all vectors;
  and code i is total[i] / usage[i]. Both are linear in the vectors, so that
  means over devices and over parts of a batch are exact. They start near 0, so
  that the first vectors set the codes at once. Call `revive` once after each
  update.

  The only loss is commitment, beta * mean (z - sg(e))^2.

  Attributes:
    num_codes: Number of codes, k.
    width: Width of the vectors, d.
    beta: Weight of the commitment loss.
    decay: Decay of the running means, per step.

  Source: arXiv:1711.00937, appendix A.1, with shares in place of counts.
  """
  num_codes: ranges.Count
  width: ranges.Count
  beta: ranges.NotNegative = 0.25
  decay: ranges.Decay = 0.99

  def setup(self):
    k, d = self.num_codes, self.width
    start = 1e-3 / k
    self.usage = self.variable(
        CODEBOOK, "usage", lambda: jnp.full((k,), start, jnp.float32))
    self.total = self.variable(
        CODEBOOK, "total", lambda: start * jax.random.normal(
            self.make_rng("params"), (k, d), jnp.float32))

  def __call__(self, z, train: bool = False):
    z = z.astype(jnp.float32)
    codes = nearest_codes(z, self._embedding())
    e = self.lookup(codes)
    stop = jax.lax.stop_gradient
    losses = {"commitment": self.beta * jnp.mean((z - stop(e)) ** 2)}
    if train and not self.is_initializing():
      chosen = jax.nn.one_hot(codes, self.num_codes).reshape(
          -1, self.num_codes) / codes.size
      vectors = stop(z).reshape(-1, self.width)
      for variable, new in (
          (self.usage, chosen.sum(axis=0)),
          (self.total, jnp.einsum(
              "nk,nd->kd", chosen, vectors, precision=_HIGHEST))):
        variable.value = self.decay * variable.value + (1 - self.decay) * new
    return straight_through(z, e), {"codes": codes, "losses": losses}

  def _embedding(self):
    return self.total.value / self.usage.value[:, None]

  def lookup(self, codes):
    """int[...] -> float32[..., d]."""
    return self._embedding()[codes]


def revive(codebook: Mapping, rng, *, threshold: float = 0.03,
           noise: float = 1e-3):
  """Splits the most used codes in two, to replace codes that are hardly used.

  The least used code takes half the usage of the most used one, the second
  least used that of the second most used, and so on, as long as the former is
  used less than `threshold` times the mean and the latter more than the mean.
  Both halves get the same vector plus noise of opposite signs, so that their
  mean stays. The result depends on the statistics alone and is the same on any
  number of devices.

  Args:
    codebook: Collection of `EMAQuantizer`, usage float32[k] and total
      float32[k, d].
    rng: Key of the noise.
    threshold: Usage below which a code is replaced, relative to the mean usage;
      in (0, 1). It must be positive: the usage of a code that is never chosen
      would fall to 0, and its vector become 0 / 0.
    noise: Noise, relative to the size of the vector.

  Returns:
    The new codebook, with the same sums over codes.
  """
  usage, total = codebook["usage"], codebook["total"]
  mean = jnp.mean(usage)
  pairs = len(usage) // 2
  order = jnp.argsort(usage)
  dead, donors = order[:pairs], order[::-1][:pairs]
  split = (usage[dead] < threshold * mean) & (usage[donors] > mean)
  shared = (usage[dead] + usage[donors]) / 2
  vectors = (total[dead] + total[donors]) / 2
  apart = noise * vectors * jax.random.normal(rng, vectors.shape)
  def put(x, low, high):
    mask = split.reshape(-1, *(1,) * (x.ndim - 1))
    x = x.at[dead].set(jnp.where(mask, low, x[dead]))
    return x.at[donors].set(jnp.where(mask, high, x[donors]))
  return {"usage": put(usage, shared, shared),
          "total": put(total, vectors + apart, vectors - apart)}


class FSQ(nn.Module):
  """Finite scalar quantization: each channel is rounded to a few levels.

  It has no parameters, no losses and no codebook that could collapse. Vectors
  are in [-1, 1].

  Attributes:
    levels: Number of values for each of the d channels; k is their product.

  Source: arXiv:2309.15505, appendix A.1.
  """
  levels: Sequence[ranges.Count]

  @property
  def num_codes(self) -> int:
    return math.prod(self.levels)

  @property
  def width(self) -> int:
    return len(self.levels)

  def __call__(self, z, train: bool = False):
    del train
    if min(self.levels) < 2:
      raise ValueError(f"FSQ needs levels of 2 or more, not {self.levels}.")
    levels = np.asarray(self.levels)
    # An even number of levels has one more below 0 than above it.
    half = (levels - 1) * (1 + 1e-3) / 2
    offset = np.where(levels % 2, 0.0, 0.5)
    shift = np.arctanh(offset / half).astype(np.float32)
    bounded = (jnp.tanh(z.astype(jnp.float32) + shift)
               * half.astype(np.float32) - offset.astype(np.float32))
    rounded = straight_through(bounded, jnp.round(bounded))
    places = jax.lax.stop_gradient(jnp.round(bounded)).astype(
        jnp.int32) + levels // 2
    codes = jnp.sum(places * self._basis(), axis=-1).astype(jnp.int32)
    return rounded / (levels // 2), {"codes": codes, "losses": {}}

  def _basis(self):
    return np.cumprod([1, *self.levels[:-1]])

  def lookup(self, codes):
    """int[...] -> float32[..., d]."""
    levels = np.asarray(self.levels)
    places = codes[..., None] // self._basis() % levels
    return ((places - levels // 2) / (levels // 2)).astype(jnp.float32)


QUANTIZERS = {"vq": VectorQuantizer, "ema": EMAQuantizer, "fsq": FSQ}
