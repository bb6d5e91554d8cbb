"""Meshes and sharding rules, against PartitionSpecs written by hand."""

from big_vision import config as config_lib
from big_vision import sharding
import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest


def _shape(*shape, dtype=np.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def _mesh():
  return sharding.make_mesh([("data", -1), ("model", 2)])


def test_mesh_sizes_and_axis_types():
  mesh = _mesh()
  assert dict(mesh.shape) == {"data": 4, "model": 2}
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
  assert dict(sharding.make_mesh().shape) == {"data": 8}


@pytest.mark.parametrize("axes, message", [
    ([("data", 3)], "3 devices; there are 8|8 devices"),
    ([("data", -1), ("model", 3)], "8 devices"),
    ([("data", -1), ("model", -1)], "one of them"),
    ([("data", 4), ("data", 2)], "twice")])
def test_mesh_errors(axes, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    sharding.make_mesh(axes)


def _specs(shapes, strategy, rules=()):
  inferred = sharding.infer(shapes, strategy, _mesh(), dict(rules))
  return jax.tree.map(lambda s: s.spec, inferred)


def test_fsdp_takes_the_largest_free_dimension_that_divides():
  shapes = {"big": _shape(6, 1024, 512), "odd": _shape(1025, 1022, 2),
            "small": _shape(16, 16), "scalar": _shape()}
  fsdp = "fsdp(axis='data', min_size_to_shard_mb=1)"
  specs = _specs(shapes, [(".*", fsdp)])
  assert specs == {"big": P(None, "data", None), "odd": P(None, None, None),
                   "small": P(None, None), "scalar": P()}
  specs = _specs(shapes, [("big", "shard_dim('model', 1)|" + fsdp),
                          ("odd", "fsdp(('data', 'model'), 0)")])
  assert specs["big"] == P(None, "model", "data")
  assert specs["odd"] == P(None, None, None)
  assert specs["small"] == P(None, None), "What nothing matches is replicated."


def test_shard_dim_counts_from_both_ends():
  shapes = {"kernel": _shape(3, 4, 8), "bias": _shape(8)}
  assert _specs(shapes, [("kernel", "shard_dim('model', -1)"),
                         ("bias", "shard_dim('model', 0)")]) == {
                             "kernel": P(None, None, "model"),
                             "bias": P("model")}
  assert _specs({"b": _shape(8)}, [
      ("b", "shard_dim('model', 1, ignore_ndim_error=True)")])["b"] == P(None)


def test_logical_names_go_through_the_rules():
  rules = [("mlp", "model"), ("embed", "data"), ("unused", None)]
  assert _specs({"w": _shape(8, 4, 3)}, [
      ("w", "logical('embed', 'mlp', 'unused')")], rules)["w"] == P(
          "data", "model", None)


@pytest.mark.parametrize("strategy, message", [
    ([("kernal", "replicate")], "'kernal' is the first match of no leaf"),
    ([("kernel", "fsdpp")], "'fsdpp'.*'fsdp'"),
    ([("kernel", "fsdp(axs='data')")], "axs"),
    ([("kernel", "fsdp('dta')")], "'dta'.*'data'"),
    ([("kernel", "shard_dim('model', 5)")], "no dimension 5"),
    ([("kernel", "shard_dim('model', 0)")], "cannot be split"),
    ([("kernel", "shard_dim('model', 1)|shard_dim('model', 2)")], "already"),
    ([("kernel", "shard_dim('model', 1)|replicate")], "comes after"),
    ([("kernel", "logical('a')")], "names 1 dimensions")])
def test_strategy_errors(strategy, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    _specs({"kernel": _shape(3, 4, 8)}, strategy)


def test_rules_and_batches():
  mesh = _mesh()
  rules = sharding.make_rules(mesh, [["act_batch", ["data", "model"]]])
  where = sharding.batch_sharding(mesh, rules)
  assert where.spec == P(("data", "model"))
  assert sharding.num_shards(where) == 8
  assert sharding.num_shards(sharding.batch_sharding(mesh, [])) == 1
  assert sharding.make_rules(mesh, None) == [("act_batch", "data")]
  with pytest.raises(config_lib.ConfigError, match="'modle'.*'model'"):
    sharding.make_rules(mesh, [("act_batch", "modle")])
  sharding.check_divides(16, where, "config.input.batch_size")
  with pytest.raises(config_lib.ConfigError, match=r"is 20, .* \[16, 24\]"):
    sharding.check_divides(20, where, "config.input.batch_size")


def test_put_places_every_shard():
  mesh = _mesh()
  values = {"a": np.arange(32.).reshape(4, 8), "b": np.float32(3)}
  where = sharding.infer(
      values, [("a", "shard_dim('data', 0)|shard_dim('model', 1)")], mesh)
  placed = sharding.put(values, where)
  assert placed["a"].addressable_shards[0].data.shape == (1, 4)
  np.testing.assert_array_equal(placed["a"], values["a"])
  assert placed["b"].is_fully_replicated
