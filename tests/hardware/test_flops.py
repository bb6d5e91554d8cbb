"""Tests of flops.py, against closed forms and counting."""

import functools
import itertools

from big_vision import sharding
from big_vision.hardware import flops as flops_lib
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
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


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_gradients_of_a_convolution_cost_what_it_costs(stride):
  """Both gradients multiply the same pairs of numbers as the convolution.

  Each stride equals the size of the kernel, so that every pixel is read once.
  The gradient by the image dilates its input, that by the kernel its kernel:
  products with the zeros in between must not count.
  """
  conv = functools.partial(
      jax.lax.conv_general_dilated, window_strides=(stride, stride),
      padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
  image, kernel = _spec(2, 6, 6, 3), _spec(stride, stride, 3, 5)
  forward = 2 * (2 * 6 * 6 * 3) * 5
  assert _flops(conv, image, kernel) == forward
  for argument in (0, 1):
    def gradient(image, kernel, argument=argument):
      return jax.grad(lambda *args: conv(*args).sum(), argument)(image, kernel)
    assert _flops(gradient, image, kernel) == forward


@pytest.fixture(name="mesh", scope="module")
def _mesh():
  return jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize("spec", [
    P("a"), P("b"), P(("a", "b")), P("a", "b"), P(None, "b"), P()])
@pytest.mark.parametrize("check_vma", [True, False])
def test_a_shard_map_counts_for_all_devices(mesh, spec, check_vma):
  """The oracle is the same function without shard_map, and its closed form."""
  def products(x, w):
    return jnp.tanh(jnp.einsum("bmd,de->bme", x, w))
  sharded = jax.shard_map(products, mesh=mesh, in_specs=(spec, P()),
                          out_specs=spec, check_vma=check_vma)
  x, w = _spec(16, 8, 4), _spec(4, 6)
  assert _flops(sharded, x, w) == _flops(products, x, w) == 2 * 16 * 8 * 4 * 6
  def gradient(fn):
    return lambda x, w: jax.grad(
        lambda *args: fn(*args).sum(), argnums=(0, 1))(x, w)
  assert _flops(gradient(sharded), x, w) == _flops(gradient(products), x, w)


def test_nested_and_indexed_shard_maps_count_for_all_devices(mesh):
  w = _spec(16, 4)
  def nested(x, w):
    inner = jax.shard_map(jnp.dot, in_specs=(P("b"), P()), out_specs=P("b"),
                          axis_names={"b"})
    return jax.shard_map(inner, mesh=mesh, in_specs=(P("a"), P()),
                         out_specs=P("a"), axis_names={"a"})(x, w)
  def indexed(x, w):
    """Every device multiplies its own part of a shared axis."""
    def part(x, w):
      start = 4 * jax.lax.axis_index("a")
      cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=4)
      return jax.lax.psum(cut(x, start, axis=1) @ cut(w, start), "a")
    return jax.shard_map(
        part, mesh=mesh, in_specs=P(), out_specs=P())(x, w)
  for fn in (nested, indexed):
    assert _flops(fn, _spec(8, 16), w) == 2 * 8 * 16 * 4


def test_fused_attention_counts_the_same_with_and_without_a_mesh(mesh):
  from big_vision.layers.attention import fused
  b, n, m, d = 8, 6, 2, 4
  x = _spec(b, n, m, d)
  def gradient(q, k, v):
    return jax.grad(lambda *args: fused.fused(*args).sum(), (0, 1, 2))(q, k, v)
  alone = _flops(gradient, x, x, x)
  # The logits, computed again, and four products of the gradients. A sum does
  # not need the forward pass itself.
  assert alone == 5 * (2 * b * m * n * n * d)
  for rules in ((("act_batch", "a"), ("act_heads", "b")),
                (("act_batch", "a"),), (("act_batch", ("a", "b")),)):
    with sharding.use(mesh, rules):
      assert _flops(gradient, x, x, x) == alone, rules


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
