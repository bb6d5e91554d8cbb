"""BiT, both forms, against their definition in NumPy, float64, and timm's."""

import functools
import math

from big_vision import config as config_lib
from big_vision import sharding
from big_vision import tree
from big_vision import weights
from big_vision.layers import resnet
from big_vision.models import bit
from big_vision.models import bit_paper
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from benchmarks import peers
from tests import drawn

FORMS = {"bit": bit, "bit_paper": bit_paper}
# Everything that has a stride meets an even size at least once: there, "SAME"
# pads more after than before.
TINY = dict(depth=(1, 2), width=0.5)
B, K = 2, 5
IMAGE_SHAPE = (B, 16, 12, 3)


def _image():
  return drawn.image(IMAGE_SHAPE)


# --- The definition -----------------------------------------------------------


def _same(size, kernel, stride):
  """Pixels before and after; of an odd number, the greater part is after."""
  total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
  return total // 2, total - total // 2


def _windows(x, kernel, stride, padding, value=0.0):
  """[h, w, c] -> [new h, new w, kernel, kernel, c], one place after another."""
  if padding == "SAME":
    padding = [_same(size, kernel, stride) for size in x.shape[:2]]
  else:
    padding = [(padding, padding)] * 2
  x = np.pad(x, (*padding, (0, 0)), constant_values=value)
  rows, columns = ((size - kernel) // stride + 1 for size in x.shape[:2])
  return np.stack([np.stack([
      x[i * stride:i * stride + kernel, j * stride:j * stride + kernel]
      for j in range(columns)]) for i in range(rows)])


def _conv(x, p, standardize, stride=1, padding="SAME", groups=1):
  kernel = p["kernel"]
  size, outputs = kernel.shape[0], kernel.shape[3]
  windows = _windows(x, size, stride, padding)
  result = []
  for o in range(outputs):
    # Each output sees the channels of its group only.
    inputs = kernel.shape[2]
    first = o // (outputs // groups) * inputs
    weight = standardize(kernel[..., o])
    result.append((windows[..., first:first + inputs] * weight).sum((2, 3, 4)))
  return np.stack(result, axis=-1)


def _group_norm(x, p, epsilon):
  scale, bias = p["scale"].ravel(), p["bias"].ravel()
  size = x.shape[-1] // 32
  result = np.empty_like(x)
  for first in range(0, x.shape[-1], size):
    part = x[..., first:first + size]
    result[..., first:first + size] = (
        (part - part.mean()) / math.sqrt(part.var() + epsilon))
  return result * scale + bias


def _relu(x):
  return np.where(x > 0, x, 0)


def _numpy_bit(p, image, groups=1):
  """Plain: after each convolution a norm, after the sum a ReLU."""
  conv = functools.partial(
      _conv, standardize=lambda w: (w - w.mean()) / (w.std() + 1e-5))
  norm = functools.partial(_group_norm, epsilon=1e-6)
  x = _relu(norm(conv(image, p["conv_root"], stride=2), p["gn_root"]))
  x = _windows(x, 3, 2, "SAME", -np.inf).max(axis=(2, 3))
  for block, unit in (("block1", "unit1"), ("block2", "unit1"),
                      ("block2", "unit2")):
    q = p[block][unit]
    stride = 2 if (block, unit) == ("block2", "unit1") else 1
    residual = x
    if "conv_proj" in q:
      residual = norm(conv(x, q["conv_proj"], stride=stride), q["gn_proj"])
    x = _relu(norm(conv(x, q["conv1"]), q["gn1"]))
    x = _relu(norm(conv(x, q["conv2"], stride=stride, groups=groups), q["gn2"]))
    x = _relu(residual + norm(conv(x, q["conv3"]), q["gn3"]))
  return x.mean(axis=(0, 1)) @ p["head"]["kernel"] + p["head"]["bias"]


def _numpy_bit_paper(p, image, groups=1, pool_padding="lowest"):
  """Pre-activation: norm and ReLU before each convolution."""
  conv = functools.partial(
      _conv, standardize=lambda w: (w - w.mean()) / math.sqrt(w.var() + 1e-10))
  norm = functools.partial(_group_norm, epsilon=1e-5)
  around = {"lowest": -np.inf, "zero": 0.0}[pool_padding]
  x = conv(image, p["root_block"]["conv_root"], stride=2, padding=3)
  x = _windows(x, 3, 2, 1, around).max(axis=(2, 3))
  for block, unit in (("block1", "unit01"), ("block2", "unit01"),
                      ("block2", "unit02")):
    q = p[block][unit]
    stride = 2 if (block, unit) == ("block2", "unit01") else 1
    y = _relu(norm(x, q["gn1"]))
    if "conv_proj" in q:
      x = conv(y, q["conv_proj"], stride=stride, padding=0)
    y = _relu(norm(conv(y, q["conv1"]), q["gn2"]))
    y = conv(y, q["conv2"], stride=stride, padding=1, groups=groups)
    x = x + conv(_relu(norm(y, q["gn3"])), q["conv3"])
  x = _relu(norm(x, p["norm-pre-head"]))
  return x.mean(axis=(0, 1)) @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.parametrize("form,kw", [
    ("bit", {}), ("bit", dict(groups=4, group_width=16)), ("bit_paper", {}),
    ("bit_paper", dict(groups=2, pool_padding="zero"))], ids=str)
def test_logits_are_those_of_the_definition(form, kw):
  model = FORMS[form].Model(K, **TINY, **kw)
  params, image = drawn.params(model), _image()
  logits, _ = drawn.apply(model, params, image)
  assert logits.dtype == jnp.float32 and np.abs(logits).max() > 0.5
  _check_definition(form, logits, params, image, **kw)


def _check_definition(form, logits, params, image, group_width=None, **kw):
  del group_width  # The parameters say it.
  definition = {"bit": _numpy_bit, "bit_paper": _numpy_bit_paper}[form]
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  for i in range(B):
    np.testing.assert_allclose(
        logits[i], definition(params, image[i].astype(np.float64), **kw),
        rtol=5e-4, atol=5e-4)


@pytest.mark.parametrize("form", FORMS)
def test_epsilons_are_those_of_the_definition(form):
  """Seen only where weights and pixels hardly vary."""
  model = FORMS[form].Model(K, **TINY)
  params, image = drawn.params(model), _image()
  logits, _ = drawn.apply(model, params, image)
  params = tree.map_with_names(
      lambda name, leaf: leaf * np.float32(1e-5 if "conv" in name else 1),
      params)
  image *= 1e-3
  small, _ = drawn.apply(model, params, image)
  assert np.abs(small - logits).max() > 0.1
  _check_definition(form, small, params, image)


def test_padding_of_the_pool_matters_at_the_borders():
  root = drawn.params(bit_paper.Model(K, **TINY))["root_block"]
  stems = [
      drawn.jit(bit_paper.RootBlock(32, padding).apply)(
          {"params": root}, _image())
      for padding in ("lowest", "zero")]
  difference = np.abs(stems[0] - stems[1])
  assert difference.max() > 0.01 and not difference[:, 1:-1, 1:-1].any()


@pytest.mark.parametrize("standardize,divisor", [
    (resnet.standardize_std, 1e-5 + 1e-5),
    (bit_paper.standardize_var, math.sqrt(1e-10 + 1e-10))])
def test_standardized_weights(standardize, divisor):
  kernel = np.random.default_rng(0).normal(size=(3, 2, 4, 6))
  kernel -= kernel.mean(axis=(0, 1, 2))
  kernel /= kernel.std(axis=(0, 1, 2))
  # Whatever scale and offset each output has, away from epsilon.
  scale, offset = np.arange(1, 7), np.arange(6)
  np.testing.assert_allclose(
      drawn.jit(standardize)(scale * kernel + offset), kernel,
      rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
      drawn.jit(standardize)(1e-5 * kernel), kernel * (1e-5 / divisor),
      rtol=1e-3, atol=1e-5)
  # Kernels without any variance have gradients too.
  grad = drawn.jit(jax.grad(lambda w: jnp.sum(standardize(w) ** 2)))
  np.testing.assert_array_equal(grad(jnp.ones((1, 1, 1, 2))), 0)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-5])
