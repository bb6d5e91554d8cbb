"""From vectors to codes and back: learnt codebooks, and a fixed grid.

A quantizer is a flax module. It maps float[b, h, w, d] to vectors that only
take `num_codes` values, and tells which:

  quantized, out = quantizer(z, train)

`quantized` is float32[b, h, w, d]; its gradient with respect to `z`, for `FSQ`
to the `z` it has bounded, is the identity (straight-through, arXiv:1308.3432).
`out["codes"]` is int32[b, h, w] and `out["losses"]` {name: float32[]}, means
over all numbers of `z`.
`quantizer.lookup(codes)` gives the vectors of codes.

Whatever dtype `z` has, distances are float32: in bfloat16, nearly all codes
that are found in a young codebook are wrong.

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
from big_vision.layers import checks

CODEBOOK = "codebook"  # The collection of `EMAQuantizer`.
_HIGHEST = jax.lax.Precision.HIGHEST  # On TPUs, float32 is bfloat16 otherwise.


def make(spec: str, **kw) -> nn.Module:
  """The quantizer that "vq(num_codes=1024, width=256)" stands for.

  Raises:
    ConfigError: an unknown name or argument; says which exist.
  """
  op, = op_string.parse(spec)
  checks.check_choice("quantizer", op.name, QUANTIZERS)
  if op.args:
    raise config_lib.ConfigError(
        f"Arguments of quantizers need names; {spec!r} has {op.args}.")
  return config_lib.call(QUANTIZERS[op.name], op.kwargs, f"quantizer {spec!r}",
                         **kw)


def nearest_codes(z, codebook):
  """The index of the nearest vector of a codebook.

  Args:
    z: float[..., d].
    codebook: float32[k, d].

  Returns:
    int32[...] in 0..k-1; the first of those equally near.

  Source: arXiv:2012.09841, Eq. 2. ||z||^2 is the same for all and left out.
  """
  z, codebook = z.astype(jnp.float32), codebook.astype(jnp.float32)
  distances = jnp.sum(codebook ** 2, axis=1) - 2 * jnp.einsum(
      "...d,kd->...k", z, codebook, precision=_HIGHEST)
  return jnp.argmin(distances, axis=-1).astype(jnp.int32)


def straight_through(z, quantized):
  """`quantized`, with the gradient of `z`.

  z + (quantized - z) is rounded, so it equals `quantized` to about 1e-6 and not
  to the bit.
  """
  return z + jax.lax.stop_gradient(quantized - z)


class VectorQuantizer(nn.Module):
  """A codebook that is a parameter and follows its gradient.

  The losses are
    codebook    mean (sg(z) - e)^2, moves the codes to the vectors;
    commitment  beta * mean (z - sg(e))^2, keeps the vectors at their codes.

  Attributes:
    num_codes: k.
    width: d.
    beta: see above.
    legacy: whether beta is on the other term, as in the first release of
      taming-transformers and the weights it published.

  Source: arXiv:1711.00937, Eq. 3; codes start in U(-1/k, 1/k).
  """
  num_codes: int
  width: int
  beta: float = 0.25
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
  """A codebook that is the running mean of the vectors that chose each code.

  It has no parameters; the collection CODEBOOK has
    usage  float32[k], the running share of vectors that chose a code
    total  float32[k, d], the running sum of these, divided by all vectors
  and code i is total[i] / usage[i]. Both are linear in the vectors, so means
  over devices and over parts of a batch are exact. They start near 0, so that
  the first vectors decide at once. `revive` is to be called after each update,
  once.

  The one loss is commitment, beta * mean (z - sg(e))^2.

  Attributes:
    num_codes: k.
    width: d.
    beta: see above.
    decay: Decay of the running means, per step.

  Source: arXiv:1711.00937, appendix A.1; shares in the place of counts.
  """
  num_codes: int
  width: int
  beta: float = 0.25
  decay: float = 0.99

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
  """Gives codes that nobody chooses half of a code that many choose.

  The least used code takes half of the usage of the most used one, the next
  half of the next one's, ..., as long as the one is used less than `threshold`
  times the mean and the other more than the mean. Both halves have the same
  vector, but for relative noise that tells them apart, with opposite signs:
  their mean is what it was. This depends on the statistics alone, so it is the
  same on any number of devices.

  Args:
    codebook: Collection of `EMAQuantizer`, usage float32[k] and total
      float32[k, d].
    rng: for the noise.
    threshold: in (0, 1), relative to the mean usage. Positive, for that of a
      code that is never chosen would fall to 0, and its vector be 0 / 0.
    noise: relative to the size of the vector.

  Returns:
    Such a codebook; its sums over codes are unchanged.
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

  No parameters, no losses, nothing to collapse. Vectors are in [-1, 1].

  Attributes:
    levels: how many values each channel takes; d of them, their product is k.

  Source: arXiv:2309.15505, appendix A.1.
  """
  levels: Sequence[int]

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
    # With an even number of levels, none is at 0: there are more below.
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
