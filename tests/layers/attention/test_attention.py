"""Attention against loops over single numbers."""

import functools
import math

from big_vision.hardware import flops as flops_lib
from big_vision.layers import attention
from big_vision.layers.attention import registry
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import drawn

# The exact ones that run without a GPU. No chunk divides a length.
IMPLS = {
    "dense": dict(impl="dense"),
    "xla": dict(impl="xla"),
    "chunks": dict(impl="memory_efficient", query_chunk_size=2,
                   key_chunk_size=3),
}
_jit = drawn.jit
B, N, S, M, D = 2, 3, 4, 4, 8
# And those of tokens that look at each other.
SQUARE = {**IMPLS, "local": dict(impl="local"), "fused": dict(impl="fused")}


def _attend(q, k, v, *, mask=None, bias=None, **kw):
  """`attention.attend`, compiled."""
  return _jit(lambda q, k, v, mask, bias: attention.attend(
      q, k, v, mask=mask, bias=bias, **kw))(q, k, v, mask, bias)


def _loops(q, k, v, *, mask=None, bias=None, causal=False, scale=None):
  """The definition, in float64, one query at a time."""
  b, n, m, d = q.shape
  s, m_kv = k.shape[1:3]
  mask = np.broadcast_to(True if mask is None else mask, (b, m, n, s))
  bias = np.broadcast_to(0.0 if bias is None else bias, (b, m, n, s))
  out = np.zeros(q.shape)
  for ib, im, i in np.ndindex(b, m, n):
    ikv = im // (m // m_kv)
    logits = []
    for j in range(s):
      allowed = mask[ib, im, i, j] and not (causal and j > i)
      dot = sum(float(q[ib, i, im, c]) * float(k[ib, j, ikv, c])
                for c in range(d))
      dot = dot / math.sqrt(d) if scale is None else dot * scale
      logits.append(dot + bias[ib, im, i, j] if allowed else -1e30)
    weights = np.exp(np.array(logits) - max(logits))
    weights /= weights.sum()
    out[ib, i, im] = weights @ v[ib, :, ikv].astype(np.float64)
  return out


def _qkv(m_kv=M, dtype=np.float32, n=N, s=S):
  rng = np.random.default_rng(0)
  return [rng.normal(size=shape).astype(dtype)
          for shape in ((B, n, M, D), (B, s, m_kv, D), (B, s, m_kv, D))]


_rng = np.random.default_rng(1)
_MASK = _rng.random((B, M, N, S)) < 0.6
_MASK[..., 0] = True
CASES = {
    "plain": {},
    "mask": dict(mask=_MASK),
    "mask_of_keys": dict(mask=_MASK[:, :1, :1]),
    "mask_without_batch": dict(mask=_MASK[0]),
    "bias": dict(bias=_rng.normal(size=(1, M, N, S)).astype(np.float32)),
    # What others add where they mask: all of a query's keys, and some.
    "bias_lowest": dict(bias=np.where(
        np.arange(S) < [[4], [3], [0]], np.finfo(np.float32).min,
        np.float32(0))),
    "bias_2d": dict(bias=_rng.normal(size=(N, S)).astype(np.float32)),
    "causal": dict(causal=True),
    "scale": dict(scale=0.3),
    "all": dict(mask=_MASK, causal=True, scale=0.7,
                bias=_rng.normal(size=(B, 1, N, S)).astype(np.float32)),
}


@pytest.mark.parametrize("case,m_kv", [
    *((case, M) for case in CASES), ("plain", 2), ("plain", 1), ("all", 2),
    ("all", 1)])
