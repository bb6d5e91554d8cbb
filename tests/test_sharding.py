"""Tests meshes and sharding rules against PartitionSpecs written by hand."""

from big_vision import config as config_lib
from big_vision import sharding
from big_vision import state as state_lib
from big_vision import task as task_lib
from big_vision import tree
from big_vision.hardware import program as program_lib
from big_vision.trainers import classification
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
  assert specs["small"] == P(None, None), "Unmatched leaves stay whole."


@pytest.mark.parametrize("op, limit", [
    ("fsdp", 2 ** 22), ("fsdp(min_size_to_shard_mb=1)", 2 ** 20),
    ("fsdp('data', 0)", 0)])
def test_fsdp_leaves_arrays_up_to_its_limit_whole(op, limit):
  """A limit is in bytes, whatever the dtype, and 4 MiB by default."""
  # 4 devices split the rows; one more row each is beyond the limit.
  for dtype in (np.float32, np.float16):
    columns = 2 ** 10
    rows = limit // columns // np.dtype(dtype).itemsize
    specs = _specs({"at": _shape(rows, columns, dtype=dtype),
                    "above": _shape(rows + 4, columns, dtype=dtype)},
                   [(".*", op)])
    assert "data" not in specs["at"] or not rows
    assert "data" in specs["above"]


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
    ([("kernal", "replicate")], "'kernal' is not the first match of any leaf"),
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


def test_the_rule_for_act_batch_splits_the_batch():
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


def test_put_gives_each_device_its_shard():
  mesh = _mesh()
  values = {"a": np.arange(32.).reshape(4, 8), "b": np.float32(3)}
  where = sharding.infer(
      values, [("a", "shard_dim('data', 0)|shard_dim('model', 1)")], mesh)
  placed = sharding.put(values, where)
  assert placed["a"].addressable_shards[0].data.shape == (1, 4)
  np.testing.assert_array_equal(placed["a"], values["a"])
  assert placed["b"].is_fully_replicated


def _vit_state(optax_name="scale_by_adam", **model):
  """Returns the task, its info and the state shapes of a small ViT."""
  config = config_lib.Config(dict(
      model_name="vit", num_classes=8, optax_name=optax_name, lr=1e-3, wd=1e-4,
      model=dict(width=64, depth=2, num_heads=4, mlp_dim=128, patch_size=8,
                 **model)))
  mesh = _mesh()
  spec = {"image": _shape(8, 16, 16, 3), "labels": _shape(8, 8)}
  info = task_lib.Info(total_steps=100, batch_size=8, data_size=100,
                       batch_spec=spec, mesh=mesh)
  task = classification.make_task(config, info)
  return task, info, state_lib.infer_shapes(task, info, jax.random.key(0))


@pytest.mark.parametrize("scan", [False, True])
def test_tensor_parallelism_splits_heads_and_hidden_units(scan):
  _, _, shapes = _vit_state(scan=scan)
  strategy = sharding.preset_strategy("tp", shapes, _mesh())
  specs = sharding.infer(shapes, strategy, _mesh())["params"]["Transformer"]
  block = specs["encoderblock" if scan else "encoderblock_0"]
  depth = (None,) * scan
  attention = block["MultiHeadDotProductAttention_0"]
  assert jax.tree.map(lambda s: tuple(s.spec), attention) == {
      **{name: {"kernel": (*depth, None, "model", None),
                "bias": (*depth, "model", None)}
         for name in ("query", "key", "value")},
      "out": {"kernel": (*depth, "model", None, None),
              "bias": (*depth, None)}}
  assert jax.tree.map(lambda s: tuple(s.spec), block["MlpBlock_0"]) == {
      "Dense_0": {"kernel": (*depth, None, "model"),
                  "bias": (*depth, "model")},
      "Dense_1": {"kernel": (*depth, "model", None), "bias": (*depth, None)}}
  assert set(block["LayerNorm_0"]["scale"].spec) == {None}


