"""Tests of pp/builder.py and pp/registry.py, and properties of every op."""

import ast
import pathlib

from big_vision import config as config_lib
from big_vision.pp import builder
from big_vision.pp import registry
import numpy as np
import pytest
import tensorflow as tf

from tests import ops

SEED = ops.SEED
IMAGE = ops.noise(9, 12)
PNG = ops.encode(IMAGE, "PNG")


# A string and an example for every op.
CASES = {
    "central_crop": ("central_crop(5)", {"image": IMAGE}),
    "choice": (
        "choice(2, key='x')", {"x": np.arange(20), "y": np.float32(1)}),
    "clip_value_range": ("clip_value_range", {"image": IMAGE}),
    "color_jitter": ("color_jitter(.4, .4, .4, .1)", {"image": IMAGE}),
    "copy": ("copy('image', 'other')", {"image": IMAGE}),
    "decode": ("decode", {"image": PNG}),
    "decode_jpeg_and_inception_crop": (
        "decode_jpeg_and_inception_crop(4)", {"image": PNG}),
    "drop": ("drop('x')", {"image": IMAGE, "x": np.arange(3)}),
    "flatten": ("flatten", {"a": {"b": np.arange(3)}}),
    "flip_lr": ("flip_lr", {"image": IMAGE}),
    "inception_crop": ("inception_crop(4)", {"image": IMAGE}),
    "keep": ("keep('image')", {"image": IMAGE, "x": np.arange(3)}),
    "lookup": ("lookup('{path}', key='x')", {"x": np.array(b"second")}),
    "onehot": ("onehot(4)", {"labels": np.array([1, 3])}),
    "pad_to_shape": ("pad_to_shape((12, 12, None))", {"image": IMAGE}),
    "randaug": ("randaug(2, 9)", {"image": IMAGE}),
    "random_crop": ("random_crop(5)", {"image": IMAGE}),
    "random_erasing": ("random_erasing(.9)", {"image": IMAGE}),
    "reshape": ("reshape((-1, 3))", {"image": IMAGE}),
    "resize": ("resize((4, 6))", {"image": IMAGE}),
    "resize_long": ("resize_long(6)", {"image": IMAGE}),
    "resize_small": ("resize_small(4)", {"image": IMAGE}),
    "setdefault": ("setdefault('x', 3)", {"image": IMAGE}),
    "value_range": ("value_range(0, 1)", {"image": IMAGE}),
    "vgg_value_range": ("vgg_value_range", {"image": IMAGE}),
}


def _own_ops():
  """Names of the ops that big_vision's own modules register."""
  builder.make_preprocess("")
  modules = [f"big_vision.pp.{module}" for module in builder.DEFAULT_MODULES]
  return {
      name for name in registry.names()
      if registry.lookup(name).factory.__module__ in modules}


def _equal(a, b):
  tf.nest.assert_same_structure(a, b)
  return all(
      np.array_equal(x, y)
      for x, y in zip(tf.nest.flatten(a), tf.nest.flatten(b)))


def _map(fn, *examples):
  """Returns fn's results in a tf.data graph, and the spec of the first one."""
  dataset = tf.data.Dataset.from_tensors(examples[0]).map(fn)
  for example in examples[1:]:
    dataset = dataset.concatenate(
        tf.data.Dataset.from_tensors(example).map(fn))
  return list(dataset.as_numpy_iterator()), dataset.element_spec


def test_every_op_has_a_case_and_a_test_of_its_name():
  defined = set()
  for path in pathlib.Path(__file__).parent.glob("test_*.py"):
    defined |= {
        node.name for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)}
  own = _own_ops()
  assert len(own) == 25
  assert set(CASES) == own
  assert {f"test_{op}" for op in own} <= defined


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_op_is_pure_and_agrees_with_its_graph(name, tmp_path):
  (tmp_path / "names.txt").write_text("first\nsecond\n")
  string, data = CASES[name]
  assert string.startswith(name)
  fn = builder.make_preprocess(
      string.replace("{path}", str(tmp_path / "names.txt")))
  data = {**data, "_seed": SEED}
  before = dict(data)
  eager = fn(data)
  assert data.keys() == before.keys(), "the op changed its input"
  assert all(data[key] is before[key] for key in data)
  assert "_seed" not in eager
  eager = tf.nest.map_structure(lambda x: x.numpy(), eager)
  other = {**data, "_seed": SEED + 1}
  (graph, repeated, different), spec = _map(fn, data, data, other)
  if name == "color_jitter":  # Graph and eager mode round differently.
    np.testing.assert_allclose(
        eager["image"].astype(int), graph["image"].astype(int), atol=1)
  else:
    assert _equal(eager, graph)
  assert _equal(graph, repeated)
  if registry.lookup(name).random:
    assert not _equal(graph, different)
  else:
    assert _equal(graph, different)
  # Static shapes are known wherever they do not depend on the data.
  sizes_of_file = name == "decode"
  for value, known in zip(tf.nest.flatten(eager), tf.nest.flatten(spec)):
    assert value.shape[-1:] == tuple(known.shape[-1:])
    assert sizes_of_file or value.shape == tuple(known.shape)
    assert value.dtype == known.dtype.as_numpy_dtype or (
        known.dtype == tf.string)