def test_group_norm_epsilon_and_large_means(epsilon):
  """Values that hardly vary; a mean that E[x^2] - E[x]^2 does not survive."""
  x = np.random.default_rng(0).normal(size=(2, 5, 4, 64))
  norm = drawn.jit(resnet.GroupNorm(epsilon=epsilon).apply)
  params = {"scale": np.ones(64), "bias": np.zeros(64)}
  for x in (1e-3 * x, x + 1000):
    x = x.astype(np.float32)
    got = norm({"params": params}, x)
    for i in range(2):
      np.testing.assert_allclose(
          got[i], _group_norm(x[i].astype(np.float64), params, epsilon),
          rtol=1e-3, atol=1e-3)


# --- Sizes --------------------------------------------------------------------


def _count(form, num_classes=1000, **kw):
  model = FORMS[form].Model(num_classes, **kw)
  return tree.num_elements(drawn.shapes(model, drawn.image((1, 32, 32, 3))))


# Measured of timm, whose BatchNorm has as many parameters as GroupNorm.
@pytest.mark.parametrize("name,kw,count", [
    ("resnet26", dict(depth=26), 15_995_176),
    ("resnet50", dict(depth=50), 25_557_032),
    ("resnet101", dict(depth=101), 44_549_160),
    ("resnet152", dict(depth=152), 60_192_808),
    ("resnet200", dict(depth=200), 64_673_832),
    ("resnext50_32x4d", dict(groups=32, group_width=4), 25_028_904),
    ("resnext101_64x4d", dict(depth=101, groups=64, group_width=4), 83_455_272),
    ("wide_resnet50_2", dict(group_width=128), 68_883_240)])
