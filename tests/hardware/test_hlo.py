"""Tests of hlo.py, against closed forms and programs made for the tests."""

import functools
import itertools
import types

from big_vision.hardware import hlo
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

_F32 = jnp.float32


def _spec(*shape):
  return jax.ShapeDtypeStruct(shape, _F32)


def _flops(fn, *args):
  return hlo.count_flops(jax.make_jaxpr(fn)(*args))


def _program(fn, *args):
  return hlo.Program(jax.jit(fn).lower(*args).compile())


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


@pytest.fixture(name="mesh", scope="module")
def _mesh():
  return jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize("axes, size", [("a", 4), ("b", 2), (("a", "b"), 8)])
def test_collectives_are_found_with_their_size_and_group(mesh, axes, size):
  sharded = functools.partial(
      jax.shard_map, mesh=mesh, in_specs=P(axes), check_vma=False)
  x = _spec(16, 4)

  def found(fn, **kw):
    return _program(sharded(fn, **kw), x).collectives

  part = 16 // size * 4 * 4  # Bytes on one device.
  reduced, = found(lambda x: jax.lax.psum(x, axes), out_specs=P())
  assert reduced[:4] == ("all-reduce", part, size, 1)
  assert reduced.bytes_on_links == 2 * part * (size - 1) / size
  gathered, = found(lambda x: jax.lax.all_gather(x, axes, tiled=True),
                    out_specs=P())
  assert gathered[:4] == ("all-gather", part * size, size, 1)
  assert gathered.bytes_on_links == part * (size - 1)


def test_permutations_send_their_whole_operand(mesh):
  @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("a"),
                     out_specs=P("a"))
  def rotate(x):
    return jax.lax.ppermute(x, "a", [(i, (i + 1) % 4) for i in range(4)])
  moved, = _program(rotate, _spec(8, 4)).collectives
  assert moved.kind == "collective-permute"
  assert moved.bytes_on_links == 2 * 4 * 4


def test_collectives_in_a_loop_count_as_often_as_it_runs(mesh):
  @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("a"),
                     out_specs=P("a"), check_vma=False)
  def fn(x):
    def body(x, _):
      return jnp.sin(jax.lax.psum(x, "a")), None
    return jax.lax.scan(body, x, length=7)[0]
  reduced, = _program(fn, _spec(8, 4)).collectives
  assert (reduced.kind, reduced.count) == ("all-reduce", 7)


def test_bytes_of_a_loop_are_about_those_of_the_unrolled_loop():
  def body(x, _):
    return jnp.tanh(x @ x.T @ x), None
  x = _spec(64, 64)
  def looped(x):
    return jax.lax.scan(body, x, length=8)[0]
  def unrolled(x):
    for _ in range(8):
      x = body(x, None)[0]
    return x
  ratio = (_program(looped, x).bytes_accessed
           / _program(unrolled, x).bytes_accessed)
  assert .7 < ratio < 1.4
  # XLA's own figure counts the body once.
  cost = jax.jit(looped).lower(x).compile().cost_analysis()
  assert cost["bytes accessed"] < .3 * _program(unrolled, x).bytes_accessed


def test_peak_memory_includes_arguments_and_result():
  program = _program(lambda x: x @ x, _spec(32, 32))
  assert program.argument_bytes == 32 * 32 * 4
  assert program.peak_bytes >= 2 * 32 * 32 * 4


@pytest.mark.parametrize("direction, count", [("LT", 24), ("LE", 1)])
def test_trip_count_is_read_from_the_condition_of_a_tpu_loop(
    direction, count):
  """Such a loop does not note the count; the text is a real one, shortened."""
  text = f"""
%cond.1 (p: (s32[], f32[4])) -> pred[] {{
  %n.1 = s32[]{{:T(128)}} constant(24), backend_config={{}}
  %p.1 = (s32[]{{:T(128)}}, f32[4]{{0:T(128)}}) parameter(0)
  %i.1 = s32[]{{:T(128)}} get-tuple-element(%p.1), index=0
  ROOT %lt.1 = pred[]{{:T(512)}} compare(%i.1, %n.1), direction={direction}
}}

%body.1 (p: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %p.2 = (s32[]{{:T(128)}}, f32[4]{{0:T(128)}}) parameter(0)
  %i.2 = s32[]{{:T(128)}} get-tuple-element(%p.2), index=0
  %x.2 = f32[4]{{0:T(128)}} get-tuple-element(%p.2), index=1
  %sum.2 = f32[4]{{0:T(128)}} all-reduce(%x.2), replica_groups={{{{0,1}}}}
  ROOT %t.2 = (s32[]{{:T(128)}}, f32[4]{{0:T(128)}}) tuple(%i.2, %sum.2)
}}

ENTRY %main.1 (a: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %a.3 = (s32[]{{:T(128)}}, f32[4]{{0:T(128)}}) parameter(0)
  ROOT %w.3 = (s32[], f32[4]) while(%a.3), condition=%cond.1, body=%body.1
}}
"""
  program = hlo.Program(types.SimpleNamespace(as_text=lambda: text))
  collective, = program.collectives
  assert collective.count == count


def test_traffic_lists_the_heaviest_operation_first():
  def fn(x):
    with jax.named_scope("heavy"):
      return (x @ x).sum()
  name = next(iter(_program(fn, _spec(64, 64)).traffic()))
  assert "heavy" in name


@pytest.mark.parametrize("text, size", [
    ("replica_groups={{0,1,2},{3,4,5}}, x", 3),
    ("replica_groups=[2,4]<=[8], x", 4),
    ("replica_groups=[4,2]<=[2,4]T(1,0), x", 2),
    ("replica_groups=mesh['axis_0'=16,'axis_1'=2] {'axis_0','axis_1'}, x", 32),
    ("replica_groups=mesh['axis_0'=16,'axis_1'=2] {'axis_1'}, x", 2),
    ("replica_groups=mesh['axis_0'=16] {'axis_0':(4)2}, x", 2),
    ("no groups", 1)])
def test_group_size_reads_every_notation_of_xla(text, size):
  assert hlo._group_size(text) == size


def test_num_bytes_of_shapes_and_tuples():
  assert hlo._num_bytes("(f32[2,3]{1,0:T(8,128)}, bf16[4], token[])") == (
      24 + 8)
  assert hlo._num_bytes("f32[]") == 4
  assert np.isclose(hlo._num_bytes("s4[3]"), 1.5)
