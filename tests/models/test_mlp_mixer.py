"""The Mixer against its definition in NumPy, float64, and against timm's."""

import math

from big_vision import config as config_lib
from big_vision import losses
from big_vision import sharding
from big_vision import tree
from big_vision.models import mlp_mixer
import flax.errors
import jax
from jax import ad_checkpoint
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from benchmarks import peers
from tests import drawn

# For images of drawn.IMAGE_SHAPE.
TINY = dict(patch_size=(4, 2), width=8, depth=2, tokens_mlp_dim=5,
            channels_mlp_dim=12)
B, H, W, D, K = 3, 2, 3, 8, 5
N = H * W


# --- The definition -----------------------------------------------------------


def _mlp(x, p):
  x = x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
  x = x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
  return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def _layer_norm(x, p):
  """[n, d]: every token by itself."""
  return np.stack([
      (token - token.mean()) / math.sqrt(token.var() + 1e-6) * p["scale"]
      + p["bias"] for token in x])


def _numpy_mixer(params, image):
  """Logits [k] of one image [height, width, c]."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  x = np.stack([
      image[4 * y:4 * y + 4, 2 * z:2 * z + 2].reshape(-1)
      @ p["stem"]["kernel"].reshape(24, -1)
      for y in range(H) for z in range(W)]) + p["stem"]["bias"]
  for i in range(2):
    block = p[f"MixerBlock_{i}"]
    # One channel after the other: each is a vector of n numbers.
    y = _layer_norm(x, block["LayerNorm_0"])
    x = x + np.stack([_mlp(y[:, c], block["token_mixing"])
                      for c in range(x.shape[1])], axis=1)
    y = _layer_norm(x, block["LayerNorm_1"])
    x = x + np.stack([_mlp(token, block["channel_mixing"]) for token in y])
  x = _layer_norm(x, p["pre_head_layer_norm"]).mean(axis=0)
  return x @ p["head"]["kernel"] + p["head"]["bias"]


def test_logits_are_those_of_the_definition():
  """LayerNorm acts on channels, then tokens are mixed; norm, mean, head."""
  model = mlp_mixer.Model(K, **TINY)
  params, image = drawn.params(model), drawn.image()
  logits, _ = drawn.apply(model, params, image)
  assert logits.dtype == jnp.float32 and np.abs(logits).max() > 0.5
  for i in range(B):
    np.testing.assert_allclose(
        logits[i], _numpy_mixer(params, image[i].astype(np.float64)),
        rtol=2e-4, atol=2e-4)


def test_layer_norm_epsilon_is_1e6():
  """The epsilon only shows where tokens hardly vary."""
  model = mlp_mixer.Model(K, **TINY)
  params, image = drawn.params(model), drawn.image()
  params["stem"] = jax.tree.map(
      lambda leaf: leaf * np.float32(1e-3), params["stem"])
  for block in ("MixerBlock_0", "MixerBlock_1"):
    params[block] = jax.tree.map(np.zeros_like, params[block])
  logits, _ = drawn.apply(model, params, image)
  np.testing.assert_allclose(
      logits[0], _numpy_mixer(params, image[0].astype(np.float64)),
      rtol=1e-4, atol=1e-4)


def test_gelu_is_the_approximation_by_tanh():
  """The approximation differs from the exact GELU by up to 4.7e-4."""
  x = jnp.linspace(-4, 4, 801)
  eye = {"kernel": jnp.eye(801), "bias": jnp.zeros(801)}
  params = {"Dense_0": eye, "Dense_1": eye}
  np.testing.assert_allclose(
      mlp_mixer.Mlp(801).apply({"params": params}, x),
      _mlp(np.asarray(x, np.float64), params), atol=1e-5)


def test_order_of_channels_is_arbitrary_and_of_tokens_is_not():
  model = mlp_mixer.Model(K, **TINY)
  params, image = drawn.params(model), drawn.image()
  logits, _ = drawn.apply(model, params, image)
  order = np.random.default_rng(1).permutation(D)
  def permute(name, leaf):
    if name.startswith("stem") or "LayerNorm" in name or "layer_norm" in name:
      return leaf[..., order]
    if name.endswith(("channel_mixing/Dense_0/kernel", "head/kernel")):
      return leaf[order]
    if "channel_mixing/Dense_1" in name:
      return leaf[..., order]
    return leaf
  same, _ = drawn.apply(model, tree.map_with_names(permute, params), image)
  np.testing.assert_allclose(same, logits, rtol=1e-4, atol=1e-4)
  upside_down = np.concatenate([image[:, 4:], image[:, :4]], axis=1)
  other, _ = drawn.apply(model, params, upside_down)
  assert np.abs(other - logits).max() > 0.05


# --- Sizes --------------------------------------------------------------------


def _count(num_classes, **kw):
  model = mlp_mixer.Model(num_classes, **kw)
  return tree.num_elements(drawn.shapes(model, drawn.image((1, 224, 224, 3))))


@pytest.mark.parametrize("variant,count", [
    ("S/16", 18_528_264), ("S/32", 19_104_624), ("B/16", 59_880_472),
    ("B/32", 60_293_428), ("L/16", 208_196_168)])
def test_parameter_counts(variant, count):
  """The counts were measured on timm's models."""
  assert _count(1000, variant=variant) == count


