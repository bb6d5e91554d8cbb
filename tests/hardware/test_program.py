"""Tests of program.py, against closed forms and the TPU compiler's texts."""

import functools
import pathlib
import types

from big_vision.hardware import program as program_lib
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import pytest

_F32 = jnp.float32


def _spec(*shape):
  return jax.ShapeDtypeStruct(shape, _F32)


def _program(fn, *args):
  return program_lib.Program(jax.jit(fn).lower(*args).compile())


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
  program = program_lib.Program(types.SimpleNamespace(as_text=lambda: text))
  collective, = program.collectives
  assert collective.count == count


def test_traffic_lists_the_heaviest_operation_first():
  def fn(x):
    with jax.named_scope("heavy"):
      return (x @ x).sum()
  name = next(iter(_program(fn, _spec(64, 64)).traffic()))
  assert "heavy" in name


def _read(name):
  """Returns the program of a file with the text that the TPU compiler made.

  Names of source lines and the compiler's own figures are left out.
  """
  text = (pathlib.Path(__file__).parent / "data" / name).read_text()
  return program_lib.Program(types.SimpleNamespace(as_text=lambda: text))


def test_a_sum_of_which_each_device_keeps_a_part_is_a_reduce_scatter():
  """The gradient of x @ w on v5e:2x4, both [4096, 4096] and split in 8."""
  gathered, scattered = _read("reduce_scatter.hlo").collectives
  # The product takes bfloat16; gradients are float32.
  assert gathered[:4] == ("all-gather", 2 * 4096 ** 2, 8, 1)
  assert scattered[:4] == ("reduce-scatter", 4 * 4096 ** 2, 8, 1)
  # Each device sends what it does not keep, once.
  assert scattered.bytes_on_links == 4 * 4096 * (4096 - 512)


def test_a_sum_that_is_sliced_after_it_arrived_is_a_sum():
  """Outside of a fusion, all of it is sent twice."""
  program = _read("reduce_scatter.hlo")
  text = program.compiled.as_text()
  body = text[text.index("%all-reduce-scatter ("):text.index("ENTRY")]
  text = body.replace("%all-reduce-scatter (", "ENTRY %main (")
  program = program_lib.Program(types.SimpleNamespace(as_text=lambda: text))
  reduced, = program.collectives
  assert reduced.kind == "all-reduce"
  assert reduced.bytes_on_links == 2 * 4 * 4096 * (4096 - 512)


def test_a_transfer_that_spreads_over_several_fusions_counts_once():
  """Three products with weights [768, 768], split in 16, on v5e:4x4.

  The third all-gather is started by one fusion, continued and ended by others.
  """
  program = _read("all_gather_chain.hlo")
  assert program.compiled.as_text().count(" all-gather(") == 5
  assert [c[:4] for c in program.collectives] == [
      ("all-gather", 2 * 768 ** 2, 16, 1)] * 3
