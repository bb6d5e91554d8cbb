"""Tests of hlo.py, against closed forms and programs made for the tests."""

import functools
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


def _program(fn, *args):
  return hlo.Program(jax.jit(fn).lower(*args).compile())


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