def test_parameter_counts(name, kw, count):
  del name
  assert _count("bit", **kw) == count


@pytest.mark.parametrize("depth,width,count", [
    (50, 1, 25_549_352), (50, 3, 217_319_080), (101, 1, 44_541_480),
    (101, 3, 387_934_888), (152, 2, 236_335_208), (152, 4, 936_533_224)])
def test_parameter_counts_of_the_paper(depth, width, count):
  """Of timm's resnetv2_50x1_bit, ..., which read the published files."""
  assert _count("bit_paper", depth=depth, width=width) == count


def test_parameter_names_and_shapes():
  """What published weights depend on."""
  wanted = {"conv_root/kernel": (7, 7, 3, 32), "head/kernel": (256, K),
            "head/bias": (K,)}
  norms = {"gn_root": 32}
  for unit, inputs, mid, proj in (
      ("block1/unit1", 32, 32, True), ("block2/unit1", 128, 64, True),
      ("block2/unit2", 256, 64, False)):
    wanted[f"{unit}/conv1/kernel"] = (1, 1, inputs, mid)
    wanted[f"{unit}/conv2/kernel"] = (3, 3, mid, mid)
    wanted[f"{unit}/conv3/kernel"] = (1, 1, mid, 4 * mid)
    norms.update({f"{unit}/gn1": mid, f"{unit}/gn2": mid,
                  f"{unit}/gn3": 4 * mid})
    if proj:
      wanted[f"{unit}/conv_proj/kernel"] = (1, 1, inputs, 4 * mid)
      norms[f"{unit}/gn_proj"] = 4 * mid
  wanted.update({f"{norm}/{leaf}": (size,) for norm, size in norms.items()
                 for leaf in ("scale", "bias")})
  shapes = dict(tree.flatten_with_names(drawn.shapes(bit.Model(K, **TINY))))
  assert {name: leaf.shape for name, leaf in shapes.items()} == wanted
  assert {str(leaf.dtype) for leaf in shapes.values()} == {"float32"}