def test_ops_apply_in_order_and_empty_pieces_do_nothing():
  fn = builder.make_preprocess(" value_range(0, 1) | | value_range(2, 4, 0, 1)")
  image = np.array([0, 255], np.uint8)
  np.testing.assert_allclose(fn({"image": image})["image"], [2, 4])
  assert builder.make_preprocess("")({"x": [1]})["x"].numpy().tolist() == [1]


def test_bars_commas_and_brackets_in_quotes_are_data():
  fn = builder.make_preprocess("setdefault('a|b', 'x|y(,\\'')|keep('a|b')")
  assert fn({})["a|b"].numpy() == b"x|y(,'"


def test_arrays_and_nested_arrays_become_tensors():
  out = builder.make_preprocess("")({"a": [1.5], "b": {"c": np.int32(3)}})
  assert tf.is_tensor(out["a"]) and tf.is_tensor(out["b"]["c"])


def test_key_arguments():
  data = {"a": np.float32([255]), "image": np.float32([0])}
  def run(string):
    result = builder.make_preprocess(string)(data)
    return {key: value.numpy().tolist() for key, value in result.items()}
  assert run("value_range(0, 1)") == {"a": [255], "image": [0]}
  assert run("value_range(0, 1, key='a')") == {"a": [1], "image": [0]}
  assert run("value_range(0, 1, inkey='a')") == {"a": [255], "image": [1]}
  assert run("value_range(0, 1, inkey='a', outkey='b')") == {
      "a": [255], "image": [0], "b": [1]}
  assert run("value_range(0, 1, key='a', outkey='b')") == {
      "a": [255], "image": [0], "b": [1]}


@pytest.mark.parametrize("string, wanted", [
    ("flip_lr|resise(3)", ["op 2 of 2", "'resise(3)'", "mean 'resize'"]),
    ("resize(sise=3)", ["no argument 'sise'", "mean 'size'",
                        "resize(size, method='bilinear', antialias=False, *, "
                        "key=None, inkey=None, outkey=None)"]),
    ("lookup('/no', key=\"x\")|flip_lr", [
        "op 1 of 2, 'lookup('/no', key=\"x\")', of",
        "the table /no: No such file or directory."]),
    ("flip_lr|resize", ["op 2 of 2", "missing", "'size'"]),
    ("resize(1, 'area', True, 4)", ["too many positional"]),
    ("resize(3, 'bilinar')", ["'bilinar'", "'bilinear'"]),
    ("resize(0)", ["positive", "0"]),
    ("resize((1, 2, 3))", ["(1, 2, 3)"]),
    ("resize(", ["never closed"]),
    ("resize(x)", ["literals"]),
    ("3", ["3"]),
    ("lookup('/nowhere.txt', key='x')", ["/nowhere.txt"]),
    ("lookup('/nowhere.txt')", ["key="]),
    ("choice('doubel', key='x')", ["doubel", "'single'"]),
    ("decode(2)", ["channels=2", "[0, 1, 3, 4]"]),
])
def test_build_errors_name_the_string_the_op_and_alternatives(string, wanted):
  with pytest.raises(config_lib.ConfigError) as error:
    builder.make_preprocess(string)
  # As it was written: without escapes, so that it can be copied.
  for text in [*wanted, f"'{string}'"]:
    assert text in str(error.value)


def test_building_needs_a_string_and_existing_modules(monkeypatch, tmp_path):
  with pytest.raises(config_lib.ConfigError, match="it got None"):
    builder.make_preprocess(None)
  with pytest.raises(config_lib.ConfigError) as error:
    builder.make_preprocess("", modules=["ops_crp"])
  assert "'ops_crp' (did you mean 'ops_crop'?)" in str(error.value)
  assert "'builder'" not in str(error.value)
  # The module exists but imports one that does not.
  (tmp_path / "my_lab").mkdir()
  (tmp_path / "my_lab" / "broken.py").write_text("import no_such_package")
  monkeypatch.syspath_prepend(str(tmp_path))
  with pytest.raises(ModuleNotFoundError, match="no_such_package"):
    builder.make_preprocess("", modules=["my_lab.broken"])


