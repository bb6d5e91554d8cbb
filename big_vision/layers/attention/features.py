"""Random features whose products estimate exp(x . y), and other features.

Dimensions: d features of a head, r rows of a projection.
"""

import jax
import jax.numpy as jnp

# Positive features never vanish together, so that weights sum to more than 0.
_FLOOR = 1e-6
_RELU_FLOOR = 1e-3


def draw_projection(rng, shape: tuple[int, ...]):
  """Draws rows from N(0, I) that are orthogonal within blocks of d rows.

  The directions of a block are uniform over rotations and reflections (Haar);
  the lengths of rows are those of independent Gaussian vectors. The last block
  is cut to the number of rows.

  Args:
    rng: Key.
    shape: (..., r, d); leading axes hold independent draws.

  Returns:
    float32[..., r, d].

  Source: arXiv:2009.14794, Section 2.4; Haar: arXiv:math-ph/0609050. The
  released code of the former keeps the signs that a QR decomposition prefers,
  which biases its estimates along the axes.
  """
  *leading, r, d = shape
  rng_directions, rng_lengths = jax.random.split(rng)
  q, upper = jnp.linalg.qr(
      jax.random.normal(rng_directions, (*leading, -(-r // d), d, d)))
  diagonal = jnp.diagonal(upper, axis1=-2, axis2=-1)
  q *= jnp.where(diagonal < 0, -1., 1.)[..., None, :]
  rows = q.mT.reshape(*leading, -1, d)[..., :r, :]
  lengths = jnp.linalg.norm(
      jax.random.normal(rng_lengths, shape), axis=-1, keepdims=True)
  return lengths * rows


def positive_features(x, projection):
  """Computes non-negative features whose products estimate exp(x . y).

  phi(x) = exp(w . x - |x|^2 / 2) / sqrt(r), for every row w.

  Args:
    x: float[..., d].
    projection: float[r, d], rows distributed as N(0, I).

  Returns:
    phi: float32[..., r], multiplied by exp(-offset).
    offset: float32[...], such that the largest element of `phi` is about
      1 / sqrt(r). Each position has its own, so that positions do not depend on
      each other.

  Source: arXiv:2009.14794, Lemma 1. The released code has one offset, a maximum
  over all keys, which leaks later keys to earlier positions.
  """
  x = x.astype(jnp.float32)
  exponent = (jnp.einsum("...d,rd->...r", x, projection)
              - jnp.sum(x ** 2, axis=-1, keepdims=True) / 2)
  offset = jnp.max(exponent, axis=-1)
  phi = jnp.exp(exponent - offset[..., None]) + _FLOOR
  return phi / jnp.sqrt(len(projection)), offset


def trigonometric_features(x, projection):
  """Computes features of either sign whose products estimate exp(x . y).

  phi(x) = exp(|x|^2 / 2) [cos(w . x), sin(w . x)] / sqrt(r), for every row w.
  For short vectors their variance is below that of positive features; for long
  ones it is so large that sums may be zero or negative.

  Arguments and results are those of `positive_features`, but phi is
  float32[..., 2 r].

  Source: arXiv:2009.14794, Eq. 6, after random Fourier features.
  """
  x = x.astype(jnp.float32)
  angle = jnp.einsum("...d,rd->...r", x, projection)
  phi = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
  return phi / jnp.sqrt(len(projection)), jnp.sum(x ** 2, axis=-1) / 2


def relu_features(x, projection=None):
  """Computes generalized features, which do not estimate a softmax.

  phi(x) = max(w . x / sqrt(r), 0) + 0.001, for every row w.

  Arguments and results are those of `positive_features`, and the offset is 0.
  Without a projection, phi(x) = max(x, 0) + 0.001, as in the Performers of Long
  Range Arena.

  Source: arXiv:2009.14794, Section 2.2; arXiv:2011.04006.
  """
  x = x.astype(jnp.float32)
  if projection is not None:
    x = jnp.einsum("...d,rd->...r", x, projection) / jnp.sqrt(len(projection))
  return jax.nn.relu(x) + _RELU_FLOOR, jnp.zeros(x.shape[:-1])


def elu_features(x):
  """Returns elu(x) + 1, and the offset 0. Source: arXiv:2006.16236, Eq. 7."""
  x = x.astype(jnp.float32)
  return jax.nn.elu(x) + 1, jnp.zeros(x.shape[:-1])
