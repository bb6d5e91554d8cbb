"""Exact attention as one TPU kernel: logits never leave the chip.

XLA writes logits and weights of every head to memory and reads them back, in
the forward and the backward pass. That is the largest part of the memory
traffic of a ViT's step, and the traffic limits its speed. This kernel handles
one example per grid program, computes one head after another and writes only
the result; its backward pass computes the weights again from queries and keys.

A program holds all logits of a head at once, which limits the length to that of
images (MAX_LENGTH); attention "memory_efficient" has no such limit. Tokens keep
the layout of the projections, [b, n, m d], because a last axis of d = 64 would
be padded to 128.

Dimensions: b batch, n tokens, m heads, d features of a head.
"""

import functools
import math

import flax.linen as nn
import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

# A head's float32 logits and the arrays computed from them must fit into the
# TPU's on-chip memory.
MAX_LENGTH = 1024
# Bytes of on-chip memory that a kernel gets by default, and the most that it
# may request. The compilers for v5e, v5p and v6e grant the latter; on v4, which
# has 16 MiB, the compiler reports models that need more.
_DEFAULT_VMEM, _MAX_VMEM = 16 * 2**20, 48 * 2**20

_dot = functools.partial(
    jax.lax.dot_general, preferred_element_type=jnp.float32)
# Contracted axes of the matrix products a b', a b and a' b.
_ABT = (((1,), (1,)), ((), ()))
_AB = (((1,), (0,)), ((), ()))
_ATB = (((0,), (0,)), ((), ()))