def test_modules_add_their_ops_to_the_default_ones(monkeypatch, tmp_path):
  (tmp_path / "ops_lab").mkdir()
  (tmp_path / "ops_lab" / "brighten.py").write_text(
      "from big_vision.pp import registry\n"
      "@registry.register('brighten')\n"
      "@registry.in_key_out_key()\n"
      "def brighten(by):\n"
      "  return lambda image: image + by\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  fn = builder.make_preprocess(
      "copy('image', 'old')|brighten(2)", modules=["ops_lab.brighten"])
  out = fn({"image": np.arange(3)})
  np.testing.assert_array_equal(out["image"], [2, 3, 4])
  np.testing.assert_array_equal(out["old"], [0, 1, 2])


def test_a_random_op_needs_a_valid_seed():
  fn = builder.make_preprocess("value_range|flip_lr")
  for run in (fn, lambda data: _map(fn, data),
              lambda data: _map(lambda d: fn(d), data)):
    with pytest.raises(ValueError, match="op 2 of 2, 'flip_lr'.*'_seed'"):
      run({"image": IMAGE})
    with pytest.raises(ValueError, match="op 2 of 2, 'flip_lr'.*'_seed' must"):
      run({"image": IMAGE, "_seed": np.arange(3)})
  fn = builder.make_preprocess("value_range")
  assert set(fn({"image": IMAGE, "_seed": SEED})) == {"image"}


def test_missing_key_and_ragged_value_are_named():
  fn = builder.make_preprocess("flip_lr(key='image')|resize(3, key='imag')")
  with pytest.raises(ValueError) as error:
    fn({"image": IMAGE, "label": 3, "_seed": SEED})
  for text in ("op 2 of 2", "no 'imag' (did you mean 'image'?)", "'label'"):
    assert text in str(error.value)
  with pytest.raises(ValueError, match="RaggedTensor.*pad_to_shape"):
    builder.make_preprocess("value_range")(
        {"image": tf.ragged.constant([[1, 2], [3]])})


def test_errors_of_running_graphs_name_the_op():
  fn = builder.make_preprocess("decode|central_crop(100)")
  with pytest.raises(tf.errors.InvalidArgumentError) as error:
    _map(fn, {"image": PNG})
  assert "pp1_central_crop" in str(error.value)
  assert "[9 12 3]" in str(error.value)


def test_an_op_at_another_position_draws_differently():
  def places(string):
    fn = builder.make_preprocess(string)
    return [fn({"x": np.arange(1000), "_seed": SEED})["x"].numpy().tolist()]
  first = places("choice('single', key='x')")
  assert first == places("choice('single', key='x')|reshape([], key='x')")
  assert first != places("reshape([-1], key='x')|choice('single', key='x')")
  # Two ops of the same name draw differently for one example.
  fn = builder.make_preprocess(
      "copy('x', 'y')|choice(key='x')|choice(key='y')")
  out = fn({"x": np.arange(1000), "_seed": SEED})
  assert out["x"].numpy() != out["y"].numpy()


def test_the_global_random_state_does_not_matter():
  fn = builder.make_preprocess("random_crop(3)|flip_lr|randaug(2, 9)")
  results = []
  for state in (1, 2):
    tf.random.set_seed(state)
    results.append(fn({"image": IMAGE, "_seed": SEED})["image"].numpy())
  assert np.array_equal(*results)


def test_registering(monkeypatch):
  monkeypatch.setattr(registry, "_OPS", dict(registry._OPS))

  @registry.register("add_noise", random=True)
  @registry.in_key_out_key("x", "x")
  def add_noise(scale=1):
    return lambda x, seed: x + scale * tf.random.stateless_normal([3], seed)

  assert "add_noise" in registry.names()
  fn = builder.make_preprocess("add_noise(2)")
  noise = fn({"x": np.float32(5), "_seed": SEED})["x"].numpy()
  seed = tf.random.experimental.stateless_fold_in(SEED, 0)
  np.testing.assert_allclose(
      noise, 5 + 2 * tf.random.stateless_normal([3], seed))
  with pytest.raises(ValueError, match="add_noise.*exists already.*add_noise"):
    registry.register("add_noise")(lambda: None)
  with pytest.raises(ValueError, match="'add noise'"):
    registry.register("add noise")(lambda: None)