def test_parameter_names_and_shapes_of_the_paper():
  wanted = {"root_block/conv_root/kernel": (7, 7, 3, 32),
            "head/kernel": (256, K), "head/bias": (K,)}
  norms = {"norm-pre-head": 256}
  for unit, inputs, mid, proj in (
      ("block1/unit01", 32, 32, True), ("block2/unit01", 128, 64, True),
      ("block2/unit02", 256, 64, False)):
    wanted[f"{unit}/conv1/kernel"] = (1, 1, inputs, mid)
    wanted[f"{unit}/conv2/kernel"] = (3, 3, mid, mid)
    wanted[f"{unit}/conv3/kernel"] = (1, 1, mid, 4 * mid)
    norms.update({f"{unit}/gn1": inputs, f"{unit}/gn2": mid,
                  f"{unit}/gn3": mid})
    if proj:
      wanted[f"{unit}/conv_proj/kernel"] = (1, 1, inputs, 4 * mid)
  wanted.update({f"{norm}/{leaf}": (1, 1, 1, size)
                 for norm, size in norms.items() for leaf in ("scale", "bias")})
  shapes = dict(tree.flatten_with_names(
      drawn.shapes(bit_paper.Model(K, **TINY))))
  assert {name: leaf.shape for name, leaf in shapes.items()} == wanted
  assert {str(leaf.dtype) for leaf in shapes.values()} == {"float32"}


def test_grouped_convolutions_have_fewer_weights():
  shapes = drawn.shapes(bit.Model(K, **TINY, groups=4, group_width=16))
  unit = shapes["block2"]["unit1"]
  assert unit["conv2"]["kernel"].shape == (3, 3, 32, 128)
  assert unit["conv3"]["kernel"].shape == (1, 1, 128, 256)


def test_initial_values():
  """Units start as their residuals, the head at zero."""
  model = bit.Model(K, **TINY)
  params = drawn.jit(model.init)(jax.random.key(0), _image())["params"]
  logits, out = drawn.apply(model, params, _image())
  assert not logits.any()
  units = out["stage2"]
  np.testing.assert_array_equal(units["unit2"], units["unit1"])
  for unit in params["block2"].values():
    assert not unit["gn3"]["scale"].any() and (unit["gn2"]["scale"] == 1).all()
    np.testing.assert_allclose(
        unit["conv2"]["kernel"].std(), (9 * 64) ** -0.5, rtol=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_head_zeroinit(form):
  for head_zeroinit in (True, False):
    model = FORMS[form].Model(
        K, depth=(1,), width=0.5, head_zeroinit=head_zeroinit)
    # Of the program, only what the head needs is compiled.
    head = drawn.jit(lambda model=model: model.init(
        jax.random.key(0), _image()[:, :4, :4])["params"]["head"])()
    assert head["kernel"].any() != head_zeroinit and not head["bias"].any()


def test_depths():
  """A unit has three convolutions, or matrices; the root and the head one."""
  for depth in (26, 50, 101, 152, 200):
    units = resnet.units_per_stage(depth)
    assert len(units) == 4 and 3 * sum(units) + 2 == depth
  # As a config's tuples and lists arrive.
  assert resnet.units_per_stage([3, 5]) == (3, 5)
  assert resnet.units_per_stage((3, 5)) == (3, 5)
  model = bit.Model(K, depth=[1, 2], width=0.5)
  shapes = jax.eval_shape(
      lambda image: model.init(jax.random.key(0), image)["params"], _image())
  assert shapes == drawn.shapes(bit.Model(K, **TINY))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kw,shape,message", [
    (dict(depth=34), IMAGE_SHAPE, r"depth 34; .*\[26, 50, 101, 152, 200\]"),
    (dict(depth=()), IMAGE_SHAPE, r"depth \(\); .*like \[3, 4, 6, 3\]"),
    (dict(depth=(3, 0)), IMAGE_SHAPE, r"depth \(3, 0\)"),
    (dict(depth="50"), IMAGE_SHAPE, "depth '50'"),
    (dict(width=0.3), IMAGE_SHAPE, "width 0.3 makes 19.2 .*multiples of 32"),
    (dict(width=1.01), IMAGE_SHAPE, "width 1.01 makes 64.64 "),
    (dict(width=0), IMAGE_SHAPE, "width 0 makes 0 "),
    (dict(groups=3), IMAGE_SHAPE, "groups 3 .*make 32 .*divide"),
    (dict(groups=0), IMAGE_SHAPE, "groups 0"),
    (dict(group_width=5), IMAGE_SHAPE, "group_width 5 make 5 "),
    (dict(dtype_mm="float16"), IMAGE_SHAPE, "dtype_mm 'float16'.*'bfloat16'"),
    ({}, (19, 27, 3), r"\[b, height, width, channels\].*\[19, 27, 3\]"),
    ({}, (1, 0, 27, 3), r"any size but 0.*\[1, 0, 27, 3\]"),
])
def test_what_cannot_be_is_refused(form, kw, shape, message):
  with pytest.raises(ValueError, match=message):
    drawn.shapes(FORMS[form].Model(K, **{**TINY, **kw}), drawn.image(shape))


