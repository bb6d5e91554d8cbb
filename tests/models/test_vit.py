"""The ViT against its definition in NumPy, float64, without any layers."""

import math

from big_vision import config as config_lib
from big_vision import sharding
from big_vision import tree
from big_vision import weights
from big_vision.layers import posemb
from big_vision.layers import rematerialization
from big_vision.layers import stochastic_depth
from big_vision.layers import transformer
from big_vision.models import vit
import flax.errors
import jax
from jax import ad_checkpoint
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
import scipy.special

from tests import drawn

# For images of drawn.IMAGE_SHAPE.
TINY = dict(patch_size=(4, 2), width=8, depth=2, num_heads=2, mlp_dim=12)
B, H, W, D, K = 3, 2, 3, 8, 5


def _names(out):
  return {name for name, _ in tree.flatten_with_names(out)}


# --- The definition -----------------------------------------------------------


def _dense(x, p):
  return x @ p["kernel"] + p["bias"]


def _layer_norm(x, p):
  mean = x.mean(axis=-1, keepdims=True)
  var = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
  return (x - mean) / np.sqrt(var + 1e-6) * p["scale"] + p["bias"]


def _mlp(x, p, gelu):
  x = _dense(x, p["Dense_0"])
  if gelu == "erf":
    x = x * 0.5 * (1 + scipy.special.erf(x / math.sqrt(2)))
  else:
    x = x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
  return _dense(x, p["Dense_1"])


def _attention(x, x_kv, p):
  """One example, [n, d]; one head after the other."""
  total = p["out"]["bias"].copy()[None]
  for head in range(p["query"]["bias"].shape[0]):
    q, k, v = (t @ p[name]["kernel"][:, head] + p[name]["bias"][head]
               for name, t in (("query", x), ("key", x_kv), ("value", x_kv)))
    logits = q @ k.T / math.sqrt(q.shape[1])
    table = np.exp(logits - logits.max(axis=1, keepdims=True))
    table /= table.sum(axis=1, keepdims=True)
    total = total + table @ v @ p["out"]["kernel"][head]
  return total


