"""The kernel, interpreted on the CPU, against loops of NumPy in float64."""

import functools

from big_vision import sharding
from big_vision.layers import attention
from big_vision.layers.attention import fused
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import pytest

# The kernel sums in another order than NumPy, in float32.
TOLERANCE = dict(rtol=2e-5, atol=2e-5)


def _inputs(b=2, n=5, m=3, d=4, dtype=np.float32, count=3, seed=0):
  generator = np.random.default_rng(seed)
  return [generator.normal(size=(b, n, m, d)).astype(dtype)
          for _ in range(count)]


def _loops(q, k, v, scale, causal):
  """One query after the other, and the gradient's ingredients."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros_like(q)
  b, n, m, _ = q.shape
  for i in range(b):
    for head in range(m):
      for query in range(n):
        seen = range(query + 1 if causal else n)
        logits = np.array([scale * q[i, query, head] @ k[i, key, head]
                           for key in seen])
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()
        for weight, key in zip(weights, seen):
          out[i, query, head] += weight * v[i, key, head]
  return out


def _flat(*arrays):
  return [jnp.asarray(x).reshape(*x.shape[:2], -1) for x in arrays]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (1, 1, 1, 8), (3, 9, 2, 8)])
def test_forward_is_softmax_attention(shape, causal):
  q, k, v = _inputs(*shape)
  out = fused.run_forward(
      *_flat(q, k, v), num_heads=shape[2], scale=0.4, causal=causal,
      interpret=True)
  np.testing.assert_allclose(
      out.reshape(q.shape), _loops(q, k, v, 0.4, causal), **TOLERANCE)


@pytest.mark.parametrize("causal", [False, True])
def test_backward_against_differences(causal):
  """Central differences of the loops, in float64."""
  q, k, v, dout = _inputs(b=1, n=4, m=2, d=3, count=4)
  grads = fused.run_backward(
      *_flat(q, k, v, dout), num_heads=2, scale=0.7, causal=causal,
      interpret=True)

  def value(*args):
    return np.sum(_loops(*args, 0.7, causal) * dout)
  for which, grad in enumerate(grads):
    grad = np.asarray(grad).reshape(q.shape)
    for place in np.ndindex(q.shape):
      moved = []
      for sign in (1, -1):
        args = [np.asarray(x, np.float64) for x in (q, k, v)]
        args[which][place] += sign * 1e-5
        moved.append(value(*args))
      expected = (moved[0] - moved[1]) / 2e-5
      assert np.isclose(grad[place], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_elsewhere_it_is_the_dense_one_with_its_gradient(causal):
  q, k, v, dout = _inputs(n=7, count=4)

  def value(q, k, v, impl):
    return jnp.vdot(attention.attend(q, k, v, impl=impl, causal=causal), dout)
  results = [jax.value_and_grad(
      functools.partial(value, impl=impl), argnums=(0, 1, 2))(q, k, v)
             for impl in ("fused", "dense")]
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), *results)


def test_only_inputs_are_kept_for_the_backward_pass():
  q, k, v = _inputs(b=1, n=64, m=2, d=4)
  _, vjp = jax.vjp(lambda *x: attention.attend(*x, impl="fused"), q, k, v)
  kept = sum(leaf.size for leaf in jax.tree.leaves(vjp))
  assert kept <= 3 * q.size  # And not the 64 x 64 weights of 2 heads.


def test_in_bfloat16_weights_are_rounded_and_nothing_else():
  """Logits are near 80, where bfloat16 has steps of 0.5."""
  q, k, v, dout = (jnp.asarray(x, jnp.bfloat16) for x in _inputs(n=33, count=4))
  q, k = q.at[..., 0].set(16), k.at[..., 0].set(10)
  args = dict(num_heads=3, scale=0.5, causal=False)
  out = fused.run_forward(*_flat(q, k, v), interpret=True, **args)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(
      np.asarray(out, np.float32).reshape(q.shape),
      _loops(q, k, v, 0.5, False), atol=2 ** -7)
  grads = fused.run_backward(
      *_flat(q, k, v, dout), interpret=True, **args)
  wide = [x.astype(jnp.float32) for x in (q, k, v)]
  wanted = jax.grad(lambda *x: jnp.vdot(
      attention.attend(*x, impl="dense", scale=0.5), dout), (0, 1, 2))(*wide)
  for grad, exact in zip(grads, wanted):
    assert grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(grad, np.float32).reshape(q.shape), exact,
        atol=2 ** -6 * np.abs(exact).max())


@pytest.mark.parametrize("b, m, message", [
    (3, 4, "many examples on each device; 3 do not divide by 2, .*data"),
    (2, 6, "many heads on each device; 6 do not divide by 4, .*model")])
def test_what_devices_cannot_share_is_refused(b, m, message):
  mesh = jax.make_mesh((2, 4), ("data", "model"),
                       axis_types=(AxisType.Auto,) * 2)
  q, k, v = _inputs(b=b, m=m)
  with sharding.use(mesh, [("act_batch", "data"), ("act_heads", "model")]):
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(fused.fused, q, k, v)


@pytest.mark.parametrize("rules", [
    [("act_batch", "data")],
    [("act_batch", "data"), ("act_heads", "model")],
    [("act_batch", ("data", "model"))]])
def test_over_a_mesh_nothing_is_gathered(rules):
  """Each device keeps its examples and heads; values do not change."""
  from big_vision.hardware import program as program_lib
  mesh = jax.make_mesh((4, 2), ("data", "model"),
                       axis_types=(AxisType.Auto,) * 2)
  q, k, v = _inputs(b=8, n=6, m=2, d=4)
  rules = dict(rules)
  spec = jax.P(rules["act_batch"], None, rules.get("act_heads"), None)
  where = jax.NamedSharding(mesh, spec)

  @functools.partial(jax.jit, in_shardings=(where,) * 3, out_shardings=where)
  def fn(q, k, v):
    return attention.attend(q, k, v, impl="fused")
  with sharding.use(mesh, list(rules.items())):
    program = program_lib.Program(fn.lower(q, k, v).compile())
    out = fn(q, k, v)
  assert not program.collectives
  np.testing.assert_allclose(
      out, _loops(q, k, v, 0.5, False), **TOLERANCE)


@pytest.mark.parametrize("shapes", [
    ((1, 4, 2, 4), (1, 5, 2, 4)), ((1, 4, 2, 4), (1, 4, 1, 4)),
    ((1, 1025, 1, 4), (1, 1025, 1, 4))])
def test_what_it_does_not_take_says_what_does(shapes):
  q, k = (jnp.zeros(shape) for shape in shapes)
  with pytest.raises(ValueError, match="'memory_efficient' take any"):
    attention.attend(q, k, k, impl="fused")


def test_masks_are_refused():
  q, k, v = _inputs()
  with pytest.raises(ValueError, match="does not support 'mask'.*dense"):
    attention.attend(q, k, v, impl="fused", mask=jnp.ones((5, 5), bool))


def test_what_does_not_fit_on_the_chip_is_refused():
  """ViT-e: two of each block of 272 x 1792, logits of 272 x 384."""
  wide = jax.ShapeDtypeStruct((1, 257, 16, 112), jnp.float32)
  need = fused._vmem(7, 257, 1792, jnp.float32)
  assert need == 2 * 7 * 272 * 1792 * 4 + 8 * 272 * 384 * 4
  assert jax.eval_shape(fused.fused, *[wide] * 3).shape == wide.shape
  long = jax.ShapeDtypeStruct((1, 1024, 16, 112), jnp.float32)
  with pytest.raises(ValueError, match=r"130 MiB.*48. dtype_mm='bfloat16'"):
    jax.eval_shape(fused.fused, *[long] * 3)