def test_parameter_count_of_the_largest():
  """arXiv:2105.01601, Table 1: H/14 has 431 million, without a head."""
  assert round(_count(None, variant="H/14") / 1e6) == 431


def test_parameter_names_and_shapes():
  """What published weights depend on."""
  wanted = {
      "stem/kernel": (4, 2, 3, D), "stem/bias": (D,),
      "pre_head_layer_norm/scale": (D,), "pre_head_layer_norm/bias": (D,),
      "head/kernel": (D, K), "head/bias": (K,)}
  for i in range(2):
    for name, shape in (
        ("LayerNorm_0/scale", (D,)), ("LayerNorm_0/bias", (D,)),
        ("LayerNorm_1/scale", (D,)), ("LayerNorm_1/bias", (D,)),
        ("token_mixing/Dense_0/kernel", (N, 5)),
        ("token_mixing/Dense_0/bias", (5,)),
        ("token_mixing/Dense_1/kernel", (5, N)),
        ("token_mixing/Dense_1/bias", (N,)),
        ("channel_mixing/Dense_0/kernel", (D, 12)),
        ("channel_mixing/Dense_0/bias", (12,)),
        ("channel_mixing/Dense_1/kernel", (12, D)),
        ("channel_mixing/Dense_1/bias", (D,))):
      wanted[f"MixerBlock_{i}/{name}"] = shape
  for policy in ("none", "nothing_saveable"):
    shapes = dict(tree.flatten_with_names(
        drawn.shapes(mlp_mixer.Model(K, **TINY, remat_policy=policy))))
    assert {name: leaf.shape for name, leaf in shapes.items()} == wanted
    assert {str(leaf.dtype) for leaf in shapes.values()} == {"float32"}


