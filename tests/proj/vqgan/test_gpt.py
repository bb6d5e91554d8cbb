"""GPT over codes: causality, sampling with kept keys and values, windows."""

import functools
import math

from big_vision import sharding
from big_vision.proj.vqgan import gpt
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import drawn

NUM_CODES, WINDOW = 11, (2, 3)
MODEL = gpt.Model(num_codes=NUM_CODES, num_places=6, num_classes=4, width=8,
                  depth=2, num_heads=2)
CODES = np.random.default_rng(0).integers(0, NUM_CODES, (3, 6)).astype(np.int32)
LABEL = np.array([0, 3, 1], np.int32)


@pytest.fixture(scope="module")
def params():
  return drawn.params(MODEL, CODES, LABEL)


@functools.cache
def _logits_fn(model):
  return drawn.jit(lambda params, codes, label: model.apply(
      {"params": params}, codes, label))


def test_codes_are_predicted_from_earlier_codes_only(params):
  logits = _logits_fn(MODEL)(params, CODES, LABEL)
  assert logits.shape == (3, 6, NUM_CODES)
  for i in range(6):
    changed = CODES.copy()
    changed[:, i] = (changed[:, i] + 1) % NUM_CODES
    other = _logits_fn(MODEL)(params, changed, LABEL)
    differs = np.abs(other - logits).max(axis=(0, 2)) > 1e-4
    # Logits up to i do not depend on code i; all later ones do.
    np.testing.assert_array_equal(differs, np.arange(6) > i)
  other = _logits_fn(MODEL)(params, CODES, (LABEL + 1) % 4)
  assert (np.abs(other - logits).max(axis=(0, 2)) > 1e-4).all()


def test_initial_kernels_are_small_and_the_head_has_no_bias():
  variables = drawn.jit(MODEL.init)(jax.random.key(0), CODES, LABEL)["params"]
  assert set(variables["head"]) == {"kernel"}
  np.testing.assert_allclose(
      np.std(variables["block_0"]["mlp_in"]["kernel"]), 0.02, rtol=0.15)


def test_unconditional_models_have_one_start_token():
  model = MODEL.clone(num_classes=0)
  params = drawn.shapes(model, CODES)
  assert params["condition"]["embedding"].shape == (1, 8)
  with pytest.raises(ValueError, match="4 classes; it needs a label"):
    drawn.shapes(MODEL, CODES)
  with pytest.raises(ValueError, match=r"\[b, 6\], they are \[3, 5\]"):
    drawn.shapes(MODEL, CODES[:, :5], LABEL)
  with pytest.raises(ValueError, match="attention 'linear'; .*'dense'"):
    drawn.shapes(MODEL.clone(attention="linear"), CODES, LABEL)


def test_attention_has_kernels_with_heads():
  """Published transformers have them, and tensor parallelism splits them."""
  block = drawn.shapes(MODEL, CODES, LABEL)["block_0"]
  assert jax.tree.map(lambda x: x.shape, block) == {
      **{name: {"kernel": (8, 2, 4), "bias": (2, 4)}
         for name in ("query", "key", "value")},
      "out": {"kernel": (2, 4, 8), "bias": (8,)},
      "mlp_in": {"kernel": (8, 32), "bias": (32,)},
      "mlp_out": {"kernel": (32, 8), "bias": (8,)},
      **{name: {"scale": (8,), "bias": (8,)} for name in ("ln_1", "ln_2")}}