@pytest.mark.parametrize("optax_name", [
    "scale_by_adam", "big_vision.scale_by_adafactor", "big_vision.momentum_hp"])
@pytest.mark.parametrize("name", sharding.PRESETS)
def test_presets_split_optimizer_state_like_its_parameter(optax_name, name):
  _, _, shapes = _vit_state(optax_name)
  specs = dict(tree.flatten_with_names(sharding.infer(
      shapes, sharding.preset_strategy(name, shapes, _mesh()), _mesh())))
  shape = {path: leaf.shape for path, leaf in tree.flatten_with_names(shapes)}
  params = {path.removeprefix("params/"): where for path, where in specs.items()
            if path.startswith("params/")}
  compared = 0
  for path, where in specs.items():
    for param, of_param in params.items():
      if (path.endswith("/" + param) and "/v/" not in path and
          shape[path] == shape["params/" + param]):
        assert where.spec == of_param.spec, path
        compared += 1
  assert compared >= 2 * len(params) or "adafactor" in optax_name


def test_tensor_parallelism_never_gathers_parameters():
  """Each block needs two all-reduces forward, two backward, and no gather."""
  task, info, shapes = _vit_state(posemb="sincos2d")
  mesh = info.mesh
  rules = sharding.make_rules(mesh, None, "tp")
  where = sharding.infer(
      shapes, sharding.preset_strategy("tp", shapes, mesh), mesh)
  batch = state_lib.with_shardings(dict(info.batch_spec), dict.fromkeys(
      info.batch_spec, sharding.batch_sharding(mesh, rules)))
  with sharding.use(mesh, rules):
    program = program_lib.Program(state_lib.make_update(
        task, jax.random.key(0), where, mesh).lower(
            state_lib.with_shardings(shapes, where), {}, batch, ()).compile())
  assert {c.kind for c in program.collectives} == {"all-reduce"}
  b, n, d = 8 // 4, 4, 64
  over_model = [c for c in program.collectives if c.group_size == 2
                and c.num_bytes >= b * n * d * 4]
  assert sum(c.count for c in over_model) <= 2 * 4


def test_fsdp_over_two_axes_splits_leaves_that_do_not_divide_by_all_devices():
  shapes = {"odd": _shape(2052, 1026), "even": _shape(8, 512, 1024),
            "one": _shape(2052, 1025)}
  mesh = sharding.make_mesh([("data", -1), ("more", 2)])
  assert sharding.make_rules(mesh, None, "fsdp") == [
      ("act_batch", ("data", "more"))]
  specs = jax.tree.map(lambda s: tuple(s.spec), sharding.infer(
      shapes, sharding.preset_strategy("fsdp", shapes, mesh), mesh))
  assert specs == {"odd": ("data", "more"), "even": (None, "more", "data"),
                   "one": ("data", None)}
  mesh = sharding.make_mesh()
  specs = jax.tree.map(lambda s: tuple(s.spec), sharding.infer(
      shapes, sharding.preset_strategy("fsdp", shapes, mesh), mesh))
  assert specs == {"odd": (None, None), "even": (None, None, "data"),
                   "one": (None, None)}


def test_explicit_rules_override_those_of_a_preset():
  rules = dict(sharding.make_rules(
      _mesh(), [("act_len", "model"), ("act_mlp", None)], "tp"))
  assert rules == {"act_batch": "data", "act_heads": "model", "act_mlp": None,
                   "act_len": "model"}


def test_preset_errors():
  with pytest.raises(config_lib.ConfigError, match="'tpp'.*'tp'"):
    sharding.preset_rules("tpp", _mesh())
  with pytest.raises(config_lib.ConfigError, match="'model'.*has \\['data'\\]"):
    sharding.preset_rules("fsdp_tp", sharding.make_mesh())
  with pytest.raises(config_lib.ConfigError, match="has neither.*stem"):
    sharding.preset_strategy(
        "tp", {"params": {"stem": _shape(3, 4)}}, _mesh())