def test_initial_values():
  model = mlp_mixer.Model(K, patch_size=8, width=64, depth=1, tokens_mlp_dim=96,
                      channels_mlp_dim=128)
  params = drawn.jit(model.init)(
      jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
  block = params["MixerBlock_0"]
  for mixing, hidden in (("token_mixing", 96), ("channel_mixing", 128)):
    for layer, fan_in in (("Dense_0", 64), ("Dense_1", hidden)):
      np.testing.assert_allclose(  # LeCun's.
          block[mixing][layer]["kernel"].std(), fan_in ** -0.5, rtol=0.06)
      assert not block[mixing][layer]["bias"].any()
  np.testing.assert_allclose(
      params["stem"]["kernel"].std(), (8 * 8 * 3) ** -0.5, rtol=0.06)
  assert (params["pre_head_layer_norm"]["scale"] == 1).all()


def test_training_starts_at_the_loss_of_knowing_nothing():
  """The head starts at zero."""
  model = mlp_mixer.Model(K, **TINY)
  params = drawn.jit(model.init)(jax.random.key(0), drawn.image())["params"]
  logits, _ = drawn.apply(model, params, drawn.image())
  loss = losses.softmax_xent(logits=logits, labels=jnp.eye(K)[:B])
  np.testing.assert_allclose(loss, math.log(K), rtol=1e-6)


def test_variants():
  assert mlp_mixer.decode_variant(None) == {}
  assert mlp_mixer.decode_variant("L/16") == dict(
      width=1024, depth=24, tokens_mlp_dim=512, channels_mlp_dim=4096,
      patch_size=(16, 16))
  assert "patch_size" not in mlp_mixer.decode_variant("B")
  assert mlp_mixer.Model(variant="S/16", depth=3).depth == 3
  for bad in ("X/16", "S16", "S/", "S/16x16", "s/16", ""):
    with pytest.raises(ValueError, match=f"variant '{bad}'.*'S', 'B', 'L', 'H"):
      mlp_mixer.decode_variant(bad)


def test_misspelt_argument_of_a_config_is_found():
  for wrong, right in (("varient", "variant"), ("token_mlp", "tokens_mlp_dim")):
    with pytest.raises(config_lib.ConfigError, match=f"mean '{right}'"):
      config_lib.call(
          mlp_mixer.Model, {wrong: 1}, "config.model", num_classes=2)


# --- Outputs ------------------------------------------------------------------


def test_out_names_and_shapes():
  model = mlp_mixer.Model(K, **TINY)
  spec = jax.ShapeDtypeStruct(drawn.IMAGE_SHAPE, jnp.float32)
  logits, out = jax.eval_shape(
      lambda p, x: model.apply({"params": p}, x), drawn.shapes(model), spec)
  assert {name: leaf.shape for name, leaf in tree.flatten_with_names(out)} == {
      "stem": (B, H, W, D),
      **{f"encoder/block{i:02d}/{plus}{name}": (B, N, D) for i in range(2)
         for name in ("token_mixing", "channel_mixing") for plus in ("", "+")},
      "encoder/pre_ln": (B, N, D), "encoded": (B, N, D),
      "pre_logits_2d": (B, H, W, D), "pre_logits": (B, D),
      "logits_2d": (B, H, W, K), "logits": (B, K)}
  assert logits.shape == (B, K)


def test_intermediate_values():
  model = mlp_mixer.Model(K, **TINY)
  logits, out = drawn.apply(model, drawn.params(model), drawn.image())
  blocks = out["encoder"]
  before = out["stem"].reshape(B, N, D)
  for i in range(2):
    block = blocks[f"block{i:02d}"]
    for name in ("token_mixing", "channel_mixing"):
      np.testing.assert_allclose(
          block[f"+{name}"], before + block[name], rtol=1e-5, atol=1e-5)
      before = block[f"+{name}"]
  np.testing.assert_array_equal(blocks["pre_ln"], before)
  np.testing.assert_array_equal(out["logits"], logits)
  np.testing.assert_allclose(
      out["encoded"].mean(axis=1), out["pre_logits"], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(  # The head is linear.
      out["logits_2d"].mean(axis=(1, 2)), logits, rtol=1e-4, atol=1e-4)


def test_without_classes_the_features_come_out():
  model = mlp_mixer.Model(None, **TINY)
  params = drawn.params(model)
  features, out = drawn.apply(model, params, drawn.image())
  assert "head" not in params and not {"logits", "logits_2d"} & set(out)
  np.testing.assert_array_equal(features, out["pre_logits"])


def test_examples_of_a_batch_do_not_meet():
  model = mlp_mixer.Model(K, **TINY)
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
    (dict(dtype_mm="float16"), (1, 8, 6, 3), "dtype_mm 'float16'.*'bfloat16'"),
    (dict(remat_policy="all"), (1, 8, 6, 3), "remat_policy 'all'.*'none'"),
    (dict(stoch_depth=1.0), (1, 8, 6, 3), "stoch_depth must be in"),
    (dict(stoch_depth_mode="huge"), (1, 8, 6, 3),
     "stoch_depth_mode 'huge'.*'bigvision', 'inverted'"),
])
def test_what_cannot_be_is_refused(kw, shape, message):
  with pytest.raises(ValueError, match=message):
    drawn.shapes(mlp_mixer.Model(K, **{**TINY, **kw}), drawn.image(shape))