def test_unknown_padding_is_refused():
  with pytest.raises(ValueError, match="pool_padding 'zeros'.*'lowest', 'ze"):
    drawn.shapes(bit_paper.Model(K, **TINY, pool_padding="zeros"))


@pytest.mark.parametrize("form", FORMS)
def test_misspelt_argument_of_a_config_is_found(form):
  with pytest.raises(config_lib.ConfigError, match="mean 'depth'"):
    config_lib.call(FORMS[form].Model, {"deph": 50}, "config.model",
                    num_classes=2)


# --- Outputs ------------------------------------------------------------------


@pytest.mark.parametrize("form,shape", [
    ("bit", (1, 19, 27, 3)), ("bit_paper", (1, 19, 27, 3)),
    ("bit", (3, 1, 8, 1)), ("bit_paper", (3, 1, 8, 1))])
def test_out_names_and_shapes(form, shape):
  """Any size of images and any number of channels."""
  model = FORMS[form].Model(K, **TINY)
  logits, out = jax.eval_shape(
      lambda p, x: model.apply({"params": p}, x),
      drawn.shapes(model, drawn.image(shape)), drawn.image(shape))
  b, *size = shape[:3]
  h4, w4 = (math.ceil(side / 4) for side in size)
  h8, w8 = (math.ceil(side / 8) for side in size)
  unit = {"bit": "unit{}", "bit_paper": "unit{:02d}"}[form].format
  wanted = {
      "stem": (b, h4, w4, 32), f"stage1/{unit(1)}": (b, h4, w4, 128),
      f"stage2/{unit(1)}": (b, h8, w8, 256),
      f"stage2/{unit(2)}": (b, h8, w8, 256),
      "pre_logits_2d": (b, h8, w8, 256), "pre_logits": (b, 256),
      "logits_2d": (b, h8, w8, K), "logits": (b, K)}
  if form == "bit_paper":
    wanted["norm_pre_head"] = (b, h8, w8, 256)
  assert {name: leaf.shape
          for name, leaf in tree.flatten_with_names(out)} == wanted
  assert logits.shape == (b, K)


