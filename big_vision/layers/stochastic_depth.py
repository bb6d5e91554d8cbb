"""Stochastic depth: training drops residual branches, example by example.

Source: arXiv:1603.09382.
"""

import jax
import jax.numpy as jnp

from big_vision.layers import checks

MODES = ("inverted", "bigvision")


def rates(stoch_depth: float, depth: int) -> list[float]:
  """Returns each block's drop rate: 0 at the first, then linearly increasing.

  Args:
    stoch_depth: Rate of the last block, in [0, 1).
    depth: Number of blocks.

  Raises:
    ValueError: `stoch_depth` is not in [0, 1).

  Source: arXiv:1603.09382, Section 3, where the first of L blocks has 1/L of
  the last one's rate; here it has 0, as published ViTs and Mixers do.
  """
  if not 0 <= stoch_depth < 1:
    raise ValueError(f"stoch_depth must be in [0, 1), it is {stoch_depth}.")
  return [stoch_depth * i / max(depth - 1, 1) for i in range(depth)]


def drop_branch(x, rate, rng, *, mode: str, train: bool):
  """Drops a residual branch of some examples.

  Args:
    x: [b, ...], output of the branch, about to be added to the residual.
    rate: Probability of dropping, in [0, 1); may be traced.
    rng: jax key; unused unless training.
    mode: One of MODES. "inverted" scales the branches that are kept by
      1 / (1 - rate), so that training and evaluation have the same expectation.
      "bigvision" does not scale; published Mixers were trained with it.
    train: Whether to drop; evaluation keeps every branch.

  Returns:
    [b, ...], dtype of `x`.
  """
  checks.check_choice("stoch_depth_mode", mode, MODES)
  if not train:
    return x
  keep = 1 - rate
  kept = jax.random.bernoulli(rng, keep, (len(x),) + (1,) * (x.ndim - 1))
  if mode == "inverted":
    x = (x / keep).astype(x.dtype)
  return jnp.where(kept, x, jnp.zeros_like(x))