def test_images_of_another_size_are_refused():
  """Such images fit the patches, but not the MLPs that mix tokens."""
  model = mlp_mixer.Model(K, **TINY)
  image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
  with pytest.raises(ValueError, match=r"\[1, 8, 8, 3\].*2 x 4 = 8 .*mix 6"):
    jax.eval_shape(model.apply, {"params": drawn.shapes(model)}, image)


# --- Rematerialization, number formats ----------------------------------------


def _loss_and_grads(model, params, image, **kw):
  def loss(params):
    logits, _ = model.apply({"params": params}, image, **kw)
    return jnp.sum(logits ** 2)
  return drawn.jit(jax.value_and_grad(loss))(params)


def test_rematerialization_saves_memory_and_changes_no_gradient(capsys):
  image, rngs = drawn.image(), {"dropout": jax.random.key(1)}
  params, grads, num_saved = None, {}, {}
  for policy in ("none", "nothing_saveable"):
    model = mlp_mixer.Model(K, **TINY, stoch_depth=0.5, remat_policy=policy)
    params = params or drawn.params(model)
    ad_checkpoint.print_saved_residuals(
        lambda p, model=model: model.apply(
            {"params": p}, image, train=True, rngs=rngs)[0], params)
    num_saved[policy] = len(capsys.readouterr().out.splitlines())
    _, grads[policy] = _loss_and_grads(
        model, params, image, train=True, rngs=rngs)
  assert num_saved["nothing_saveable"] < num_saved["none"]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5, atol=1e-4), grads["nothing_saveable"], grads["none"])


def test_bfloat16_computes_and_float32_stays():
  model, image = mlp_mixer.Model(K, **TINY, dtype_mm="bfloat16"), drawn.image()
  params = drawn.params(model, scale=0.2)
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"float32"}
  logits, out = drawn.apply(model, params, image)
  dtypes = {name: str(x.dtype) for name, x in tree.flatten_with_names(out)}
  for name in ("stem", "encoder/block00/token_mixing",
               "encoder/block01/+channel_mixing"):
    assert dtypes[name] == "bfloat16", name
  for name in ("encoded", "pre_logits", "logits", "logits_2d"):
    assert dtypes[name] == "float32", name
  full, _ = drawn.apply(mlp_mixer.Model(K, **TINY), params, image)
  np.testing.assert_allclose(logits, full, atol=0.05 * np.abs(full).max())
  assert np.abs(logits - full).max() > 0
  _, grads = _loss_and_grads(model, params, image)
  for name, grad in tree.flatten_with_names(grads):
    assert grad.dtype == jnp.float32 and np.isfinite(grad).all(), name


# --- Stochastic depth ---------------------------------------------------------

NUM = 1000


def test_branches_are_dropped_per_example_and_independently():
  """The first block is always kept; then rates rise linearly."""
  model = mlp_mixer.Model(None, **{**TINY, "depth": 3}, stoch_depth=0.5)
  image = np.repeat(drawn.image()[:1], NUM, axis=0)
  _, out = drawn.jit(lambda params: model.apply(
      {"params": params}, image, train=True,
      rngs={"dropout": jax.random.key(0)}))(drawn.params(model))
  before, draws = out["stem"].reshape(NUM, N, D), []
  for i in range(3):
    block = out["encoder"][f"block{i:02d}"]
    for name in ("token_mixing", "channel_mixing"):
      ratio = (block[f"+{name}"] - before) / block[name]
      kept = np.asarray(jnp.median(ratio, axis=(1, 2))) > 0.5
      # Kept branches are scaled, so that the expectation stays. Within an
      # example, all tokens and channels share their fate.
      fate = np.where(kept, 1 / (1 - 0.25 * i), 0)[:, None, None]
      np.testing.assert_allclose(
          block[f"+{name}"], before + fate * block[name], rtol=1e-3, atol=1e-3)
      draws.append(kept.astype(float))
      before = block[f"+{name}"]
  assert np.all(draws[:2])
  np.testing.assert_allclose(np.mean(draws[2:], axis=1), [0.75, 0.75, 0.5, 0.5],
                             atol=4 * 0.5 / math.sqrt(NUM))
  correlation = np.corrcoef(draws[2:]) - np.eye(4)
  assert np.abs(correlation).max() < 4 / math.sqrt(NUM)