def test_tensor_parallelism_splits_heads_and_does_not_change_losses(params):
  mesh = sharding.make_mesh([("data", 4), ("model", 2)])
  tree_of = {"params": params}
  where = sharding.infer(
      tree_of, sharding.preset_strategy("tp", tree_of, mesh), mesh)["params"]
  specs = jax.tree.map(lambda s: tuple(s.spec), where["block_1"])
  for name in ("query", "key", "value"):
    assert specs[name] == {"kernel": (None, "model", None),
                           "bias": ("model", None)}
  assert specs["out"]["kernel"] == ("model", None, None)
  assert specs["mlp_in"] == {"kernel": (None, "model"), "bias": ("model",)}
  assert specs["mlp_out"]["kernel"] == ("model", None)

  codes, label = np.tile(CODES, (4, 1))[:8], np.tile(LABEL, 4)[:8]

  def loss(params, codes, label):
    logits = MODEL.apply({"params": params}, codes, label)
    return optax.softmax_cross_entropy_with_integer_labels(
        logits, codes).mean()

  wanted, wanted_grads = drawn.jit(jax.value_and_grad(loss))(
      params, codes, label)
  rules = sharding.make_rules(mesh, None, "tp")
  batch = sharding.batch_sharding(mesh, rules)
  with sharding.use(mesh, rules):
    got, grads = jax.jit(
        jax.value_and_grad(loss), in_shardings=(where, batch, batch))(
            params, codes, label)
  np.testing.assert_allclose(got, wanted, rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(
      x, y, rtol=1e-3, atol=1e-4), grads, wanted_grads)


def _greedy_by_whole_passes(params):
  codes = np.zeros((3, 6), np.int32)
  for i in range(6):
    logits = _logits_fn(MODEL)(params, codes, LABEL)
    codes[:, i] = np.argmax(logits[:, i], axis=-1)
  return codes


def test_greedy_sampling_with_a_cache_equals_greedy_sampling_without(params):
  wanted = _greedy_by_whole_passes(params)
  got = drawn.jit(lambda p, label: gpt.sample(
      MODEL, p, jax.random.key(0), 3, label, temperature=0))(params, LABEL)
  np.testing.assert_array_equal(got, wanted)
  assert len(np.unique(wanted)) > 3


def test_logits_with_a_cache_equal_those_of_whole_passes(params):
  whole = _logits_fn(MODEL)(params, CODES, LABEL)
  step = drawn.jit(lambda params, place, code, caches: MODEL.apply(
      {"params": params}, place, code, LABEL, caches, method="next_logits"))
  caches, code = MODEL.empty_caches(3), jnp.full(3, 7)
  for i in range(6):
    logits, caches = step(params, i, code, caches)
    np.testing.assert_allclose(logits, whole[:, i], rtol=1e-4, atol=1e-4)
    code = CODES[:, i]


@pytest.mark.parametrize("how", [
    dict(temperature=0), dict(temperature=0.7, top_k=4)])
def test_a_window_of_the_whole_grid_gives_the_same_samples(params, how):
  args = (jax.random.key(1), 3)
  plain = drawn.jit(lambda p: gpt.sample(MODEL, p, *args, LABEL, **how))(params)
  sliding = drawn.jit(lambda p: gpt.sample_sliding(
      MODEL, p, *args, WINDOW, WINDOW, LABEL, **how))(params)
  np.testing.assert_array_equal(sliding.reshape(3, 6), plain)


def test_windows_are_centred_on_each_code_and_stop_at_the_borders(params):
  rows, columns = size = (4, 5)
  codes = np.zeros((3, *size), np.int32)
  for i in range(rows):
    for j in range(columns):
      top = min(max(i - 1, 0), rows - 2)
      left = min(max(j - 1, 0), columns - 3)
      seen = codes[:, top:top + 2, left:left + 3].reshape(3, 6)
      logits = _logits_fn(MODEL)(params, seen, LABEL)
      codes[:, i, j] = np.argmax(
          logits[:, (i - top) * 3 + j - left], axis=-1)
  got = drawn.jit(lambda p: gpt.sample_sliding(
      MODEL, p, jax.random.key(0), 3, WINDOW, size, LABEL,
      temperature=0))(params)
  np.testing.assert_array_equal(got, codes)


