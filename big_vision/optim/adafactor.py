"""Optimizers that optax lacks in this form: Adafactor, half-precision momentum.

Like optax's `scale_by_*`, they apply neither a learning rate nor its sign.
"""

import jax.numpy as jnp
import optax

from big_vision import ranges


def scale_by_adafactor(
    min_dim_size_to_factor: ranges.Count = 32,
    decay_rate: ranges.Positive = 0.8, decay_offset: ranges.CountOrZero = 0,
    beta2_cap: ranges.Decay = 0.999,
    clipping_threshold: ranges.NotNegative | None = None,
    momentum: ranges.Decay | None = 0.9,
    dtype_momentum: str = "bfloat16", eps: ranges.NotNegative = 1e-30
) -> optax.GradientTransformation:
  """Scales by Adafactor without parameter scaling and with a capped beta2.

  The second moment of matrices is factored into rows and columns; its decay is
  min(beta2_cap, 1 - (t + 1) ** -decay_rate).

  Args:
    min_dim_size_to_factor: Size that two axes must have for a parameter's
      second moment to be factored.
    decay_rate: Exponent of the second moment's decay, see above.
    decay_offset: Step at which the decay starts, for fine-tuning.
    beta2_cap: Upper limit of the second moment's decay, in [0, 1).
    clipping_threshold: Largest root mean square of a parameter's update; 0 or
      None does not clip.
    momentum: Decay of the updates' running mean, in [0, 1); None keeps none.
    dtype_momentum: Name of the dtype of that mean.
    eps: Number added to squared gradients.

  Source: arXiv:2106.04560, section 3.4, after arXiv:1804.04235.
  """
  def beta2(step, rate):
    return jnp.minimum(
        beta2_cap, 1.0 - (jnp.asarray(step, jnp.float32) + 1.0) ** -rate)
  chain = [optax.scale_by_factored_rms(
      factored=True, decay_rate=decay_rate, step_offset=decay_offset,
      min_dim_size_to_factor=min_dim_size_to_factor, epsilon=eps,
      decay_rate_fn=beta2)]
  if clipping_threshold:
    chain.append(optax.clip_by_block_rms(clipping_threshold))
  if momentum:
    chain.append(optax.ema(momentum, debias=False,
                           accumulator_dtype=dtype_momentum))
  return optax.chain(*chain)


def momentum_hp(
    momentum: ranges.Decay = 0.9, dtype: str = "bfloat16",
    nesterov: bool = False
) -> optax.GradientTransformation:
  """Accumulates heavy-ball momentum, by default in half precision.

  Args:
    momentum: Decay of the accumulated gradients, in [0, 1).
    dtype: Name of the dtype of the accumulated gradients.
    nesterov: Whether to look one step ahead.
  """
  return optax.trace(decay=momentum, accumulator_dtype=dtype, nesterov=nesterov)
