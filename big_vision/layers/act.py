"""Adaptive Computation Time: each token decides how many steps it takes.

At step n, a halting unit gives a token the probability p_n. The token halts at
step

  N = min {n: p_1 + ... + p_n >= 1 - epsilon},

or at the last step. Its output is the mean of its states, weighted by
p_1, ..., p_{N-1} and the remainder R = 1 - (p_1 + ... + p_{N-1}), so that the
weights sum to 1. Its cost is N + R, of which only R has a gradient: -1 for each
of p_1, ..., p_{N-1}.

All of this is float32, whatever the dtype of the states: bfloat16 has no number
between .988 and .992, where 1 - epsilon lies.

Source: arXiv:1603.08983, Section 2, applied to each token as in
arXiv:1807.03819, Section 2.2. Published implementations of the latter blend
each new state into the output with weight w and keep 1 - w of what was there,
so that later states displace earlier ones and the weights do not sum to 1. They
also have no last step.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp


class Halting(NamedTuple):
  """Progress of tokens between two steps; all arrays share one shape, [b, n].

  Attributes:
    running: bool, whether the token takes part in the next step.
    total: float32 in [0, 1], the sum of its weights so far.
    remainder: float32 in [0, 1], R; 0 while the token is running.
    num_steps: int32, number of steps so far; N after the token has halted.
  """
  running: Any
  total: Any
  remainder: Any
  num_steps: Any


def start(running) -> Halting:
  """Returns the state before the first step.

  Args:
    running: bool[b, n], False for padding.
  """
  zeros = jnp.zeros(running.shape, jnp.float32)
  return Halting(running=running, total=zeros, remainder=zeros,
                 num_steps=zeros.astype(jnp.int32))


def advance(
    halting: Halting, p, is_last, *,
    epsilon: float = 0.01) -> tuple[Halting, Any]:
  """Advances the running tokens by a step; the others stay as they are.

  Args:
    halting: State before the step.
    p: float[b, n] in [0, 1], the probability to halt at this step.
    is_last: bool[], whether all tokens that still run halt at this step.
    epsilon: Margin below 1 at which a token halts, so that one step can
      suffice.

  Returns:
    halting: State after the step.
    weight: float32[b, n] in [0, 1], the weight of the token's state after this
      step: p, or R if the token halts now, or 0 if it was not running.
  """
  p = p.astype(jnp.float32)
  # ">=", so that p = 1 - epsilon suffices.
  halts = (halting.total + p >= 1 - epsilon) | is_last
  weight = jnp.where(halts, 1 - halting.total, p)
  weight = jnp.where(halting.running, weight, 0)
  halts &= halting.running
  return Halting(
      running=halting.running & ~halts, total=halting.total + weight,
      remainder=jnp.where(halts, weight, halting.remainder),
      num_steps=halting.num_steps + halting.running), weight


def ponder(halting: Halting):
  """Returns the cost of each token, N + R, float32; 0 for padding.

  N is a step function of the probabilities, so the gradient is that of R.
  """
  return halting.num_steps.astype(jnp.float32) + halting.remainder