def test_windows_that_do_not_fit_are_refused(params):
  for window, size in (((2, 2), (4, 4)), (WINDOW, (1, 9))):
    with pytest.raises(ValueError, match="window must have 6 codes and fit"):
      gpt.sample_sliding(
          MODEL, params, jax.random.key(0), 3, window, size, LABEL)


def test_the_mlp_has_the_exact_gelu():
  """As minGPT has; the approximation by tanh differs by up to 5e-4."""
  x = np.linspace(-4, 4, 41, dtype=np.float32).reshape(1, 1, 41)
  identity = {"kernel": np.eye(41, dtype=np.float32), "bias": np.zeros(41)}
  y = gpt.Mlp(41, np.float32).apply(
      {"params": {"mlp_in": identity, "mlp_out": identity}}, x)
  wanted = [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x.ravel()]
  np.testing.assert_allclose(np.ravel(y), wanted, rtol=1e-5, atol=1e-6)


def test_a_label_that_is_not_a_class_gives_nan_and_others_do_not(params):
  logits = _logits_fn(MODEL)(params, CODES, np.array([-1, 2, 4], np.int32))
  is_nan = np.isnan(logits).all(axis=(1, 2))
  np.testing.assert_array_equal(is_nan, [True, False, True])
  wanted = _logits_fn(MODEL)(params, CODES, np.array([0, 2, 0], np.int32))
  np.testing.assert_array_equal(logits[1], wanted[1])
  # Unconditional models ignore labels.
  model = MODEL.clone(num_classes=0)
  logits = _logits_fn(model)(drawn.params(model, CODES), CODES, LABEL + 50)
  assert np.isfinite(logits).all()


@pytest.mark.parametrize("draw_all", [
    lambda p, label: gpt.sample(MODEL, p, jax.random.key(0), 3, label),
    lambda p, label: gpt.sample(
        MODEL, p, jax.random.key(0), 3, label, temperature=0),
    lambda p, label: gpt.sample_sliding(
        MODEL, p, jax.random.key(0), 3, WINDOW, WINDOW, label)])
def test_codes_whose_logits_are_not_finite_are_marked(params, draw_all):
  codes = drawn.jit(draw_all)(params, np.array([1, 4, -1], np.int32))
  codes = np.reshape(codes, (3, -1))
  assert (codes[0] >= 0).all() and (codes[1:, 0] == -1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kw", [{}, dict(temperature=0), dict(top_k=2)])
def test_one_logit_that_is_not_finite_spoils_its_example_alone(bad, kw):
  logits = np.zeros((3, 5), np.float32)
  logits[1, 3] = bad
  codes = np.asarray(gpt.draw(logits, jax.random.key(0), **kw))
  assert codes[1] == -1 and codes[0] >= 0 and codes[2] >= 0


@pytest.mark.parametrize("top_k", range(1, 7))
def test_top_k_keeps_exactly_k_codes_under_ties(top_k):
  """Against sorting: of equal logits, the lower codes are kept."""
  rng = np.random.default_rng(top_k)
  logits = rng.integers(0, 3, (8, 6)).astype(np.float32)
  kept = [set(sorted(range(6), key=lambda code: (-row[code], code))[:top_k])
          for row in logits]
  draw = jax.jit(jax.vmap(lambda rng: gpt.draw(logits, rng, top_k=top_k)))
  codes = np.asarray(draw(jax.random.split(jax.random.key(0), 500)))
  for i in range(8):
    assert set(codes[:, i]) == kept[i]
  constant = gpt.draw(np.zeros((400, 6)), jax.random.key(1), top_k=top_k)
  assert set(np.asarray(constant)) == set(range(top_k))


def test_samples_follow_temperature_and_top_k():
  logits = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))
  many = jnp.broadcast_to(logits, (20_000, 4))
  rng = jax.random.key(0)
  def shares(**kw):
    return np.bincount(gpt.draw(many, rng, **kw), minlength=4) / 20_000
  np.testing.assert_allclose(shares(), [0.1, 0.4, 0.2, 0.3], atol=0.015)
  np.testing.assert_allclose(
      shares(top_k=2), [0, 4 / 7, 0, 3 / 7], atol=0.015)
  squared = np.array([0.01, 0.16, 0.04, 0.09]) / 0.3
  np.testing.assert_allclose(shares(temperature=0.5), squared, atol=0.015)
  assert shares(temperature=0)[1] == shares(top_k=1)[1] == 1
  for kw in (dict(top_k=5), dict(top_k=0), dict(temperature=-1),
             dict(temperature=float("nan"))):
    with pytest.raises(ValueError, match="Sampling needs"):
      gpt.draw(many, rng, **kw)