@pytest.mark.parametrize("impl", IMPLS)
def test_is_what_loops_give(impl, case, m_kv):
  q, k, v = _qkv(m_kv)
  got = _attend(q, k, v, **IMPLS[impl], **CASES[case])
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(
      got, _loops(q, k, v, **CASES[case]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_agree_with_finite_differences(impl):
  q, k, v = _qkv(2)
  target = np.random.default_rng(2).normal(size=q.shape)
  loss = lambda q, k, v: (attention.attend(
      q, k, v, **IMPLS[impl], causal=True) * target).sum()
  for argnum in range(3):
    args = [q, k, v]
    grad = _jit(jax.grad(loss, argnum))(*args)
    step = np.random.default_rng(3).normal(size=args[argnum].shape)
    def at(t):
      moved = [x.astype(np.float64) for x in (q, k, v)]
      moved[argnum] = moved[argnum] + t * step
      return (_loops(*moved, causal=True) * target).sum()
    np.testing.assert_allclose(
        (grad * step).sum(), (at(1e-4) - at(-1e-4)) / 2e-4, rtol=1e-3)


@pytest.mark.parametrize("impl", SQUARE)
def test_logits_and_softmax_are_float32_in_bfloat16(impl):
  """In bfloat16, logits 80 and 80.25 would be equal, and so their weights."""
  q = jnp.ones((1, 2, 1, 2), jnp.bfloat16)
  k = jnp.array([[80, 0], [80, 0.25]], jnp.bfloat16).reshape(1, 2, 1, 2)
  v = jnp.array([[1, 0], [0, 1]], jnp.bfloat16).reshape(1, 2, 1, 2)
  got = _attend(q, k, v, **SQUARE[impl], scale=1.0)
  assert got.dtype == jnp.bfloat16
  first = 1 / (1 + math.exp(0.25))
  np.testing.assert_allclose(
      got.astype(np.float32).ravel(), [first, 1 - first] * 2, atol=3e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("impl", SQUARE)
def test_large_logits_stay_finite_and_weights_sum_to_one(impl, dtype):
  signs = jnp.where(jnp.arange(S) % 2, 1.0, -1.0)
  q = jnp.full((B, S, M, D), 80 / math.sqrt(D), dtype)
  k = jnp.broadcast_to(signs[:, None, None], (B, S, M, D)).astype(dtype)
  got = _attend(q, k, jnp.ones_like(k), **SQUARE[impl])
  np.testing.assert_allclose(got.astype(np.float32), 1.0, atol=1e-3)


@pytest.mark.parametrize("impl", IMPLS)
def test_query_that_sees_nothing_gets_the_mean(impl):
  q, k, v = _qkv()
  got = _attend(q, k, v, **IMPLS[impl], mask=np.zeros((N, S), bool))
  np.testing.assert_allclose(
      got, np.broadcast_to(v.mean(axis=1, keepdims=True), got.shape),
      rtol=1e-5, atol=1e-6)


def test_unknown_implementation_says_what_exists():
  with pytest.raises(ValueError, match="'dens'.*did you mean 'dense'.*'xla'"):
    attention.attend(*_qkv(), impl="dens")


def test_unsupported_options_are_refused(monkeypatch):
  monkeypatch.setattr(
      registry, "IMPLEMENTATIONS", dict(registry.IMPLEMENTATIONS))
  @attention.register("mine")
  def _linear(q, k, v, *, power=8):
    return q * power
  np.testing.assert_array_equal(
      attention.attend(*_qkv(), impl="mine", power=2), _qkv()[0] * 2)
  for asked in (dict(mask=_MASK), dict(bias=np.zeros((N, S), np.float32)),
                dict(causal=True)):
    with pytest.raises(ValueError, match=(
        r"'mine' does not support '(mask|bias|causal)'; \['dense', 'xla', "
        r"'cudnn', 'memory_efficient'.*\] do. It takes \['power'\]")):
      attention.attend(*_qkv(), impl="mine", **asked)
  with pytest.raises(ValueError, match=r"'power'; \['mine'\] do"):
    attention.attend(*_qkv(), power=2)
  with pytest.raises(ValueError, match="none does .did you mean 'scale'"):
    attention.attend(*_qkv(), scal=2)
  with pytest.raises(ValueError, match="There is an attention 'mine'"):
    attention.register("mine")(_linear)


@pytest.mark.parametrize("impl", ["linear", "favor", "local"])
def test_unsupported_masks_and_biases_are_refused(impl):
  """None of them drops a mask or a bias silently."""
  with pytest.raises(ValueError, match=(
      rf"'{impl}' supports only masks that are the same.*\[2, 4, 3, 4\].*"
      r"\['dense', 'xla', 'cudnn', 'memory_efficient'\] support any")):
    attention.attend(*_qkv(), impl=impl, mask=_MASK)
  with pytest.raises(ValueError, match=(
      rf"'{impl}' does not support 'bias'; "
      r"\['dense', 'xla', 'cudnn', 'memory_efficient'\] do")):
    attention.attend(*_qkv(), impl=impl, bias=np.zeros((N, S), np.float32))


@pytest.mark.parametrize("impl", attention.IMPLEMENTATIONS)
def test_no_implementation_drops_out(impl):
  with pytest.raises(ValueError, match="does not support 'dropout'; none does"):
    attention.attend(*_qkv(), impl=impl, dropout=True)


@pytest.mark.parametrize("impl", attention.IMPLEMENTATIONS)
def test_only_dense_returns_its_weights(impl):
  if impl != "dense":
    with pytest.raises(ValueError, match=(
        rf"'{impl}' does not support 'return_weights'; \['dense'\] do")):
      attention.attend(*_qkv(), impl=impl, return_weights=True)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("m_kv", [4, 2])
@pytest.mark.parametrize("causal", [False, True])
def test_weights_are_the_softmax_that_mixes_the_values(m_kv, causal, dtype):
  q, k, v = _qkv(m_kv=m_kv, dtype=dtype)
  bias = np.random.default_rng(2).normal(size=(M, N, S)).astype(np.float32)
  kw = dict(mask=_MASK, bias=bias, causal=causal)
  y, weights = _attend(q, k, v, return_weights=True, **kw)
  np.testing.assert_array_equal(y, _attend(q, k, v, **kw))
  assert weights.shape == (B, M, N, S) and weights.dtype == jnp.float32
  np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
  # Values that are one-hot in the keys make the definition return its weights.
  assert S <= D
  one_hot = np.broadcast_to(np.eye(S, D)[:, None], (B, S, m_kv, D))
  wanted = _loops(q.astype(np.float64), k.astype(np.float64), one_hot, **kw)
  np.testing.assert_allclose(
      weights, np.moveaxis(wanted[..., :S], 1, 2), rtol=1e-4, atol=1e-5)


def test_cudnn_says_what_it_needs():
  with pytest.raises(ValueError, match="needs an Nvidia GPU.*'cpu' here"):
    attention.attend(*_qkv(), impl="cudnn")


def test_masks_and_shapes_that_do_not_fit_are_refused():
  q, k, v = _qkv()
  with pytest.raises(ValueError, match="must be bool, this one is float32"):
    attention.attend(q, k, v, mask=np.ones((N, S), np.float32))
  with pytest.raises(ValueError, match=r"mask must broadcast.*\[2, 4, 3, 4\]"):
    attention.attend(q, k, v, mask=np.ones((S, N), bool))
  with pytest.raises(ValueError, match="bias must broadcast"):
    attention.attend(q, k, v, bias=np.ones((1, B, M, N, S), np.float32))
  for bad in ((q[..., :4], k, v), (q[:1], k, v), (q, k[:, :2], v),
              (q, k[:, :, :3], v[:, :, :3]), (q[0], k[0], v[0]),
              (q.astype(jnp.bfloat16), k, v)):
    with pytest.raises(ValueError, match="m_kv divides m; it got q "):
      attention.attend(*bad)


# --- Local --------------------------------------------------------------------


@pytest.mark.parametrize("window,case", [
    (1, {}), (2, dict(causal=True)), (3, dict(scale=0.3)), (7, {}),
    (9, dict(causal=True)),
    (2, dict(mask=np.random.default_rng(6).random((B, 1, 1, 7)) < 0.6)),
    (3, dict(mask=np.random.default_rng(7).random((1, M, 1, 7)) < 0.6,
             causal=True))], ids=str)
def test_local_is_dense_within_a_band(window, case):
  q, k, v = _qkv(2, n=7, s=7)
  distance = abs(np.arange(7)[:, None] - np.arange(7))
  band = dict(case, mask=(distance <= window) & case.get("mask", True))
  np.testing.assert_allclose(
      _attend(q, k, v, impl="local", window=window, **case),
      _loops(q, k, v, **band), rtol=1e-4, atol=1e-5)


def test_a_window_wider_than_the_text_costs_no_more():
  x = jax.ShapeDtypeStruct((1, 16, 1, D), jnp.float32)
  local, dense = (flops_lib.count(jax.make_jaxpr(
      lambda q, k, v, impl=impl: attention.attend(q, k, v, impl=impl))(x, x, x))
                  for impl in ("local", "dense"))
  assert local <= 4 * dense  # Each block of 16 and what is on both sides of it.


def test_gradients_of_local_are_those_of_dense():
  q, k, v = _qkv(2, n=7, s=7)
  target = np.random.default_rng(5).normal(size=q.shape)
  band = abs(np.arange(7)[:, None] - np.arange(7)) <= 2
  def grads(**kw):
    loss = lambda *args: (attention.attend(*args, **kw) * target).sum()
    return _jit(jax.grad(loss, (0, 1, 2)))(q, k, v)
  for got, wanted in zip(grads(impl="local", window=2), grads(mask=band)):
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_local_says_what_it_wants():
  with pytest.raises(ValueError, match="window=128, 3 queries and 4 keys"):
    attention.attend(*_qkv(), impl="local")
  with pytest.raises(ValueError, match="it got window=0"):
    attention.attend(*_qkv(n=S), impl="local", window=0)


# --- The module ---------------------------------------------------------------


def test_module_has_the_parameters_and_the_output_of_flax():
  x, x_kv = (np.random.default_rng(i).normal(size=(B, n, 8)).astype(np.float32)
             for i, n in enumerate((N, S)))
  theirs = nn.MultiHeadDotProductAttention(num_heads=2)
  params = _jit(theirs.init)(jax.random.key(0), x, x_kv)
  params = jax.tree.map(
      lambda p: p + np.random.default_rng(p.size).normal(size=p.shape), params)
  ours = attention.MultiHeadAttention(num_heads=2)
  shapes = jax.eval_shape(ours.init, jax.random.key(0), x, x_kv)
  assert (jax.tree.map(lambda p: (p.shape, p.dtype), shapes) ==
          jax.tree.map(lambda p: (p.shape, p.dtype), params))
  np.testing.assert_allclose(
      _jit(ours.apply)(params, x, x_kv)[0], _jit(theirs.apply)(params, x, x_kv),
      rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
      _jit(ours.apply)(params, x)[0], _jit(theirs.apply)(params, x, x),
      rtol=1e-4, atol=1e-5)


def test_module_with_fewer_heads_for_keys_and_values():
  x = np.random.default_rng(0).normal(size=(B, N, 8)).astype(np.float32)
  module = attention.MultiHeadAttention(num_heads=4, num_kv_heads=1)
  params = _jit(module.init)(jax.random.key(0), x)
  assert params["params"]["query"]["kernel"].shape == (8, 4, 2)
  assert params["params"]["value"]["kernel"].shape == (8, 1, 2)
  # One head that all share is as many equal ones.
  full = jax.tree.map(lambda p: p, params)
  for name in ("key", "value"):
    full["params"][name] = jax.tree.map(
        lambda p: jnp.repeat(p, 4, axis=-2), params["params"][name])
  np.testing.assert_allclose(
      _jit(module.apply)(params, x)[0],
      _jit(attention.MultiHeadAttention(num_heads=4).apply)(full, x)[0],
      rtol=1e-5, atol=1e-6)


def test_module_reads_options_from_its_string():
  x = np.random.default_rng(0).normal(size=(B, N, 8)).astype(np.float32)
  def apply(attn):
    module = attention.MultiHeadAttention(num_heads=2, attention=attn)
    return _jit(module.init_with_output)(jax.random.key(0), x)[0][0]
  np.testing.assert_allclose(
      apply("dense"), apply("xla(scale=0.5)"), rtol=1e-5, atol=1e-6)
  assert np.abs(apply("dense") - apply("dense(scale=3.0)")).max() > 1e-3
  with pytest.raises(ValueError, match="need names"):
    apply("dense(0.5)")
  with pytest.raises(ValueError, match="width 8 does not divide.*num_heads 3"):
    attention.MultiHeadAttention(num_heads=3).init(jax.random.key(0), x)


def _init(attn, x, **kw):
  module = attention.MultiHeadAttention(num_heads=2, attention=attn, **kw)
  return module, _jit(module.init)(jax.random.key(0), x)


def test_module_keeps_what_was_drawn_beside_the_same_parameters():
  x = np.random.default_rng(0).normal(size=(B, N, 8)).astype(np.float32)
  module, variables = _init("favor(num_features=6, kernel='trigonometric')", x)
  assert set(variables) == {"params", "features"}
  assert variables["features"]["favor"].shape == (6, 4)
  jax.tree.map(np.testing.assert_array_equal, variables["params"],
               _init("dense", x)[1]["params"])
  # It is what the implementation gets, and a forward pass leaves it as it is.
  apply = _jit(lambda variables: module.apply(
      variables, x, mutable=["features"]))
  (same, _), changed = apply(variables)
  np.testing.assert_array_equal(
      changed["features"]["favor"], variables["features"]["favor"])
  twice = jax.tree.map(lambda w: 2 * w, variables["features"])
  (other, _), _ = apply({**variables, "features": twice})
  assert np.abs(same - other).max() > 1e-3
  def shapes(attn):
    module = attention.MultiHeadAttention(num_heads=2, attention=attn)
    return jax.eval_shape(module.init, jax.random.key(0), x)
  assert shapes("favor")["features"]["favor"].shape == (256, 4)
  assert set(shapes("favor(kernel='relu', num_features=0)")) == {"params"}


@pytest.mark.parametrize("attn,error", [
    ("favor(num_features=-1)", "num_features of attention 'favor'.*it is -1"),
    ("favor(num_features=2.5)", "must be an integer of at least 0, it is 2.5"),
    ("favor(num_features=0)", "'positive' of attention 'favor' needs a proj"),
    ("favor(kernel='softmax')", "kernel of favor 'softmax'.*'positive'"),
    ("favor(kernel='relu', scale=2.)", "'relu' of attention 'favor' has no"),
    ("favor(scale=-1.)", "scale above 0, it is -1.0"),
    ("dense(num_features=8)", "'dense' does not support 'num_features'"),
    ("favour", "Unknown attention 'favour' .did you mean 'favor'")])
def test_module_refuses_options(attn, error):
  with pytest.raises(ValueError, match=error):
    _init(attn, np.zeros((1, 2, 8), np.float32))


@pytest.mark.parametrize("num_kv_heads", [0, 3])
def test_module_refuses_heads_that_do_not_divide(num_kv_heads):
  module = attention.MultiHeadAttention(2, num_kv_heads)
  with pytest.raises(ValueError, match=f"num_kv_heads {num_kv_heads} does not"):
    jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 2, 8)))