@pytest.mark.parametrize("mode,is_unbiased", [
    ("inverted", True), ("bigvision", False)])
def test_expectation_of_a_network_of_linear_branches(mode, is_unbiased):
  """The mode of published Mixers does not rescale, so its mean is off.

  Each branch outputs its bias, so the last state is the sum of kept biases.
  """
  model = mlp_mixer.Model(None, **TINY, stoch_depth=0.4, stoch_depth_mode=mode)
  params = jax.tree.map(np.zeros_like, drawn.params(model))
  for i in range(2):
    params[f"MixerBlock_{i}"]["token_mixing"]["Dense_1"]["bias"] += 1
    params[f"MixerBlock_{i}"]["channel_mixing"]["Dense_1"]["bias"] += 2
  image = np.zeros((NUM, *drawn.IMAGE_SHAPE[1:]), np.float32)
  def encoded(train):
    _, out = model.apply({"params": params}, image, train=train,
                         rngs={"dropout": jax.random.key(0)})
    return out["encoder"]["pre_ln"][:, 0, 0]
  trained, evaluated = drawn.jit(lambda: (encoded(True), encoded(False)))()
  error = trained.std() / math.sqrt(NUM)
  assert error > 0 and np.ptp(evaluated) == 0
  assert (abs(trained.mean() - evaluated.mean()) < 3 * error) == is_unbiased
  assert evaluated[0] == pytest.approx(6)


def test_training_draws_from_its_rng_and_evaluation_does_not():
  model = mlp_mixer.Model(K, **TINY, stoch_depth=0.5)
  params, image = drawn.params(model), np.concatenate([drawn.image()] * 4)
  train = drawn.jit(lambda seed: model.apply(
      {"params": params}, image, train=True,
      rngs={"dropout": jax.random.key(seed)})[0])
  np.testing.assert_array_equal(train(0), train(0))
  assert np.abs(train(0) - train(1)).max() > 1e-3
  plain = drawn.apply(mlp_mixer.Model(K, **TINY), params, image)[0]
  np.testing.assert_array_equal(drawn.apply(model, params, image)[0], plain)
  with pytest.raises(flax.errors.InvalidRngError):
    model.apply({"params": params}, image, train=True)


# --- On a mesh ----------------------------------------------------------------


def test_sharded_activations_change_nothing():
  model = mlp_mixer.Model(K, **TINY)
  params, image = drawn.params(model), np.concatenate([drawn.image()] * 4)[:4]
  wanted, _ = drawn.apply(model, params, image)
  mesh = sharding.make_mesh([("data", 4), ("model", 2)])
  with sharding.use(mesh, [("act_batch", "data"), ("act_mlp", "model")]):
    jaxpr = jax.make_jaxpr(
        lambda p: model.apply({"params": p}, image))(params)
    logits, out = drawn.jit(model.apply)({"params": params}, image)
  stated = [eqn.outvars[0].aval.shape for eqn in jaxpr.eqns
            if eqn.primitive.name == "sharding_constraint"]
  assert stated.count((4, N, D)) == 5  # The start, and twice a block.
  assert stated.count((4, D, 5)) == stated.count((4, N, 12)) == 2
  np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)
  assert logits.sharding.spec[0] == "data"
  block = out["encoder"]["block01"]
  assert block["+channel_mixing"].sharding.spec[0] == "data"


# --- Loading ------------------------------------------------------------------


def _save(tmp_path, params, prefix="", dtype=np.float32):
  path = str(tmp_path / "weights.npz")
  np.savez(path, **{prefix + name: leaf.astype(dtype)
                    for name, leaf in tree.flatten_with_names(params)})
  return path


@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_loading_round_trip(tmp_path, prefix, dtype):
  model = mlp_mixer.Model(K, **TINY)
  params = drawn.params(model)
  path = _save(tmp_path, params, prefix, dtype)
  loaded = mlp_mixer.load(drawn.shapes(model), path, TINY)
  wanted = jax.tree.map(
      lambda leaf: leaf.astype(dtype).astype(np.float32), params)
  jax.tree.map(np.testing.assert_array_equal, loaded, wanted)
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {
      np.dtype(np.float32)}