def _import_transformers():
  """Imports transformers, even if the installed torchvision is broken."""
  utils = pytest.importorskip("transformers.utils.import_utils")
  try:
    import torchvision  # noqa: F401
  except (ImportError, RuntimeError):
    utils.is_torchvision_available = lambda: False
    import transformers.utils
    transformers.utils.is_torchvision_available = lambda: False
  import transformers
  return transformers


def _without_heads(block, name, field):
  """Returns a parameter as GPT-2 has it, with the heads joined."""
  x = np.asarray(block[name][field])
  if name in ("query", "key", "value"):
    return x.reshape(*x.shape[:-2], -1)
  return x.reshape(-1, x.shape[-1]) if name == "out" and x.ndim == 3 else x


@pytest.mark.peer
def test_logits_equal_those_of_gpt2_in_transformers(params):
  torch = pytest.importorskip("torch")
  transformers = _import_transformers()
  config = transformers.GPT2Config(
      vocab_size=NUM_CODES + 4, n_positions=6, n_embd=8, n_layer=2, n_head=2,
      activation_function="gelu", tie_word_embeddings=False)
  theirs = transformers.GPT2LMHeadModel(config).eval()
  def copy(target, value):
    with torch.no_grad():
      target.copy_(torch.tensor(np.array(value)))
  # In their vocabulary, classes follow the codes.
  copy(theirs.transformer.wte.weight, np.concatenate(
      [params["codes"]["embedding"], params["condition"]["embedding"]]))
  copy(theirs.transformer.wpe.weight, params["pos_embedding"])
  for i, block in enumerate(theirs.transformer.h):
    ours = params[f"block_{i}"]
    for field in ("kernel", "bias"):
      copy(getattr(block.attn.c_attn, "weight" if field == "kernel" else field),
           np.concatenate([_without_heads(ours, name, field)
                           for name in ("query", "key", "value")], axis=-1))
      for layer, name in ((block.attn.c_proj, "out"),
                          (block.mlp.c_fc, "mlp_in"),
                          (block.mlp.c_proj, "mlp_out")):
        copy(getattr(layer, "weight" if field == "kernel" else field),
             _without_heads(ours, name, field))
    for layer, name in ((block.ln_1, "ln_1"), (block.ln_2, "ln_2")):
      copy(layer.weight, ours[name]["scale"])
      copy(layer.bias, ours[name]["bias"])
  copy(theirs.transformer.ln_f.weight, params["ln_f"]["scale"])
  copy(theirs.transformer.ln_f.bias, params["ln_f"]["bias"])
  head = np.zeros((NUM_CODES + 4, 8), np.float32)
  head[:NUM_CODES] = params["head"]["kernel"].T
  copy(theirs.lm_head.weight, head)
  tokens = np.concatenate([LABEL[:, None] + NUM_CODES, CODES[:, :-1]], axis=1)
  with torch.no_grad():
    wanted = theirs(torch.tensor(tokens)).logits[..., :NUM_CODES]
  np.testing.assert_allclose(
      _logits_fn(MODEL)(params, CODES, LABEL), wanted, rtol=2e-3, atol=2e-3)