def fused(q, k, v, *, causal=False, scale=None):
  """Computes softmax attention, by the kernel on TPUs and by einsums elsewhere.

  On a mesh, each device works on its part of the batch ("act_batch") and of the
  heads ("act_heads"), as the run's sharding rules say.

  Args:
    q, k, v: [b, n, m, d], with equal numbers of heads and tokens.
    causal: Whether token i sees tokens 0..i only.
    scale: Factor of the logits; None is 1 / sqrt(d).

  Returns:
    [b, n, m, d], dtype of `q`; logits and sums are float32.

  Raises:
    ValueError: Keys have another length or number of heads than queries, there
      are too many tokens, examples or heads do not divide by the devices, or a
      device's heads have too many features for its on-chip memory.
  """
  b, n, m, d = q.shape
  if k.shape != q.shape or n > MAX_LENGTH:
    raise ValueError(
        "Attention 'fused' needs equal numbers of tokens and heads in queries "
        f"and keys, and at most {MAX_LENGTH} tokens; it got q {list(q.shape)}, "
        f"k {list(k.shape)}. 'dense' and 'memory_efficient' take any.")
  scale = d ** -0.5 if scale is None else scale

  def local(q, k, v):
    """Attends within the examples and heads of one device."""
    b, n, m, d = q.shape
    if (need := _vmem(7, n, m * d, q.dtype)) > _MAX_VMEM:
      raise ValueError(
          f"Attention 'fused' with {n} tokens and {m} heads of {d} features in "
          f"{q.dtype} needs {need / 2**20:.0f} MiB of on-chip memory; a kernel "
          f"may use {_MAX_VMEM // 2**20}. dtype_mm='bfloat16' halves it, and "
          "splitting heads over devices reduces it; 'dense' and "
          "'memory_efficient' take any length and width.")
    flat = (x.reshape(b, n, m * d) for x in (q, k, v))
    return _attend(*flat, m, scale, causal).reshape(b, n, m, d)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return local(q, k, v)
  # The partitioner does not see into kernels and would gather everything.
  spec = nn.logical_to_mesh_axes(("act_batch", None, "act_heads", None))
  for what, size, axes in (("examples", b, spec[0]), ("heads", m, spec[2])):
    axes = (axes,) if isinstance(axes, str) else axes or ()
    if size % (parts := math.prod(mesh.shape[axis] for axis in axes)):
      raise ValueError(
          f"Attention 'fused' needs equally many {what} on each device; {size} "
          f"do not divide by {parts}, the size of {list(axes)}. 'dense' and "
          "'memory_efficient' take any number.")
  return jax.shard_map(
      local, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(q, k, v)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attend(q, k, v, num_heads, scale, causal):
  """Attends on this platform: [b, n, m d] each -> [b, n, m d]."""
  args = dict(num_heads=num_heads, scale=scale, causal=causal)
  return jax.lax.platform_dependent(
      q, k, v,
      tpu=functools.partial(run_forward, **args),
      default=functools.partial(_reference, **args))


def _attend_fwd(q, k, v, num_heads, scale, causal):
  return _attend(q, k, v, num_heads, scale, causal), (q, k, v)


def _attend_bwd(num_heads, scale, causal, residuals, dout):
  args = dict(num_heads=num_heads, scale=scale, causal=causal)

  def default(q, k, v, dout):
    return jax.vjp(functools.partial(_reference, **args), q, k, v)[1](dout)

  return jax.lax.platform_dependent(
      *residuals, dout, tpu=functools.partial(run_backward, **args),
      default=default)


_attend.defvjp(_attend_fwd, _attend_bwd)


def _reference(q, k, v, *, num_heads, scale, causal):
  """Computes the same attention by XLA's operations."""
  b, n, c = q.shape
  q, k, v = (x.reshape(b, n, num_heads, c // num_heads) for x in (q, k, v))
  logits = scale * jnp.einsum(
      "bnmd,bsmd->bmns", q, k, preferred_element_type=jnp.float32)
  if causal:
    logits = jnp.where(jnp.tri(n, dtype=bool), logits, -jnp.inf)
  weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  return jnp.einsum("bmns,bsmd->bnmd", weights, v).reshape(b, n, c)


def run_forward(q, k, v, *, num_heads, scale, causal, interpret=False):
  """Runs the forward kernel: [b, n, m d] each -> [b, n, m d]."""
  out, = _call(_forward_kernel, 1, (q, k, v), num_heads, scale, causal,
               interpret)
  return out


def run_backward(q, k, v, dout, *, num_heads, scale, causal, interpret=False):
  """Runs the backward kernel: gradients of q, k and v from the result's."""
  return tuple(_call(_backward_kernel, 3, (q, k, v, dout), num_heads, scale,
                     causal, interpret))


def _call(kernel, num_out, args, num_heads, scale, causal, interpret):
  """Runs a kernel with one grid program for each example."""
  b, n, c = args[0].shape
  block = pl.BlockSpec((None, n, c), lambda i: (i, 0, 0))
  need = _vmem(len(args) + num_out, n, c, args[0].dtype)
  return pl.pallas_call(
      functools.partial(kernel, num_heads=num_heads, scale=scale,
                        causal=causal),
      grid=(b,), in_specs=[block] * len(args), out_specs=[block] * num_out,
      out_shape=[jax.ShapeDtypeStruct((b, n, c), args[0].dtype)] * num_out,
      # There is no cost_estimate: with one, XLA moves other operands into
      # on-chip memory earlier, and a ViT-S/16 step accesses 9 % more bytes.
      compiler_params=pltpu.CompilerParams(
          vmem_limit_bytes=max(need, _DEFAULT_VMEM)),
      interpret=interpret)(*args)


def _vmem(num_blocks: int, n: int, c: int, dtype) -> int:
  """Estimates the bytes of on-chip memory that a kernel needs, generously.

  Each block [n, c] exists twice, because the next example's is being fetched.
  Up to eight float32 arrays [n, n] of a head are alive. Both are padded to
  tiles.
  """
  n, lanes = -(-n // 16) * 16, -(-n // 128) * 128
  blocks = 2 * num_blocks * n * -(-c // 128) * 128 * jnp.dtype(dtype).itemsize
  return blocks + 8 * n * lanes * 4


def _heads(ref, num_heads):
  """Lists the columns of each head in a block [n, m d]."""
  d = ref.shape[1] // num_heads
  return [(slice(None), slice(i * d, (i + 1) * d)) for i in range(num_heads)]


def _exponentials(q, k, scale, causal):
  """Returns unnormalized weights float32[n, n] in [0, 1] and sums [n, 1]."""
  logits = _dot(q, k, _ABT) * scale
  if causal:
    rows, columns = (
        jax.lax.broadcasted_iota(jnp.int32, logits.shape, i) for i in (0, 1))
    logits = jnp.where(rows >= columns, logits, -jnp.inf)
  weights = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
  return weights, jnp.sum(weights, axis=1, keepdims=True)


def _forward_kernel(q, k, v, out, *, num_heads, scale, causal):
  for head in _heads(q, num_heads):
    weights, total = _exponentials(q[head], k[head], scale, causal)
    # Dividing the [n, d] results is less work than dividing [n, n] weights.
    result = _dot(weights.astype(v.dtype), v[head], _AB) / total
    out[head] = result.astype(out.dtype)


def _backward_kernel(q, k, v, dout, dq, dk, dv, *, num_heads, scale, causal):
  for head in _heads(q, num_heads):
    weights, total = _exponentials(q[head], k[head], scale, causal)
    weights = weights / total
    dv[head] = _dot(
        weights.astype(v.dtype), dout[head], _ATB).astype(dv.dtype)
    dweights = _dot(dout[head], v[head], _ABT)
    mean = jnp.sum(weights * dweights, axis=1, keepdims=True)
    dlogits = (weights * (dweights - mean) * scale).astype(q.dtype)
    dq[head] = _dot(dlogits, k[head], _AB).astype(dq.dtype)
    dk[head] = _dot(dlogits, q[head], _ATB).astype(dk.dtype)