def test_draws_must_be_given_outside_of_the_module():
  with pytest.raises(ValueError, match=r"'favor' needs \['projection'\]"):
    attention.attend(*_qkv(), impl="favor")


def test_a_new_attention_with_draws_is_one_registration(monkeypatch):
  monkeypatch.setattr(
      registry, "IMPLEMENTATIONS", dict(registry.IMPLEMENTATIONS))
  @attention.register(
      "mine", draw=lambda rng, shape: jax.random.normal(rng, shape))
  def _mine(q, k, v, *, projection):
    del k, v
    return q * projection.sum()
  x = np.ones((1, 2, 8), np.float32)
  module, variables = _init("mine(num_features=3)", x)
  assert variables["features"]["mine"].shape == (3, 4)
  none = {"mine": np.zeros((3, 4))}
  np.testing.assert_array_equal(
      module.apply({**variables, "features": none}, x)[0], np.zeros((1, 2, 8)))
  drawn = attention.redraw(none, jax.random.key(0), 3, 3)
  assert np.abs(drawn["mine"]).min() > 0


def test_redraws_are_functions_of_rng_and_layer():
  features = {f"block{i}": {"favor": jnp.zeros((2, 4, 4))} for i in range(2)}
  rng = jax.random.key(0)
  redraw = _jit(functools.partial(attention.redraw, every=3))
  for step in (0, 1, 2, 4, 5, 7):  # Every third, and not at the start.
    for leaf in jax.tree.leaves(redraw(features, rng, step)):
      assert not leaf.any()
  drawn = redraw(features, rng, 3)
  leaves = [layer for leaf in jax.tree.leaves(drawn) for layer in leaf]
  assert len(leaves) == 4
  for i, leaf in enumerate(leaves):  # Each is a rotation with other lengths.
    unit = leaf / np.linalg.norm(leaf, axis=-1, keepdims=True)
    np.testing.assert_allclose(unit @ unit.T, np.eye(4), atol=1e-5)
    for other in leaves[:i]:
      assert np.abs(leaf - other).max() > 0.1
  again = redraw(drawn, rng, 6)
  jax.tree.map(np.testing.assert_array_equal, again, drawn)
  other = redraw(drawn, jax.random.key(1), 6)
  assert np.abs(other["block0"]["favor"] - drawn["block0"]["favor"]).max() > 0.1
  # A layer's draw does not depend on which others there are.
  alone = redraw({"block1": features["block1"]}, rng, 3)
  np.testing.assert_array_equal(
      alone["block1"]["favor"], drawn["block1"]["favor"])