def _sincos(h, w, d):
  posemb = np.zeros((h * w, d))
  for y in range(h):
    for x in range(w):
      for i in range(d // 4):
        omega = 10_000 ** (-i / (d // 4 - 1))
        posemb[y * w + x, [i, i + d // 4, i + d // 2, i + 3 * d // 4]] = [
            math.sin(x * omega), math.cos(x * omega),
            math.sin(y * omega), math.cos(y * omega)]
  return posemb


def _numpy_vit(params, image, *, pool_type, posemb="learn", gelu="tanh",
               patch_size=(4, 2)):
  """Logits [k] of one image [height, width, c]."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  ph, pw = patch_size
  h, w = image.shape[0] // ph, image.shape[1] // pw
  # A patch is flattened as (row, column, channel).
  x = np.stack([
      image[y * ph:(y + 1) * ph, x * pw:(x + 1) * pw].reshape(-1)
      @ p["embedding"]["kernel"].reshape(ph * pw * image.shape[2], -1)
      for y in range(h) for x in range(w)]) + p["embedding"]["bias"]
  x = x + (p["pos_embedding"][0] if posemb == "learn"
           else _sincos(h, w, x.shape[1]))
  if pool_type == "tok":  # After the position embedding.
    x = np.concatenate([p["cls"][0], x])
  encoder = p["Transformer"]
  for i in range(len(encoder) - 1):
    block = encoder[f"encoderblock_{i}"]
    y = _layer_norm(x, block["LayerNorm_0"])
    x = x + _attention(y, y, block["MultiHeadDotProductAttention_0"])
    x = x + _mlp(_layer_norm(x, block["LayerNorm_1"]), block["MlpBlock_0"],
                 gelu)
  x = _layer_norm(x, encoder["encoder_norm"])
  if pool_type == "gap":  # After the LayerNorm.
    x = x.mean(axis=0)
  elif pool_type in ("tok", "0"):
    x = x[0]
  elif pool_type == "map":  # With LayerNorm, MLP and residual.
    head = p["MAPHead_0"]
    x = _attention(head["probe"][0], x, head["MultiHeadDotProductAttention_0"])
    x = (x + _mlp(_layer_norm(x, head["LayerNorm_0"]), head["MlpBlock_0"],
                  gelu))[0]
  if "pre_logits" in p:
    x = np.tanh(_dense(x, p["pre_logits"]))
  return _dense(x, p["head"])


@pytest.mark.parametrize("kw", [
    dict(pool_type="gap"), dict(pool_type="map"), dict(pool_type="tok"),
    dict(pool_type="0"), dict(pool_type="none"),
    dict(pool_type="gap", posemb="sincos2d", rep_size=True),
    dict(pool_type="tok", posemb="sincos2d", rep_size=6),
    dict(pool_type="map", gelu="erf"),
    dict(pool_type="gap", scan=True, attention="xla"),
], ids=str)
def test_logits_are_those_of_the_definition(kw):
  model = vit.Model(K, **{**TINY, **kw})
  params, image = drawn.params(model), drawn.image()
  logits, _ = drawn.apply(model, params, image)
  assert logits.dtype == jnp.float32
  if kw.pop("scan", False):
    params["Transformer"] = weights.unstack_blocks(params["Transformer"])
  for name in ("rep_size", "attention"):
    kw.pop(name, None)
  for i in range(B):
    np.testing.assert_allclose(
        logits[i], _numpy_vit(params, image[i].astype(np.float64), **kw),
        rtol=2e-4, atol=2e-4)


def test_layer_norm_epsilon_is_1e6():
  """The epsilon only shows where tokens hardly vary."""
  model = vit.Model(K, **TINY, pool_type="0")
  params = drawn.params(model)
  small = lambda leaf: leaf * np.float32(1e-3)
  params["embedding"] = jax.tree.map(small, params["embedding"])
  params["pos_embedding"] = small(params["pos_embedding"])
  logits, _ = drawn.apply(model, params, drawn.image())
  wanted = _numpy_vit(
      params, drawn.image()[0].astype(np.float64), pool_type="0")
  np.testing.assert_allclose(logits[0], wanted, rtol=1e-3, atol=1e-3)


def test_two_gelus_are_different_functions():
  x = jnp.linspace(-4, 4, 801)
  module = lambda gelu: transformer.MlpBlock(801, gelu=gelu)
  eye = {"kernel": jnp.eye(801), "bias": jnp.zeros(801)}
  params = {"params": {"Dense_0": eye, "Dense_1": eye}}
  difference = np.abs(module("tanh").apply(params, x) -
                      module("erf").apply(params, x)).max()
  np.testing.assert_allclose(difference, 4.7e-4, rtol=0.03)


# --- Sizes --------------------------------------------------------------------


def _count(num_classes=None, res=224, **kw):
  # `scan` traces one block only.
  model = vit.Model(num_classes, scan=True, **kw)
  return tree.num_elements(drawn.shapes(model, drawn.image((1, res, res, 3))))


@pytest.mark.parametrize("variant,count", [
    ("Ti/16", 5_717_224), ("S/16", 22_050_280), ("B/16", 86_566_888),
    ("B/32", 88_224_232 - 768), ("L/16", 304_325_608)])
def test_parameter_counts_with_class_token(variant, count):
  """timm has `width` more: a position embedding of the class token."""
  assert _count(1000, variant=variant, pool_type="tok") == count


def test_parameter_count_of_the_plain_s16():
  assert _count(1000, variant="S/16", posemb="sincos2d",
                rep_size=True) == 22_122_472


@pytest.mark.parametrize("variant,millions", [
    ("mu/16", 0.044), ("Ti/16", 5.52), ("S/16", 21.66), ("S/32", 22.49),
    ("M/16", 38.3), ("B/32", 87.45), ("B/16", 85.80), ("B/8", 85.81),
    ("L/16", 303.3), ("So400m/14", 412.4), ("H/14", 630.8), ("g/14", 1011),
    ("g-opt/16", 1135), ("G/14", 1843), ("G-opt/14", 1663), ("e/14", 3805)])
def test_parameter_counts_of_variants(variant, millions):
  digits = len(str(millions).partition(".")[2])
  tolerance = 1.0001 if digits == 0 else 0.5001 * 10 ** -digits
  assert abs(_count(variant=variant) / 1e6 - millions) < tolerance


def test_scan_has_as_many_parameters_as_the_loop():
  loop = vit.Model(10, variant="Ti/16", pool_type="map")
  assert (tree.num_elements(drawn.shapes(loop, drawn.image((1, 32, 32, 3)))) ==
          _count(10, res=32, variant="Ti/16", pool_type="map"))


def test_parameter_names_and_shapes():
  """Published weights depend on these names and shapes."""
  model = vit.Model(K, **TINY, pool_type="map", rep_size=True)
  attention = {
      **{f"{name}/kernel": (D, 2, 4) for name in ("query", "key", "value")},
      **{f"{name}/bias": (2, 4) for name in ("query", "key", "value")},
      "out/kernel": (2, 4, D), "out/bias": (D,)}
  mlp = {"Dense_0/kernel": (D, 12), "Dense_0/bias": (12,),
         "Dense_1/kernel": (12, D), "Dense_1/bias": (D,)}
  norm = {"scale": (D,), "bias": (D,)}
  wanted = {
      "embedding/kernel": (4, 2, 3, D), "embedding/bias": (D,),
      "pos_embedding": (1, H * W, D), "MAPHead_0/probe": (1, 1, D),
      "pre_logits/kernel": (D, D), "pre_logits/bias": (D,),
      "head/kernel": (D, K), "head/bias": (K,)}
  for i in range(2):
    block = f"Transformer/encoderblock_{i}"
    for name, parts in (("LayerNorm_0", norm), ("LayerNorm_1", norm),
                        ("MultiHeadDotProductAttention_0", attention),
                        ("MlpBlock_0", mlp)):
      wanted.update({f"{block}/{name}/{k}": v for k, v in parts.items()})
  for name, parts in (
      ("Transformer/encoder_norm", norm), ("MAPHead_0/LayerNorm_0", norm),
      ("MAPHead_0/MultiHeadDotProductAttention_0", attention),
      ("MAPHead_0/MlpBlock_0", mlp)):
    wanted.update({f"{name}/{k}": v for k, v in parts.items()})
  shapes = dict(tree.flatten_with_names(drawn.shapes(model)))
  assert {name: leaf.shape for name, leaf in shapes.items()} == wanted
  assert {str(leaf.dtype) for leaf in shapes.values()} == {"float32"}
  with_cls = drawn.shapes(vit.Model(K, **TINY, pool_type="tok"))
  assert with_cls["cls"].shape == (1, 1, D)
  assert with_cls["pos_embedding"].shape == (1, H * W, D)


def test_initial_values():
  model = vit.Model(K, patch_size=8, width=64, depth=1, num_heads=4,
                    mlp_dim=128, pool_type="map", rep_size=True)
  params = dict(tree.flatten_with_names(drawn.jit(model.init)(
      jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]))
  block = "Transformer/encoderblock_0"
  def within(name, bound):
    assert 0.95 * bound < np.abs(params[name]).max() <= bound, name
  attention = f"{block}/MultiHeadDotProductAttention_0"
  for name in ("query", "key", "value", "out"):  # Xavier, over all heads.
    within(f"{attention}/{name}/kernel", math.sqrt(6 / (64 + 64)))
    assert not params[f"{attention}/{name}/bias"].any()
  for name in ("Dense_0", "Dense_1"):
    within(f"{block}/MlpBlock_0/{name}/kernel", math.sqrt(6 / (64 + 128)))
    np.testing.assert_allclose(
        params[f"{block}/MlpBlock_0/{name}/bias"].std(), 1e-6, rtol=0.3)
  within("MAPHead_0/probe", math.sqrt(6 / (1 + 64)))
  np.testing.assert_allclose(
      params["pos_embedding"].std(), 1 / math.sqrt(64), rtol=0.05)
  np.testing.assert_allclose(
      params["embedding/kernel"].std(), 1 / math.sqrt(8 * 8 * 3), rtol=0.05)
  assert not params["head/kernel"].any()
  other = vit.Model(K, **TINY, head_zeroinit=False)
  params = drawn.jit(other.init)(jax.random.key(0), drawn.image())["params"]
  head = params["head"]
  assert head["kernel"].any() and not head["bias"].any()


def test_variants():
  assert vit.decode_variant(None) == {}
  assert vit.decode_variant("g-opt/16") == dict(
      width=1536, depth=40, mlp_dim=6144, num_heads=16, patch_size=(16, 16))
  assert vit.decode_variant("Ti/14x10")["patch_size"] == (14, 10)
  assert "patch_size" not in vit.decode_variant("B")
  assert vit.Model(variant="S/16", depth=3).depth == 3
  for bad in ("X/16", "S16", "S/", "S/16x", "s/16", ""):
    with pytest.raises(ValueError, match=f"variant '{bad}'.*'mu', 'Ti', 'S'"):
      vit.decode_variant(bad)


def test_misspelt_argument_of_a_config_is_found():
  for wrong, right in (("varient", "variant"), ("pool", "pool_type")):
    with pytest.raises(config_lib.ConfigError, match=f"mean '{right}'"):
      config_lib.call(vit.Model, {wrong: "B/16"}, "config.model", num_classes=2)


# --- Outputs ------------------------------------------------------------------


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("pool_type", vit.POOL_TYPES)
def test_out_names_and_shapes(pool_type, scan):
  model = vit.Model(K, **TINY, pool_type=pool_type, rep_size=6, scan=scan)
  spec = jax.ShapeDtypeStruct(drawn.IMAGE_SHAPE, jnp.float32)
  logits, out = jax.eval_shape(
      lambda p, x: model.apply({"params": p}, x), drawn.shapes(model), spec)
  n = H * W + (pool_type == "tok")
  tokens = lambda c: (B, H * W, c) if pool_type == "none" else (B, c)
  assert {name: leaf.shape for name, leaf in tree.flatten_with_names(out)} == {
      "stem": (B, H, W, D), "with_posemb": (B, H * W, D),
      **{f"encoder/block{i:02d}/{name}": (B, n, D) for i in range(2)
         for name in ("sa", "+sa", "mlp", "+mlp")},
      "encoder/pre_ln": (B, n, D), "encoded": (B, n, D),
      "head_input": tokens(D), "pre_logits_2d": (B, H, W, 6),
      "pre_logits": tokens(6), "logits_2d": (B, H, W, K), "logits": tokens(K)}
  assert logits.shape == tokens(K)


def test_without_classes_the_features_come_out():
  model = vit.Model(None, **TINY)
  params = drawn.params(model)
  features, out = drawn.apply(model, params, drawn.image())
  assert "head" not in params and "logits" not in _names(out)
  np.testing.assert_array_equal(features, out["head_input"])


def test_intermediate_values():
  model = vit.Model(K, **TINY, pool_type="tok")
  params = drawn.params(model)
  logits, out = drawn.apply(model, params, drawn.image())
  encoder = out["encoder"]
  np.testing.assert_allclose(
      encoder["block01"]["+sa"],
      encoder["block00"]["+mlp"] + encoder["block01"]["sa"], rtol=1e-5)
  np.testing.assert_allclose(
      encoder["block01"]["+mlp"],
      encoder["block01"]["+sa"] + encoder["block01"]["mlp"], rtol=1e-5)
  np.testing.assert_array_equal(encoder["pre_ln"], encoder["block01"]["+mlp"])
  norm = params["Transformer"]["encoder_norm"]
  np.testing.assert_allclose(
      out["encoded"], _layer_norm(np.asarray(encoder["pre_ln"]), norm),
      rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(out["head_input"], out["encoded"][:, 0])
  np.testing.assert_array_equal(out["logits"], logits)
  np.testing.assert_allclose(
      out["logits_2d"].reshape(B, -1, K),
      _dense(np.asarray(out["encoded"])[:, 1:], params["head"]),
      rtol=1e-4, atol=1e-4)


def test_pooling_by_mean_is_after_the_norm_and_without_class_token():
  model = vit.Model(K, **TINY, pool_type="gap")
  params = drawn.params(model)
  _, out = drawn.apply(model, params, drawn.image())
  before = np.asarray(out["encoder"]["pre_ln"])
  norm = params["Transformer"]["encoder_norm"]
  after = _layer_norm(before, norm).mean(axis=1)
  assert np.abs(after - _layer_norm(before.mean(axis=1), norm)).max() > 0.05
  np.testing.assert_allclose(out["head_input"], after, rtol=1e-4, atol=1e-4)
  assert "cls" not in params
  # Equal tokens: then the mean is each of them.
  params["pos_embedding"] = 0 * params["pos_embedding"]
  _, out = drawn.apply(model, params, np.ones(drawn.IMAGE_SHAPE, np.float32))
  np.testing.assert_allclose(
      out["head_input"], out["encoded"][:, 0], rtol=1e-4, atol=1e-5)


def test_sincos2d_is_its_definition():
  for h, w, d in ((2, 3, 8), (1, 4, 12), (7, 7, 64)):
    np.testing.assert_allclose(
        posemb.sincos2d(h, w, d)[0], _sincos(h, w, d), atol=2e-6)
  for width in (4, 10):
    with pytest.raises(ValueError, match=f"multiple of 4.*it is {width}"):
      posemb.sincos2d(2, 2, width)


@pytest.mark.parametrize("pool_type", ["gap", "map", "tok"])
def test_examples_of_a_batch_do_not_meet(pool_type):
  model = vit.Model(K, **TINY, pool_type=pool_type)
  params, image = drawn.params(model), drawn.image()
  logits, _ = drawn.apply(model, params, image)
  image[1] = np.nan
  with_nan, _ = drawn.apply(model, params, image)
  assert np.isnan(with_nan[1]).all()
  np.testing.assert_array_equal(logits[::2], with_nan[::2])


@pytest.mark.parametrize("kw,shape,message", [
    ({}, (1, 9, 6, 3), r"multiples of patch_size \(4, 2\).*\[1, 9, 6, 3\]"),
    ({}, (1, 8, 5, 3), r"multiples of patch_size \(4, 2\).*\[1, 8, 5, 3\]"),
    ({}, (8, 6, 3), r"\[b, height, width, channels\].*\[8, 6, 3\]"),
    (dict(patch_size=5), (1, 10, 8, 3), r"patch_size \(5, 5\)"),
    (dict(patch_size=0), (1, 8, 6, 3), "patch_size must be .* it is 0"),
    (dict(pool_type="gpa"), (1, 8, 6, 3),
     "Unknown pool_type 'gpa' .did you mean 'gap'"),
    (dict(posemb="sincos"), (1, 8, 6, 3), "Unknown posemb 'sincos'.*'learn'"),
    (dict(gelu="exact"), (1, 8, 6, 3), "Unknown gelu 'exact'"),
    (dict(dtype_mm="float16"), (1, 8, 6, 3), "dtype_mm 'float16'.*'bfloat16'"),
    (dict(remat_policy="all"), (1, 8, 6, 3), "remat_policy 'all'.*'none'"),
    (dict(attention="flash"), (1, 8, 6, 3), "attention 'flash'.*'dense'"),
    (dict(num_heads=3), (1, 8, 6, 3), "width 8 .*num_heads 3"),
    (dict(stoch_depth=1.0), (1, 8, 6, 3), "stoch_depth must be in"),
    (dict(stoch_depth=0.1, stoch_depth_mode="huge"), (1, 8, 6, 3),
     "stoch_depth_mode 'huge'"),
])
def test_what_cannot_be_is_refused(kw, shape, message):
  with pytest.raises(ValueError, match=message):
    drawn.shapes(vit.Model(K, **{**TINY, **kw}), drawn.image(shape))


def test_remat_policies_exist():
  for policy in rematerialization.REMAT_POLICIES:
    assert policy == "none" or hasattr(jax.checkpoint_policies, policy)


# --- Scan, rematerialization, number formats ----------------------------------


def _loss_and_grads(model, params, image, **kw):
  def loss(params):
    logits, _ = model.apply({"params": params}, image, **kw)
    return jnp.sum(logits ** 2)
  return drawn.jit(jax.value_and_grad(loss))(params)


def test_scan_is_the_loop():
  kw = {**TINY, "depth": 3, "pool_type": "map"}
  loop, scan = vit.Model(K, **kw), vit.Model(K, **kw, scan=True)
  params, image = drawn.params(loop), drawn.image()
  stacked = {
      **params, "Transformer": weights.stack_blocks(params["Transformer"])}
  assert (jax.tree.map(np.shape, stacked) ==
          jax.tree.map(lambda leaf: leaf.shape, drawn.shapes(scan)))
  logits, out = drawn.apply(loop, params, image)
  scan_logits, scan_out = drawn.apply(scan, stacked, image)
  np.testing.assert_allclose(scan_logits, logits, rtol=1e-6, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=1e-5), scan_out, out)
  back = weights.unstack_blocks(stacked["Transformer"])
  jax.tree.map(np.testing.assert_array_equal, back, params["Transformer"])


@pytest.mark.parametrize("scan", [False, True])
def test_rematerialization_saves_memory_and_changes_no_gradient(scan, capsys):
  image, rngs = drawn.image(), {"dropout": jax.random.key(1)}
  params, grads, num_saved = None, {}, {}
  for policy in ("none", "dots_saveable", "nothing_saveable"):
    model = vit.Model(K, **TINY, scan=scan, stoch_depth=0.5,
                      remat_policy=policy)
    params = params or drawn.params(model)
    ad_checkpoint.print_saved_residuals(
        lambda p, model=model: model.apply(
            {"params": p}, image, train=True, rngs=rngs)[0], params)
    num_saved[policy] = len(capsys.readouterr().out.splitlines())
    if policy != "dots_saveable":
      grads[policy] = _loss_and_grads(
          model, params, image, train=True, rngs=rngs)
  assert (num_saved["nothing_saveable"] < num_saved["dots_saveable"]
          < num_saved["none"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=1e-4), grads["nothing_saveable"], grads["none"])


@pytest.mark.parametrize("kw", [
    dict(pool_type="gap", rep_size=True, scan=True),
    dict(pool_type="map", attention="xla", depth=1)], ids=str)
def test_bfloat16_computes_and_float32_stays(kw):
  kw, image = {**TINY, **kw}, drawn.image()
  model = vit.Model(K, **kw, dtype_mm="bfloat16")
  params = drawn.params(model, scale=0.2)
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"float32"}
  logits, out = drawn.apply(model, params, image)
  dtypes = {name: str(x.dtype) for name, x in tree.flatten_with_names(out)}
  for name in ("stem", "with_posemb", "encoder/block00/sa",
               "encoder/block00/+mlp"):
    assert dtypes[name] == "bfloat16", name
  for name in ("encoded", "head_input", "pre_logits", "logits", "logits_2d"):
    assert dtypes[name] == "float32", name
  full, _ = drawn.apply(vit.Model(K, **kw), params, image)
  np.testing.assert_allclose(logits, full, atol=0.05 * np.abs(full).max())
  assert np.abs(logits - full).max() > 0
  _, grads = _loss_and_grads(model, params, image)
  for name, grad in tree.flatten_with_names(grads):
    assert grad.dtype == jnp.float32 and np.isfinite(grad).all(), name


def test_huge_attention_logits_stay_finite_in_bfloat16():
  model = vit.Model(K, **TINY, dtype_mm="bfloat16")
  params = drawn.params(model)
  for block in ("encoderblock_0", "encoderblock_1"):
    attention = params["Transformer"][block]["MultiHeadDotProductAttention_0"]
    attention["query"]["kernel"] *= 1e3
  logits, _ = drawn.apply(model, params, drawn.image())
  assert np.isfinite(logits).all()


# --- Randomness ---------------------------------------------------------------


def test_rates_of_stochastic_depth():
  """The first block is always kept."""
  np.testing.assert_allclose(
      stochastic_depth.rates(0.3, 4), [0, 0.1, 0.2, 0.3])
  assert stochastic_depth.rates(0.3, 1) == [0]


@pytest.mark.parametrize("mode,is_unbiased", [
    ("inverted", True), ("bigvision", False)])
def test_expectation_of_a_dropped_branch(mode, is_unbiased):
  """The mode of published Mixers does not rescale, so its mean is off."""
  rate, x = 0.3, 2 * jnp.ones((10_000, 1))
  trained = stochastic_depth.drop_branch(
      x, rate, jax.random.key(0), mode=mode, train=True)
  evaluated = stochastic_depth.drop_branch(
      x, rate, None, mode=mode, train=False)
  error = trained.std() / math.sqrt(len(x))
  assert (abs(trained.mean() - evaluated.mean()) < 3 * error) == is_unbiased
  assert abs((trained == 0).mean() - rate) < 0.02


@pytest.mark.parametrize("mode, factor", [("inverted", 2), ("bigvision", 1)])
def test_modes_reach_the_blocks(mode, factor):
  model = vit.Model(K, **TINY, stoch_depth=0.5, stoch_depth_mode=mode)
  image = np.concatenate([drawn.image()] * 10)
  _, out = drawn.jit(lambda params: model.apply(
      {"params": params}, image, train=True,
      rngs={"dropout": jax.random.key(0)}))(drawn.params(model))
  encoder = out["encoder"]
  added = encoder["block01"]["+sa"] - encoder["block00"]["+mlp"]
  kept = np.abs(added).max(axis=(1, 2)) > 0
  assert 0 < kept.sum() < len(image)
  np.testing.assert_allclose(
      added[kept], factor * encoder["block01"]["sa"][kept], rtol=1e-3,
      atol=1e-4)


@pytest.mark.parametrize("scan", [False, True])
def test_stochastic_depth_is_per_example_and_per_branch(scan):
  num = 1000
  model = vit.Model(None, **{**TINY, "depth": 3}, stoch_depth=0.5, scan=scan)
  params = drawn.params(model)
  image = np.repeat(drawn.image()[:1], num, axis=0)
  _, out = drawn.jit(lambda p: model.apply(
      {"params": p}, image, train=True,
      rngs={"dropout": jax.random.key(0)}))(params)
  encoder = out["encoder"]
  kept = {}
  before = out["with_posemb"]
  for i in range(3):
    block = encoder[f"block{i:02d}"]
    for name in ("sa", "mlp"):
      ratio = (block[f"+{name}"] - before) / block[name]
      kept[i, name] = np.asarray(jnp.median(ratio, axis=(1, 2)))
      # Within an example, all tokens and channels share their fate.
      scale = 1 / (1 - 0.25 * i)
      fate = np.where(kept[i, name] > 0.5, scale, 0)[:, None, None]
      np.testing.assert_allclose(
          block[f"+{name}"], before + fate * block[name], rtol=1e-3, atol=1e-3)
      before = block[f"+{name}"]
  assert (kept[0, "sa"] > 0.5).all() and (kept[0, "mlp"] > 0.5).all()
  draws = np.stack([kept[i, name] > 0.5 for i in (1, 2)
                    for name in ("sa", "mlp")]).astype(float)
  np.testing.assert_allclose(draws.mean(axis=1), [0.75, 0.75, 0.5, 0.5],
                             atol=4 * 0.5 / math.sqrt(num))
  correlation = np.corrcoef(draws) - np.eye(4)
  assert np.abs(correlation).max() < 4 / math.sqrt(num)


@pytest.mark.parametrize("kw", [dict(dropout=0.5), dict(stoch_depth=0.5)])
def test_training_draws_from_its_rng_and_evaluation_does_not(kw):
  model, image = vit.Model(K, **TINY, **kw), np.concatenate([drawn.image()] * 4)
  params = drawn.params(model)
  train = drawn.jit(lambda seed: model.apply(
      {"params": params}, image, train=True,
      rngs={"dropout": jax.random.key(seed)})[0])
  np.testing.assert_array_equal(train(0), train(0))
  assert np.abs(train(0) - train(1)).max() > 1e-3
  plain = drawn.apply(vit.Model(K, **TINY), params, image)[0]
  np.testing.assert_array_equal(drawn.apply(model, params, image)[0], plain)
  with pytest.raises(flax.errors.InvalidRngError):
    model.apply({"params": params}, image, train=True)


# --- On a mesh ----------------------------------------------------------------

RULES = [("act_batch", "data"), ("act_heads", "model"), ("act_mlp", "model")]


@pytest.mark.parametrize("pool_type,scan", [("map", False), ("tok", True)])
def test_sharded_activations_change_nothing(pool_type, scan):
  model = vit.Model(K, **TINY, pool_type=pool_type, scan=scan)
  params = drawn.params(model)
  image = np.concatenate([drawn.image()] * 4)[:4]
  wanted, _ = drawn.apply(model, params, image)
  mesh = sharding.make_mesh([("data", 4), ("model", 2)])
  with sharding.use(mesh, RULES):
    logits, out = drawn.jit(model.apply)({"params": params}, image)
  np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)
  assert logits.sharding.spec[0] == "data"
  assert out["encoder"]["block01"]["+mlp"].sharding.spec[0] == "data"


def _constrained(model, params, image):
  """[(shape, spec)] of the model's constraints."""
  jaxpr = jax.make_jaxpr(lambda p: model.apply({"params": p}, image))(params)
  return [(eqn.outvars[0].aval.shape, eqn.params["sharding"].spec)
          for eqn in jaxpr.eqns
          if eqn.primitive.name == "sharding_constraint"]


def test_constraints_follow_the_rules_and_are_absent_without():
  model = vit.Model(K, **TINY, pool_type="map")
  params, image = drawn.params(model), np.concatenate([drawn.image()] * 4)[:4]
  assert not _constrained(model, params, image)
  mesh = sharding.make_mesh([("data", 4), ("model", 2)])
  with sharding.use(mesh, RULES):
    shapes = [shape for shape, _ in _constrained(model, params, image)]
  residual, heads, mlp = (4, H * W, D), (4, H * W, 2, 4), (4, H * W, 12)
  assert shapes.count(residual) == 5  # The start, and twice a block.
  assert shapes.count(heads) == 4 and shapes.count(mlp) == 2
  # Inner axes follow the parameters where no rule speaks of them.
  with sharding.use(mesh, RULES[:1]):
    specs = dict(_constrained(model, params, image))
  assert specs[residual] == P("data", None, None)
  assert specs[heads] == P("data", None, P.UNCONSTRAINED, None)
  assert specs[mlp] == P("data", None, P.UNCONSTRAINED)


# --- Weights of attention -----------------------------------------------------


@pytest.mark.parametrize("scan", [False, True])
def test_weights_of_attention_mix_the_values_and_change_nothing(scan):
  """The weights times the values, projected, are the branch of attention."""
  model = vit.Model(K, **TINY, scan=scan, pool_type="tok")
  params, image = drawn.params(model), drawn.image()
  logits, out = drawn.apply(model, params, image)
  other = model.clone(attention="dense(return_weights=True)")
  same, out_other = drawn.apply(other, params, image)
  np.testing.assert_allclose(same, logits, rtol=1e-5, atol=1e-6)
  added = {f"encoder/block{i:02d}/sa_weights" for i in range(2)}
  assert _names(out_other) == _names(out) | added
  encoder = params["Transformer"]
  blocks = weights.unstack_blocks(encoder) if scan else encoder
  x = np.concatenate([np.broadcast_to(params["cls"], (B, 1, D)), out[
      "with_posemb"]], axis=1).astype(np.float64)
  for i in range(2):
    block = blocks[f"encoderblock_{i}"]
    attention = block["MultiHeadDotProductAttention_0"]
    mixing = out_other["encoder"][f"block{i:02d}"]["sa_weights"]
    assert mixing.shape == (B, 2, 7, 7) and mixing.dtype == np.float32
    np.testing.assert_allclose(mixing.sum(axis=-1), 1, rtol=1e-5)
    normed = _layer_norm(x, block["LayerNorm_0"])
    q, k, v = (np.einsum("bnd,dmh->bnmh", normed, attention[name]["kernel"])
               + attention[name]["bias"] for name in ("query", "key", "value"))
    logits = np.einsum("bnmh,bsmh->bmns", q, k) / math.sqrt(D // 2)
    np.testing.assert_allclose(
        mixing, scipy.special.softmax(logits, axis=-1), rtol=1e-3, atol=1e-4)
    y = np.einsum("bmns,bsmh,mhd->bnd", mixing, v, attention["out"]["kernel"])
    np.testing.assert_allclose(
        out["encoder"][f"block{i:02d}"]["sa"], y + attention["out"]["bias"],
        rtol=2e-3, atol=1e-3)
    x = np.asarray(out["encoder"][f"block{i:02d}"]["+mlp"], np.float64)


def test_other_attentions_refuse_to_return_weights():
  with pytest.raises(ValueError, match=r"'xla' .* 'return_weights'; \['dense"):
    drawn.shapes(vit.Model(K, **TINY, attention="xla(return_weights=True)"))


def test_unused_weights_of_attention_cost_nothing():
  def program(attention):
    model = vit.Model(K, **TINY, scan=True, attention=attention)
    fn = lambda params, image: model.apply({"params": params}, image)[0]
    compiled = jax.jit(fn).lower(drawn.shapes(model), drawn.image()).compile()
    cost = compiled.cost_analysis()
    return cost["flops"], compiled.memory_analysis().temp_size_in_bytes
  assert program("dense(return_weights=True)") == program("dense")
