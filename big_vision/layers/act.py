"""Adaptive Computation Time: each token decides how many steps it takes.

At step n a halting unit gives a token the probability p_n. It halts at

  N = min {n: p_1 + ... + p_n >= 1 - epsilon}, at the last step in any case.

Its output is the mean of its states, weighted by p_1, ..., p_{N-1} and the
remainder R = 1 - (p_1 + ... + p_{N-1}): the weights sum to 1. What it costs is
N + R, of which only R has a gradient: -1 for each of p_1, ..., p_{N-1}.

All of this is float32, whatever the states are: in bfloat16 there is no number
between .988 and .992, where 1 - epsilon is.

Source: arXiv:1603.08983, Section 2, applied to each token as in
arXiv:1807.03819, Section 2.2. Published implementations of the latter weight
each state by w and what was there by 1 - w instead, so that later states push
out earlier ones and the weights do not sum to 1; and they have no last step.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp


class Halting(NamedTuple):
  """Where tokens are between two steps; all arrays have one shape, say [b, n].

  Attributes:
    running: bool; whether the next step is for this token.
    total: float32 in [0, 1], the sum of the weights up to here.
    remainder: float32 in [0, 1], R; 0 while the token is running.
    num_steps: int32, steps so far; N as soon as the token has halted.
  """
  running: Any
  total: Any
  remainder: Any
  num_steps: Any


def start(running) -> Halting:
  """Before the first step; `running` is bool, False for padding."""
  zeros = jnp.zeros(running.shape, jnp.float32)
  return Halting(running, zeros, zeros, zeros.astype(jnp.int32))


def advance(
    halting: Halting, p, is_last, *,
    epsilon: float = 0.01) -> tuple[Halting, Any]:
  """One step of the tokens that are running; the others stay as they are.

  Args:
    halting: before the step.
    p: number in [0, 1], of the shape of what is in `halting`: the probability
      to halt at this step.
    is_last: bool[]; whether this step halts who is still running.
    epsilon: Margin below 1 at which a token halts, so that one step can do.

  Returns:
    halting: after the step.
    weight: float32 in [0, 1], of the state after this step: p, or R for those
      who halt now, or 0 for those who were not running.
  """
  p = p.astype(jnp.float32)
  # At least, not more than: a p of exactly 1 - epsilon is enough.
  halts = (halting.total + p >= 1 - epsilon) | is_last
  weight = jnp.where(halts, 1 - halting.total, p)
  weight = jnp.where(halting.running, weight, 0)
  halts &= halting.running
  return Halting(
      halting.running & ~halts, halting.total + weight,
      jnp.where(halts, weight, halting.remainder),
      halting.num_steps + halting.running), weight


def ponder(halting: Halting):
  """What each token costs: N + R, float32; 0 for padding.

  N is a step function of the probabilities, so the gradient is that of R.
  """
  return halting.num_steps.astype(jnp.float32) + halting.remainder
