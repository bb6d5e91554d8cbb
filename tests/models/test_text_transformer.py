"""The text encoder: what is its own; `vit.Encoder` has its tests elsewhere."""

import dataclasses
import math

from big_vision import weights
from big_vision.models import text_transformer
import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import drawn

B, N, D, K, V = 3, 5, 8, 4, 11
SIZES = dict(num_classes=K, vocab_size=V, width=D, depth=2, num_heads=2,
             mlp_dim=12, head_zeroinit=False)
LENGTHS = np.array([5, 3, 1])
MASK = np.arange(N) < LENGTHS[:, None]


def _text(seed=0, shape=(B, N)):
  return np.random.default_rng(seed).integers(0, V, shape, np.int32)


def _model(**kw):
  return text_transformer.Model(**{**SIZES, **kw})


def _numpy_sincos(n):
  return np.array([[
      (math.cos if i % 2 else math.sin)(place / 10_000 ** (i // 2 * 2 / D))
      for i in range(D)] for place in range(1, n + 1)])


@pytest.mark.parametrize("posemb", text_transformer.POSEMBS)
@pytest.mark.parametrize("pool_type", text_transformer.POOL_TYPES)
def test_what_is_around_the_blocks(posemb, pool_type):
  """No blocks: embedding, places, LayerNorm, mean of what counts, head."""
  model = _model(depth=0, posemb=posemb, pool_type=pool_type)
  params, text = drawn.params(model, _text()), _text()
  places = (params["pos_embedding"][0] if posemb == "learn"
            else _numpy_sincos(N) / math.sqrt(D))
  norm = params["Encoder_0"]["encoder_norm"]
  features = np.zeros((B, N, D))
  for b in range(B):
    for n in range(N):
      x = params["Embed_0"]["embedding"][text[b, n]] + places[n]
      x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
      features[b, n] = x * norm["scale"] + norm["bias"]
  if pool_type == "gap":
    features = np.stack(
        [x[:length].mean(axis=0) for x, length in zip(features, LENGTHS)])
  wanted = features @ params["head"]["kernel"] + params["head"]["bias"]
  logits, out = drawn.apply(model, params, text, MASK)
  np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(out["pre_logits"], features, rtol=1e-4, atol=1e-5)


def test_number_of_parameters():
  block = 4 * (D * D + D) + 2 * D * 12 + 12 + D + 4 * D
  assert sum(leaf.size for leaf in jax.tree.leaves(
      drawn.shapes(_model(), _text()))) == (
          V * D + N * D + 2 * block + 2 * D + D * K + K)


@pytest.mark.parametrize("attention", ["dense", "favor(num_features=16)"])
def test_padding_is_as_if_it_were_not_there(attention):
  model = _model(posemb="sincos", attention=attention)
  variables = drawn.jit(model.init)(jax.random.key(0), _text(), MASK)
  apply = drawn.jit(model.apply)
  logits, _ = apply(variables, _text(), MASK)
  other, _ = apply(variables, np.where(MASK, _text(), _text(1)),
                   MASK.astype(np.float32))
  np.testing.assert_array_equal(logits, other)
  for b, length in enumerate(LENGTHS):
    alone, _ = apply(variables, _text()[b:b + 1, :length])
    np.testing.assert_allclose(logits[b], alone[0], rtol=1e-4, atol=1e-5)


def test_examples_and_tokens_see_what_they_should():
  """Every token reaches every other of its example, and of no other."""
  model = _model(pool_type="none")
  params, text = drawn.params(model, _text()), _text()
  changed = text.copy()
  changed[0, 0] = (changed[0, 0] + 1) % V
  a, _ = drawn.apply(model, params, text)
  b, _ = drawn.apply(model, params, changed)
  assert (np.abs(a - b).max(axis=-1)[0] > 1e-6).all()
  np.testing.assert_array_equal(a[1:], b[1:])


@pytest.mark.parametrize("kw", [
    dict(scan=True), dict(remat_policy="nothing_saveable"),
    dict(scan=True, remat_policy="nothing_saveable")])
def test_scanned_and_recomputed_blocks_are_the_same(kw):
  model = _model()
  params = drawn.params(model, _text())

  def gradient(model, params):
    return jax.grad(lambda p: jnp.sum(model.apply(
        {"params": p}, _text(), MASK, train=True)[0] ** 2))(params)

  wanted = drawn.jit(lambda p: gradient(model, p))(params)
  other = dataclasses.replace(model, **kw)
  if kw.get("scan"):
    params, wanted = (
        {**x, "Encoder_0": weights.stack_blocks(x["Encoder_0"])}
        for x in (params, wanted))
  found = drawn.jit(lambda p: gradient(other, p))(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3,
                                                       atol=1e-4),
               found, wanted)


def test_bfloat16():
  model = _model(dtype_mm="bfloat16")
  params = drawn.params(model, _text())
  logits, out = drawn.apply(model, params, _text(), MASK)
  wanted, _ = drawn.apply(_model(), params, _text(), MASK)
  assert logits.dtype == np.float32
  assert out["with_posemb"].dtype == jnp.bfloat16
  np.testing.assert_allclose(logits, wanted, atol=0.1)


@pytest.mark.parametrize("inputs, kw, message", [
    ((_text().astype(np.float32),), {}, "must be int"),
    ((_text()[0],), {}, "must be int"),
    ((_text(), MASK[:, :2]), {}, r"\[3, 5\]; it is bool\[3, 2\]"),
    ((_text(),), dict(posemb="sincos2d"), "Unknown posemb 'sincos2d'"),
    ((_text(),), dict(pool_type="map"), "Unknown pool_type 'map'"),
])
def test_errors(inputs, kw, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(_model(**kw).init, jax.random.key(0), *inputs)


def test_learned_places_are_for_one_length():
  model = _model()
  params = drawn.params(model, _text())
  with pytest.raises(flax.errors.ScopeParamShapeError):
    jax.eval_shape(model.apply, {"params": params}, _text()[:, :3])
