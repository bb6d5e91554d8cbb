"""Tests of flops.py, against closed forms and counting."""

import functools
import itertools

from big_vision.hardware import flops as flops_lib
import jax
import jax.numpy as jnp
import pytest


def _spec(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def _flops(fn, *args):
  return flops_lib.count(jax.make_jaxpr(fn)(*args))


def test_products_count_two_for_each_multiplied_pair():
  assert _flops(jnp.dot, _spec(3, 5), _spec(5, 7)) == 2 * 3 * 5 * 7
  assert _flops(functools.partial(jnp.einsum, "bnmd,bsmd->bmns"),
                _spec(2, 3, 4, 5), _spec(2, 6, 4, 5)) == 2 * 2 * 4 * 3 * 6 * 5


def test_elementwise_operations_are_not_counted():
  assert _flops(lambda x: jnp.tanh(x).sum(), _spec(4, 4)) == 0


def test_gradient_of_a_product_is_two_products():
  fn = jax.grad(lambda a, b: jnp.dot(a, b).sum(), argnums=(0, 1))
  # The primal itself is not needed for the gradient of a sum.
  assert _flops(fn, _spec(3, 5), _spec(5, 7)) in (
      2 * 2 * 3 * 5 * 7, 3 * 2 * 3 * 5 * 7)


def test_dead_code_is_not_counted():
  def fn(x, y):
    unused = jax.jit(jnp.dot)(y, y)
    return x @ x + 0 * x, unused
  flops = _flops(lambda x, y: fn(x, y)[0], _spec(4, 4), _spec(8, 8))
  assert flops == 2 * 4 ** 3


def test_loops_count_as_often_as_they_run_and_calls_once():
  def fn(x, w):
    body = jax.checkpoint(lambda x, _: (jnp.tanh(x @ w), None))
    return jax.lax.scan(body, x, length=6)[0]
  assert _flops(fn, _spec(2, 4), _spec(4, 4)) == 6 * 2 * 2 * 4 * 4
  assert _flops(jax.jit(jnp.dot), _spec(2, 3), _spec(3, 2)) == 2 * 2 * 3 * 2


def test_kernels_count_for_each_program_of_their_grid():
  from big_vision.layers.attention import fused
  x = _spec(3, 5, 8)
  flops = _flops(lambda x: fused.run_forward(
      x, x, x, num_heads=2, scale=1., causal=False), x)
  assert flops == 3 * 2 * 2 * (5 * 5 * 8)  # Two products of all heads.


def test_cond_counts_as_its_largest_branch():
  def fn(p, x):
    return jax.lax.cond(p, lambda x: x @ x @ x, lambda x: x @ x, x)
  assert _flops(fn, jax.ShapeDtypeStruct((), bool), _spec(4, 4)) == (
      2 * 2 * 4 ** 3)


@pytest.mark.parametrize("stride, groups", [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_convolutions_against_counting(stride, groups):
  """Without padding, an output reads a full window of its group's channels."""
  h, c, k, out = 7, 4, 3, 6
  conv = functools.partial(
      jax.lax.conv_general_dilated, window_strides=(stride, stride),
      padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=groups)
  places = len(range(0, h - k + 1, stride)) ** 2
  counted = sum(2 for _ in itertools.product(
      range(places), range(out), range(k * k), range(c // groups)))
  image, kernel = _spec(1, h, h, c), _spec(k, k, c // groups, out)
  assert _flops(conv, image, kernel) == counted


def test_forward_pass_of_a_vit_follows_the_formula():
  """Kaplan et al. (arXiv:2001.08361), with attention: 24 n d^2 + 4 n^2 d."""
  from big_vision.models import vit
  d, depth, side, patch = 32, 2, 16, 4
  n = (side // patch) ** 2
  model = vit.Model(None, width=d, depth=depth, num_heads=2,
                    patch_size=(patch, patch), posemb="sincos2d")
  image = _spec(1, side, side, 3)
  params = jax.eval_shape(model.init, jax.random.key(0), image)
  expected = depth * (24 * n * d * d + 4 * n * n * d) + (
      2 * n * patch * patch * 3 * d)
  assert _flops(lambda p, x: model.apply(p, x)[0], params, image) == expected