@pytest.mark.parametrize("form", FORMS)
def test_intermediate_values(form):
  model = FORMS[form].Model(K, **TINY)
  logits, out = drawn.apply(model, drawn.params(model), _image())
  np.testing.assert_array_equal(out["logits"], logits)
  np.testing.assert_allclose(
      out["pre_logits_2d"].mean(axis=(1, 2)), out["pre_logits"],
      rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(  # The head is linear.
      out["logits_2d"].mean(axis=(1, 2)), logits, rtol=1e-3, atol=1e-3)
  before = (out["norm_pre_head"] if form == "bit_paper" else
            out["stage2"]["unit2"])
  np.testing.assert_array_equal(out["pre_logits_2d"], _relu(before))


@pytest.mark.parametrize("form", FORMS)
def test_without_classes_the_features_come_out(form):
  model = FORMS[form].Model(None, depth=(1,), width=0.5)
  params = drawn.params(model)
  features, out = drawn.apply(model, params, _image())
  assert "head" not in params and not {"logits", "logits_2d"} & set(out)
  np.testing.assert_array_equal(features, out["pre_logits"])


@pytest.mark.parametrize("form", FORMS)
def test_examples_of_a_batch_do_not_meet(form):
  """Where BatchNorm would let them."""
  model = FORMS[form].Model(K, **TINY)
  params, image = drawn.params(model), _image()
  logits, _ = drawn.apply(model, params, image)
  image[1] = np.nan
  with_nan, _ = drawn.apply(model, params, image)
  assert np.isnan(with_nan[1]).all()
  np.testing.assert_array_equal(logits[0], with_nan[0])


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_computes_and_float32_stays(form):
  kw = dict(depth=(1,), width=0.5)
  model = FORMS[form].Model(K, **kw, dtype_mm="bfloat16")
  params, image = drawn.params(model, scale=0.2), _image()[:, :8, :12]
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"float32"}
  logits, out = drawn.apply(model, params, image)
  for name, leaf in tree.flatten_with_names(out):
    is_early = name.startswith(("stem", "stage"))
    assert leaf.dtype == (jnp.bfloat16 if is_early else jnp.float32), name
  full, _ = drawn.apply(FORMS[form].Model(K, **kw), params, image)
  np.testing.assert_allclose(logits, full, atol=0.05 * np.abs(full).max())
  assert np.abs(logits - full).max() > 0
  def loss(params):
    return jnp.sum(model.apply({"params": params}, image, train=True)[0] ** 2)
  for name, grad in tree.flatten_with_names(drawn.jit(jax.grad(loss))(params)):
    assert grad.dtype == jnp.float32 and np.isfinite(grad).all(), name


@pytest.mark.parametrize("form", FORMS)
def test_sharded_activations_change_nothing(form):
  model = FORMS[form].Model(None, depth=(1,), width=0.5)
  params, image = drawn.params(model), np.concatenate([_image()] * 4)
  wanted, _ = drawn.apply(model, params, image[:2])
  mesh = sharding.make_mesh([("data", 8)])
  with sharding.use(mesh, [("act_batch", "data")]):
    jaxpr = jax.make_jaxpr(
        lambda p: model.apply({"params": p}, image))(params)
    logits, _ = drawn.jit(model.apply)({"params": params}, image)
  assert sum(eqn.primitive.name == "sharding_constraint"
             for eqn in jaxpr.eqns) == 2  # The stem and a unit.
  np.testing.assert_allclose(
      logits, np.concatenate([wanted] * 4), rtol=1e-4, atol=1e-4)
  assert logits.sharding.spec[0] == "data"


# --- Loading ------------------------------------------------------------------


def _save(tmp_path, named):
  path = str(tmp_path / "weights.npz")
  np.savez(path, **named)
  return path


def _check_equal(got, wanted):
  assert dict(tree.flatten_with_names(got)).keys() == dict(
      tree.flatten_with_names(wanted)).keys()
  jax.tree.map(np.testing.assert_array_equal, got, wanted)
  assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prefix,dtype", [
    ("", np.float32), ("params/", ml_dtypes.bfloat16),
    ("opt/target/", np.float32)])
def test_loading_round_trip(tmp_path, form, prefix, dtype):
  model = FORMS[form].Model(K, **TINY)
  params = drawn.params(model)
  path = _save(tmp_path, {
      prefix + name: leaf.astype(dtype)
      for name, leaf in tree.flatten_with_names(params)})
  _check_equal(
      FORMS[form].load(drawn.shapes(model), path, TINY),
      jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), params))


def test_group_norm_of_older_files_is_squeezed_before_it_is_compared(tmp_path):
  model = bit.Model(K, **TINY)
  params = drawn.params(model)
  path = _save(tmp_path, {
      name: leaf.reshape(1, 1, 1, -1) if "gn" in name else leaf
      for name, leaf in tree.flatten_with_names(params)})
  _check_equal(bit.load(drawn.shapes(model), path, TINY), params)


