"""Exact attention as one TPU kernel: logits never leave the chip.

Between XLA's operations, logits and weights of every head are written to memory
and read back, forward and backward: of a ViT's step that is the largest part of
the traffic, which is what limits it. Here a program of the grid holds one
example, computes head after head, and writes the result alone; the backward
pass computes the weights again from queries and keys.

That needs all logits of a head at a time, so it is for the lengths of images
(up to MAX_LENGTH); attention "memory_efficient" goes further. Tokens stay
[b, n, m d] as projections make them: an axis of d = 64 at the end would be
padded to 128.

Dimensions: b batch, n tokens, m heads, d features of a head.
"""

import functools
import math

import flax.linen as nn
import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

# Logits of a head, float32, and what is computed from them must fit into a
# TPU's on-chip memory.
MAX_LENGTH = 1024
# Bytes of that memory: what a kernel gets unless it says otherwise, and the
# most it may ask for. The compilers for v5e, v5p and v6e grant that; v4's has
# 16 MiB, and says so where a model needs more.
_DEFAULT_VMEM, _MAX_VMEM = 16 * 2**20, 48 * 2**20

_dot = functools.partial(
    jax.lax.dot_general, preferred_element_type=jnp.float32)
# Which axes of two matrices are summed over: a b', a b, a' b.
_ABT = (((1,), (1,)), ((), ()))
_AB = (((1,), (0,)), ((), ()))
_ATB = (((0,), (0,)), ((), ()))


def fused(q, k, v, *, causal=False, scale=None):
  """Softmax attention; the kernel on TPUs, the same in einsums elsewhere.

  Over a mesh, each device works on its part of the batch ("act_batch") and of
  the heads ("act_heads"), as the run's sharding rules say.

  Args:
    q, k, v: [b, n, m, d], of as many heads and tokens each.
    causal: token i sees 0..i only.
    scale: None is 1 / sqrt(d).

  Returns:
    [b, n, m, d], dtype of `q`; logits and sums are float32.

  Raises:
    ValueError: keys of another length or number of heads, too many tokens,
      examples or heads that devices do not share equally, or more features in a
      device's heads than on-chip memory is for.
  """
  b, n, m, d = q.shape
  if k.shape != q.shape or n > MAX_LENGTH:
    raise ValueError(
        "Attention 'fused' wants as many keys and heads as queries have, and "
        f"at most {MAX_LENGTH} tokens; it got q {list(q.shape)}, k "
        f"{list(k.shape)}. 'dense' and 'memory_efficient' take any.")
  scale = d ** -0.5 if scale is None else scale

  def local(q, k, v):
    """What one device does with its examples and heads."""
    b, n, m, d = q.shape
    if (need := _vmem(7, n, m * d, q.dtype)) > _MAX_VMEM:
      raise ValueError(
          f"Attention 'fused' of {n} tokens of {m} x {d} features in {q.dtype} "
          f"needs {need / 2**20:.0f} MiB of on-chip memory; a kernel may use "
          f"{_MAX_VMEM // 2**20}. dtype_mm='bfloat16' needs half of it, heads "
          "that are split over devices less; 'dense' and 'memory_efficient' "
          "take any length and width.")
    flat = (x.reshape(b, n, m * d) for x in (q, k, v))
    return _attend(*flat, m, scale, causal).reshape(b, n, m, d)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return local(q, k, v)
  # The partitioner cannot look into a kernel, and would gather everything.
  spec = nn.logical_to_mesh_axes(("act_batch", None, "act_heads", None))
  for what, size, axes in (("examples", b, spec[0]), ("heads", m, spec[2])):
    axes = (axes,) if isinstance(axes, str) else axes or ()
    if size % (parts := math.prod(mesh.shape[axis] for axis in axes)):
      raise ValueError(
          f"Attention 'fused' gives each device as many {what}; {size} do not "
          f"divide by {parts}, the size of {list(axes)}. 'dense' and "
          "'memory_efficient' take any number.")
  return jax.shard_map(
      local, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(q, k, v)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attend(q, k, v, num_heads, scale, causal):
  """[b, n, m d] each -> [b, n, m d]."""
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
  """The same by XLA's operations."""
  b, n, c = q.shape
  q, k, v = (x.reshape(b, n, num_heads, c // num_heads) for x in (q, k, v))
  logits = scale * jnp.einsum(
      "bnmd,bsmd->bmns", q, k, preferred_element_type=jnp.float32)
  if causal:
    logits = jnp.where(jnp.tri(n, dtype=bool), logits, -jnp.inf)
  weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  return jnp.einsum("bmns,bsmd->bnmd", weights, v).reshape(b, n, c)


def run_forward(q, k, v, *, num_heads, scale, causal, interpret=False):
  """The forward kernel: [b, n, m d] each -> [b, n, m d]."""
  out, = _call(_forward_kernel, 1, (q, k, v), num_heads, scale, causal,
               interpret)
  return out


def run_backward(q, k, v, dout, *, num_heads, scale, causal, interpret=False):
  """The backward kernel: gradients of q, k and v from that of the result."""
  return tuple(_call(_backward_kernel, 3, (q, k, v, dout), num_heads, scale,
                     causal, interpret))


def _call(kernel, num_out, args, num_heads, scale, causal, interpret):
  """Runs a kernel for each example."""
  b, n, c = args[0].shape
  block = pl.BlockSpec((None, n, c), lambda i: (i, 0, 0))
  need = _vmem(len(args) + num_out, n, c, args[0].dtype)
  return pl.pallas_call(
      functools.partial(kernel, num_heads=num_heads, scale=scale,
                        causal=causal),
      grid=(b,), in_specs=[block] * len(args), out_specs=[block] * num_out,
      out_shape=[jax.ShapeDtypeStruct((b, n, c), args[0].dtype)] * num_out,
      # No cost_estimate: with one, XLA moves other operands into on-chip memory
      # earlier, and the step of a ViT-S/16 accesses 9 % more bytes.
      compiler_params=pltpu.CompilerParams(
          vmem_limit_bytes=max(need, _DEFAULT_VMEM)),
      interpret=interpret)(*args)


def _vmem(num_blocks: int, n: int, c: int, dtype) -> int:
  """Bytes of on-chip memory that a kernel needs, rather too many.

  Blocks [n, c] are there twice, the next example's being fetched; of a head,
  some arrays [n, n] of float32 are alive. Both are padded to tiles.
  """
  n, lanes = -(-n // 16) * 16, -(-n // 128) * 128
  blocks = 2 * num_blocks * n * -(-c // 128) * 128 * jnp.dtype(dtype).itemsize
  return blocks + 8 * n * lanes * 4


def _heads(ref, num_heads):
  """The columns of each head of a block [n, m d]."""
  d = ref.shape[1] // num_heads
  return [(slice(None), slice(i * d, (i + 1) * d)) for i in range(num_heads)]


def _exponentials(q, k, scale, causal):
  """float32[n, n], in [0, 1], and their sums, float32[n, 1]."""
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
    # Dividing the few results is less work than dividing all weights.
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