def test_loading_for_other_classes_and_other_images(tmp_path):
  params = drawn.params(mlp_mixer.Model(7, **TINY))
  path = _save(tmp_path, params)
  model = mlp_mixer.Model(K, **TINY)
  shapes = drawn.shapes(model)
  with pytest.raises(ValueError, match=r"head/kernel is float32\[8, 7\]"):
    mlp_mixer.load(shapes, path, TINY)
  loaded = mlp_mixer.load(shapes, path, TINY, dont_load=["head/.*"])
  assert loaded.pop("head")["kernel"] is shapes["head"]["kernel"]
  params.pop("head")
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  # Here too, the size of the images is part of the parameters.
  larger = drawn.shapes(model, drawn.image((1, 8, 8, 3)))
  with pytest.raises(
      ValueError, match=r"token_mixing/Dense_0/kernel .*\[6, 5\].*\[8, 5\]"):
    mlp_mixer.load(larger, path, TINY, dont_load=["head/.*"])


def test_published_names():
  assert mlp_mixer.VANITY_NAMES == {
      "B-i1k/16": "gs://mixer_models/imagenet1k/Mixer-B_16.npz",
      "L-i1k/16": "gs://mixer_models/imagenet1k/Mixer-L_16.npz",
      "B-i21k/16": "gs://mixer_models/imagenet21k/Mixer-B_16.npz",
      "L-i21k/16": "gs://mixer_models/imagenet21k/Mixer-L_16.npz"}
  with pytest.raises(ValueError, match="'B-i1/16'.*did you mean 'B-i1k/16'"):
    mlp_mixer.load({}, "B-i1/16", {})


# --- timm's -------------------------------------------------------------------


def _timm_name(name):
  """Our name -> timm's."""
  for ours, theirs in (
      ("MixerBlock_", "blocks."), ("/", "."), ("pre_head_layer_norm", "norm"),
      ("stem.", "stem.proj."), ("LayerNorm_0", "norm1"),
      ("LayerNorm_1", "norm2"), ("token_mixing", "mlp_tokens"),
      ("channel_mixing", "mlp_channels"), ("Dense_0", "fc1"),
      ("Dense_1", "fc2"), (".kernel", ".weight"), (".scale", ".weight")):
    name = name.replace(ours, theirs)
  return name


def _torch_layout(leaf):
  if leaf.ndim == 4:
    leaf = leaf.transpose(3, 2, 0, 1)
  elif leaf.ndim == 2:
    leaf = leaf.T
  return leaf.copy()


@pytest.mark.peer
def test_logits_are_those_of_timm():
  torch, timm = peers.import_timm()
  kw = {**TINY, "width": 16, "channels_mlp_dim": 24, "tokens_mlp_dim": 4}
  model, image = mlp_mixer.Model(K, **kw), drawn.image()
  params = drawn.params(model)
  theirs = timm.models.mlp_mixer.MlpMixer(
      num_classes=K, img_size=drawn.IMAGE_SHAPE[1:3], patch_size=(4, 2),
      num_blocks=2, embed_dim=16, mlp_ratio=(0.25, 1.5),
      act_layer=lambda: torch.nn.GELU(approximate="tanh"))
  theirs.load_state_dict({
      _timm_name(name): torch.from_numpy(_torch_layout(leaf))
      for name, leaf in tree.flatten_with_names(params)})
  with torch.no_grad():
    wanted = theirs.eval()(torch.from_numpy(
        image.transpose(0, 3, 1, 2).copy())).numpy()
  logits, _ = drawn.apply(model, params, image)
  assert np.abs(logits).max() > 0.5
  np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.peer
@pytest.mark.parametrize("variant,name", [
    ("S/32", "mixer_s32_224"), ("B/16", "mixer_b16_224")])
def test_parameter_counts_are_those_of_timm(variant, name):
  torch, timm = peers.import_timm()
  with torch.device("meta"):
    theirs = getattr(timm.models.mlp_mixer, name)()
  assert (sum(p.numel() for p in theirs.parameters()) ==
          _count(1000, variant=variant))