def _tensorflow_names(params, numbered=False):
  """{name: array} in the layout of the files of the paper."""
  named, count = {}, 0
  for name, leaf in tree.flatten_with_names(params):
    *parents, part, last = name.split("/")
    conv = "standardized_conv2d"
    if numbered and part.startswith("conv"):
      conv, count = f"{conv}_{count}", count + 1
    last = {"scale": "gamma", "bias": "beta"}.get(last, last)
    if part == "head":
      last = name.split("/")[1]
      new, leaf = f"head/conv2d/{last}", (
          leaf[None, None] if last == "kernel" else leaf)
    elif part == "norm-pre-head":
      new, leaf = f"group_norm/{last}", leaf.ravel()
    elif part == "conv_root":
      new = f"root_block/{conv}/kernel"
    elif part == "conv_proj":
      new = "/".join([*parents, "a/proj", conv, "kernel"])
    elif part.startswith("conv"):
      new = "/".join([*parents, "abc"[int(part[-1]) - 1], conv, "kernel"])
    else:
      new = "/".join([*parents, "abc"[int(part[-1]) - 1], "group_norm", last])
      leaf = leaf.ravel()
    named[f"resnet/{new}"] = leaf
  return named


@pytest.mark.parametrize("numbered", [False, True])
def test_files_of_the_paper(tmp_path, numbered):
  model = bit_paper.Model(K, **TINY)
  params = drawn.params(model)
  named = _tensorflow_names(params, numbered)
  assert "resnet/block2/unit02/c/group_norm/gamma" in named
  assert ("resnet/root_block/standardized_conv2d/kernel" in named) != numbered
  _check_equal(bit_paper.load(
      drawn.shapes(model), _save(tmp_path, named), TINY), params)
  named["resnet/block1/unit01/d/group_norm/gamma"] = np.ones(32, np.float32)
  with pytest.raises(ValueError, match="'block1/unit01/d/group_norm/gamma' is"):
    bit_paper.load(drawn.shapes(model), _save(tmp_path, named), TINY)


@pytest.mark.parametrize("form", FORMS)
def test_loading_for_other_classes(tmp_path, form):
  params = drawn.params(FORMS[form].Model(7, **TINY))
  path = _save(tmp_path, dict(tree.flatten_with_names(params)))
  shapes = drawn.shapes(FORMS[form].Model(K, **TINY))
  with pytest.raises(ValueError, match=r"head/kernel is float32\[256, 7\]"):
    FORMS[form].load(shapes, path, TINY)
  loaded = FORMS[form].load(shapes, path, TINY, dont_load=["head/.*"])
  assert loaded.pop("head")["kernel"] is shapes["head"]["kernel"]
  params.pop("head")
  _check_equal(loaded, params)


def test_published_names(monkeypatch):
  paths = []
  def read(path):
    paths.append(path)
    return {}
  monkeypatch.setattr(weights, "read", read)
  for name, cfg, file in (
      ("M", dict(depth=152, width=2), "BiT-M-R152x2.npz"),
      ("S", {}, "BiT-S-R50x1.npz"),
      ("M-imagenet2012", dict(depth=101, width=3.0),
       "BiT-M-R101x3-ILSVRC2012.npz"),
      ("M-run0-caltech101", dict(depth=50, width=1),
       "BiT-M-R50x1-run0-caltech101.npz"),
      ("FunMatch-224px-i1k82.8", {}, "distill/R50x1_224.npz"),
      ("FunMatch-160px-i1k80.5", {}, "distill/R50x1_160.npz"),
      ("BiT-M R152x2 imagenet2012 rc384", {}, "distill/R152x2_T_384.npz")):
    bit_paper.load({}, name, cfg)
    assert paths.pop() == f"gs://bit_models/{file}"
  # A file whose name begins with such a letter is still a file.
  for name in "M-mine.npz", "M-mine.safetensors":
    bit_paper.load({}, name, {})
    assert paths.pop() == name
  with pytest.raises(ValueError, match=r"\(50, 3\).*the model has \(26, 1\)"):
    bit_paper.load({}, "M", dict(depth=26))
  with pytest.raises(ValueError, match="'FunMatch'.*'M-imagenet2012', 'S'"):
    bit_paper.load({}, "FunMatch", {})


