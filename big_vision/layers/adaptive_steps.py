"""One transformer block, repeated as often as each token needs.

`models/universal_transformer.py` says what a step computes, and `act` when a
token halts.

Dimensions: b batch, n tokens, d width.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision.layers import act
from big_vision.layers import attention as attention_lib
from big_vision.layers import posemb as posemb_lib
from big_vision.layers import rematerialization
from big_vision.layers import transformer

EVAL_LOOPS = ("while", "scan")
HALTINGS = ("act", "none")


class Carry(NamedTuple):
  """Values that one step hands to the next.

  Attributes:
    state: [b, n, d], H of the step before.
    output: float32[b, n, d], the weighted sum of states so far.
    halting: Act.Halting with arrays [b, n].
  """
  state: Any
  output: Any
  halting: act.Halting


class Step(nn.Module):
  """One step of all tokens: coordinates, halting, the transformer block.

  Attributes:
    block: Arguments of `transformer.Block`.
    max_steps: Number of the last step.
    halting: see `UniversalTransformer`.
    epsilon: see `UniversalTransformer`.
    dtype: Dtype of states.
  """
  block: Mapping[str, Any]
  max_steps: int
  halting: str = "act"
  epsilon: float = 0.01
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, carry: Carry, t, train: bool, posemb, mask=None):
    """Takes a step.

    Args:
      carry: Values after the step before.
      t: int32[], number of the step; the first is 1.
      train: Whether dropout acts.
      posemb: float32[n, d] or [b, n, d], added at every step.
      mask: bool[b, n], False for padding; None without padding.

    Returns:
      carry: values after the step.
      out: state [b, n, d] after the step and its weight, float32[b, n]; if
        attention returns its weights, sa_weights float32[b, heads, n, n].
    """
    running = carry.halting.running
    coordinates = posemb + posemb_lib.sincos(t, posemb.shape[-1])
    # Halted tokens need coordinates too: the others still attend to them.
    x = (carry.state + coordinates).astype(self.dtype)
    if self.halting == "act":
      # Starts at sigmoid(1) = .73 for every token: two steps, at any width.
      p = nn.sigmoid(nn.Dense(
          1, kernel_init=nn.initializers.zeros,
          bias_init=nn.initializers.ones, name="halting")(
              x.astype(jnp.float32))[..., 0])
    else:
      p = jnp.zeros(running.shape, jnp.float32)

    block = transformer.Block(**self.block)
    nn.share_scope(self, block)
    x, out_block = block(x, None, train, mask)

    state = jnp.where(running[..., None], x, carry.state)
    halting, weight = act.advance(
        carry.halting, p, t >= self.max_steps, epsilon=self.epsilon)
    output = carry.output + weight[..., None] * state.astype(jnp.float32)
    out = {"state": state, "weight": weight}
    if "sa_weights" in out_block:
      out["sa_weights"] = out_block["sa_weights"]
    return Carry(state=state, output=output, halting=halting), out


class Encoder(nn.Module):
  """Repeats the step: as a scan, or as a loop that stops early.

  Attributes:
    step: Arguments of `Step`.
    norm: "pre" or "post", see `UniversalTransformer`.
    max_steps: Number of the last step.
    eval_loop: see `UniversalTransformer`.
    remat_policy: see `rematerialization.remat`.
  """
  step: Mapping[str, Any]
  norm: str
  max_steps: int
  eval_loop: str = "while"
  remat_policy: str = "none"

  @nn.compact
  def __call__(self, x, posemb, train: bool, mask=None):
    """[b, n, d] -> float32[b, n, d] (0 for padding), out."""
    b, n, _ = x.shape
    real = jnp.ones((b, n), bool) if mask is None else mask
    carry = Carry(
        state=x, output=jnp.zeros(x.shape, jnp.float32),
        halting=act.start(real))
    # Initialize in the scan, because a while loop cannot create parameters.
    is_loop = not (
        train or self.eval_loop == "scan" or self.is_initializing())
    carry, out, num_executed = (self._loop if is_loop else self._scan)(
        carry, posemb, train, mask)
    x = carry.output
    if self.norm == "pre":
      out["pre_ln"] = x
      x = nn.LayerNorm(name="encoder_norm", dtype=jnp.float32)(x)
      x = jnp.where(real[..., None], x, 0)
    out["num_steps"] = carry.halting.num_steps
    out["ponder"] = act.ponder(carry.halting)
    out["num_executed"] = num_executed
    return x, out

  def _scan(self, carry, posemb, train, mask):
    step = rematerialization.remat(Step, self.remat_policy, in_scan=True)
    carry, outs = nn.scan(
        step, variable_broadcast=["params", attention_lib.FEATURES],
        split_rngs={"params": False, "dropout": True},
        in_axes=(0,) + (nn.broadcast,) * 3, length=self.max_steps)(
            **self.step, max_steps=self.max_steps, name="block")(
                carry, jnp.arange(1, self.max_steps + 1), train, posemb, mask)
    out = {f"step{t + 1:02d}": outs["state"][t] for t in range(self.max_steps)}
    out["weights"] = jnp.moveaxis(outs["weight"], 0, -1)
    if "sa_weights" in outs:
      out["sa_weights"] = jnp.moveaxis(outs["sa_weights"], 0, 1)
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
        Step(**self.step, max_steps=self.max_steps, name="block"),
        (jnp.zeros((), jnp.int32), carry,
         jnp.zeros((self.max_steps, b, n), jnp.float32)),
        broadcast_variables=True)
    return carry, {"weights": jnp.moveaxis(all_weights, 0, -1)}, num_executed