# --- timm's -------------------------------------------------------------------


def _logits_of_timm(model):
  torch, _ = peers.import_timm()
  with torch.no_grad():
    return model.eval()(torch.from_numpy(
        _image().transpose(0, 3, 1, 2).copy())).numpy()


SIZES_OF_TIMM = dict(layers=[1, 2], channels=(128, 256), stem_chs=32,
                     num_classes=K)


@pytest.mark.peer
@pytest.mark.parametrize("pool_padding,stem_type", [
    ("zero", "fixed"), ("lowest", "")])
def test_logits_of_the_paper_are_those_of_timm(
    tmp_path, pool_padding, stem_type):
  """timm reads the files of the paper by itself."""
  _, timm = peers.import_timm()
  model = bit_paper.Model(K, **TINY, pool_padding=pool_padding)
  params = drawn.params(model)
  path = _save(tmp_path, _tensorflow_names(params))
  logits, _ = drawn.apply(
      model, bit_paper.load(drawn.shapes(model), path, TINY), _image())
  theirs = timm.models.resnetv2.ResNetV2(
      **SIZES_OF_TIMM, stem_type=stem_type,
      conv_layer=functools.partial(timm.layers.StdConv2d, eps=1e-10))
  theirs.load_pretrained(path)
  assert np.abs(logits).max() > 0.5
  np.testing.assert_allclose(
      logits, _logits_of_timm(theirs), rtol=1e-3, atol=1e-3)


@pytest.mark.peer
def test_logits_of_the_plain_form_are_those_of_timm():
  torch, timm = peers.import_timm()
  model = bit.Model(K, **TINY)
  params = drawn.params(model)
  theirs = timm.models.resnetv2.ResNetV2(
      **SIZES_OF_TIMM, stem_type="same", preact=False,
      conv_layer=functools.partial(timm.layers.StdConv2dSame, eps=1e-10),
      norm_layer=functools.partial(
          timm.layers.GroupNormAct, num_groups=32, eps=1e-6))
  state = {}
  for name, leaf in tree.flatten_with_names(params):
    for ours, others in (
        ("conv_root", "stem/conv"), ("gn_root", "stem/norm"),
        ("conv_proj", "downsample/conv"), ("gn_proj", "downsample/norm"),
        ("head", "head/fc"), ("/gn", "/norm"), ("kernel", "weight"),
        ("scale", "weight")):
      name = name.replace(ours, others)
    for i in (1, 2):
      for j in (1, 2):
        name = name.replace(
            f"block{i}/unit{j}/", f"stages/{i - 1}/blocks/{j - 1}/")
    if leaf.ndim == 2:
      leaf = leaf[None, None]
    if leaf.ndim == 4:
      leaf = leaf.transpose(3, 2, 0, 1)
    state[name.replace("/", ".")] = torch.from_numpy(leaf.copy())
  theirs.load_state_dict(state)
  logits, _ = drawn.apply(model, params, _image())
  # timm adds its epsilon to the variance: hardly a difference at this scale.
  np.testing.assert_allclose(
      logits, _logits_of_timm(theirs), rtol=1e-3, atol=1e-3)


@pytest.mark.peer
@pytest.mark.parametrize("name,form,kw", [
    ("resnet26", "bit", dict(depth=26)), ("resnet200", "bit", dict(depth=200)),
    ("resnext50_32x4d", "bit", dict(groups=32, group_width=4)),
    ("wide_resnet50_2", "bit", dict(group_width=128)),
    ("resnetv2_50x1_bit", "bit_paper", dict(depth=50)),
    ("resnetv2_152x4_bit", "bit_paper", dict(depth=152, width=4))])
def test_parameter_counts_are_those_of_timm(name, form, kw):
  torch, timm = peers.import_timm()
  with torch.device("meta"):
    model = timm.create_model(name, pretrained=False, num_classes=1000)
  assert sum(p.numel() for p in model.parameters()) == _count(form, **kw)
