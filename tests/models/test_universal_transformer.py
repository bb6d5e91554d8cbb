"""The Universal Transformer against its definition in NumPy, token by token."""

import dataclasses
import functools
import math

from big_vision import config as config_lib
from big_vision import sharding
from big_vision import tree
from big_vision.layers import act
from big_vision.layers import adaptive_steps
from big_vision.layers import checks
from big_vision.layers import pooling
from big_vision.layers import posemb as posemb_lib
from big_vision.models import universal_transformer as ut
import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import drawn

# For images of drawn.IMAGE_SHAPE, and text of as many tokens.
B, H, W, D, K, M, V = 3, 2, 3, 8, 5, 5, 11
N = H * W
SIZES = dict(width=D, num_heads=2, mlp_dim=12, max_steps=M, head_zeroinit=False)
IMAGES = dict(patch_size=(4, 2), posemb="sincos2d", **SIZES)
TEXT = dict(vocab_size=V, pool_type="none", **SIZES)
LENGTHS = np.array([6, 4, 1])
MASK = np.arange(N) < LENGTHS[:, None]


def _text():
  return np.random.default_rng(1).integers(0, V, (B, N), np.int32)


def _input(model):
  """What a model takes: an image, or text and its mask."""
  return (drawn.image(),) if model.vocab_size is None else (_text(), MASK)


def _params(model, scale=0.4, bias=-1.0):
  """Such that tokens halt at all steps."""
  params = drawn.params(model, *_input(model), scale=scale)
  if model.halting == "act":
    halting = params["Transformer"]["block"]["halting"]
    halting["bias"][:] = bias
    halting["kernel"][:] = np.random.default_rng(4).normal(0, 1.2, (D, 1))
  return params


# --- The definition -----------------------------------------------------------


def _numpy_sincos(position, d=D):
  """One coordinate of one token."""
  return np.array([
      (math.cos if i % 2 else math.sin)(position / 10_000 ** (i // 2 * 2 / d))
      for i in range(d)])


def _numpy_posemb(model):
  if model.posemb == "sincos":
    return np.stack([_numpy_sincos(i + 1) for i in range(N)])
  # Parts: sin x, cos x, sin y, cos y; of two frequencies each.
  return np.array([
      [f(place * omega) for place in (x, y) for f in (math.sin, math.cos)
       for omega in (1, 1e-4)] for y in range(H) for x in range(W)])


def _layer_norm(x, p):
  """[n, d]: every token by itself."""
  return np.stack([
      (token - token.mean()) / math.sqrt(token.var() + 1e-6) * p["scale"]
      + p["bias"] for token in x])


def _numpy_attention(x, p, real):
  out = np.zeros_like(x) + p["out"]["bias"]
  for m in range(2):
    q, k, v = (x @ p[name]["kernel"][:, m] + p[name]["bias"][m]
               for name in ("query", "key", "value"))
    for i in range(len(x)):
      e = np.exp(k[real] @ q[i] / math.sqrt(D // 2))
      out[i] += e @ v[real] / e.sum() @ p["out"]["kernel"][m]
  return out


def _numpy_conv(x, kernel, grid, real):
  """Every channel by itself; three neighbours along every axis."""
  x = np.where(real[:, None], x, 0).reshape(*grid, -1)
  kernel = kernel.reshape(*kernel.shape[:-2], -1)
  out = np.zeros_like(x)
  for place in np.ndindex(*grid):
    for offset in np.ndindex(*kernel.shape[:-1]):
      at = tuple(i + j - 1 for i, j in zip(place, offset))
      if all(0 <= i < size for i, size in zip(at, grid)):
        out[place] += x[at] * kernel[offset]
  return out.reshape(-1, x.shape[-1])


def _numpy_transition(x, p, grid, real):
  for i in range(2):
    x = np.maximum(x, 0) if i else x
    if f"Conv_{i}" in p:
      x = _numpy_conv(x, p[f"Conv_{i}"]["kernel"], grid, real)
    x = x @ p[f"Dense_{i}"]["kernel"] + p[f"Dense_{i}"]["bias"]
  return x


def _numpy_ut(model, params, example, real):
  """(logits, N [n], ponder [n]) of one example, in float64."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  if model.vocab_size is None:
    state = np.stack([
        example[4 * y:4 * y + 4, 2 * x:2 * x + 2].reshape(-1).astype(float)
        @ p["embedding"]["kernel"].reshape(24, -1)
        for y in range(H) for x in range(W)]) + p["embedding"]["bias"]
    grid = (H, W)
  else:
    state, grid = p["embedding"]["embedding"][example], (N,)
  block = p["Transformer"]["block"]
  norms = [functools.partial(_layer_norm, p=block[f"LayerNorm_{i}"])
           for i in range(2)]
  attention = lambda x: _numpy_attention(
      x, block["MultiHeadDotProductAttention_0"], real)
  transition = lambda x: _numpy_transition(x, block["transition"], grid, real)

  output, total = np.zeros((N, D)), np.zeros(N)
  running, num_steps = real.copy(), np.zeros(N, int)
  ponder = np.zeros(N)
  for t in range(1, M + 1):
    x = state + _numpy_posemb(model) + _numpy_sincos(t)
    halting = 1 / (1 + np.exp(-(
        x @ block["halting"]["kernel"][:, 0] + block["halting"]["bias"])))
    for norm, branch in zip(norms, (attention, transition)):
      x = x + branch(norm(x)) if model.norm == "pre" else norm(x + branch(x))
    for i in np.flatnonzero(running):
      state[i] = x[i]
      num_steps[i] += 1
      weight = halting[i]
      if total[i] + halting[i] >= 0.99 or t == M:
        weight = 1 - total[i]
        running[i] = False
        ponder[i] = num_steps[i] + weight
      output[i] += weight * state[i]
      total[i] += weight
  if model.norm == "pre":
    output = _layer_norm(output, p["Transformer"]["encoder_norm"])
  output[~real] = 0
  if model.pool_type == "gap":
    output = output[real].mean(axis=0)
  return (output @ p["head"]["kernel"] + p["head"]["bias"], num_steps, ponder)


@pytest.mark.parametrize("sizes,transition,norm", [
    (IMAGES, "dense", "pre"), (IMAGES, "conv", "post"),
    (TEXT, "dense", "post"), ({**TEXT, "pool_type": "gap"}, "conv", "pre")])
def test_outputs_are_those_of_the_definition(sizes, transition, norm):
  """Both the scan and the loop agree with a computation by hand."""
  model = ut.Model(K, transition=transition, norm=norm, **sizes)
  params, args = _params(model), _input(model)
  real = args[1] if len(args) == 2 else np.ones((B, N), bool)
  wanted = [np.stack(part) for part in zip(*(
      _numpy_ut(model, params, args[0][i], real[i]) for i in range(B)))]
  assert np.ptp(wanted[1][real]) >= 2 and np.abs(wanted[0]).max() > 0.5
  for eval_loop in adaptive_steps.EVAL_LOOPS:
    logits, out = drawn.apply(model.clone(eval_loop=eval_loop), params, *args)
    np.testing.assert_array_equal(out["encoder"]["num_steps"], wanted[1])
    np.testing.assert_allclose(logits, wanted[0], rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(
        out["encoder"]["ponder"], wanted[2], rtol=1e-5)
    for found, of_tokens in (
        (out["losses"]["ponder_cost"], wanted[2]),
        (out["measurements"]["mean_steps"], wanted[1])):
      of_examples = [row[r].mean() for row, r in zip(of_tokens, real)]
      np.testing.assert_allclose(found, np.mean(of_examples), rtol=1e-5)


def test_coordinates():
  np.testing.assert_allclose(
      posemb_lib.sincos(np.arange(7), 12),
      np.stack([_numpy_sincos(i, 12) for i in range(7)]), atol=1e-6)
  assert posemb_lib.sincos(3, 4).shape == (4,)
  with pytest.raises(ValueError, match="even width, it is 5"):
    posemb_lib.sincos(3, 5)


# --- Depth --------------------------------------------------------------------


@pytest.mark.parametrize("sizes,norm", [(IMAGES, "pre"), (TEXT, "post")])
def test_attention_weights_of_every_step_are_those_of_a_dense_computation(
    sizes, norm):
  model = ut.Model(K, norm=norm, eval_loop="scan",
                   attention="dense(return_weights=True)", **sizes)
  params = _params(model)
  _, out = drawn.jit(model.apply)({"params": params}, *_input(model))
  encoder, block = out["encoder"], params["Transformer"]["block"]
  p = block["MultiHeadDotProductAttention_0"]
  real = MASK if model.vocab_size else np.ones((B, N), bool)
  # Softmax over all keys, one query, head and step after the other.
  for b, t in np.ndindex(B, M):
    before = out["stem"].reshape(B, N, D) if t == 0 else encoder[f"step{t:02d}"]
    x = before[b] + _numpy_posemb(model) + _numpy_sincos(t + 1)
    if norm == "pre":
      x = _layer_norm(x, block["LayerNorm_0"])
    for m in range(2):
      q, k = (x @ p[name]["kernel"][:, m] + p[name]["bias"][m]
              for name in ("query", "key"))
      for i in range(N):
        e = np.exp(k @ q[i] / math.sqrt(D // 2)) * real[b]
        np.testing.assert_allclose(
            encoder["sa_weights"][b, t, m, i], e / e.sum(), atol=1e-5)


def test_parameters_are_those_of_one_block():
  """The number of steps does not matter."""
  attention = 4 * (D * D + D)
  dense = D * 12 + 12 + 12 * D + D
  block = attention + dense + 2 * 2 * D + (D + 1)
  head = D * K + K
  for num_steps in (1, 8):
    def count(num_steps=num_steps, **kw):
      model = ut.Model(K, **{**kw, "max_steps": num_steps})
      return tree.num_elements(drawn.shapes(model, *_input(model)))
    stem = 4 * 2 * 3 * D + D
    assert count(**IMAGES) == stem + block + head
    assert count(**IMAGES, norm="pre") == stem + block + 2 * D + head
    assert count(**IMAGES, transition="conv") == (
        stem + block + 9 * (D + 12) + head)
    assert count(**TEXT) == V * D + block + head
    assert count(**TEXT, transition="conv") == (
        V * D + block + 3 * (D + 12) + head)
    assert count(**IMAGES, halting="none") == stem + block - (D + 1) + head


def test_gradients_are_sums_over_the_steps():
  """They equal those of separate blocks for each step, added up.

  And also if the steps are computed a second time to save memory.
  """
  outer = ut.Model(K, **TEXT)
  model = adaptive_steps.Encoder(
      outer._step_args((N,), jnp.float32), norm="post", max_steps=3,
      remat_policy="nothing_saveable")
  params = _params(outer)["Transformer"]
  x = np.random.default_rng(0).normal(size=(B, N, D)).astype(np.float32)
  posemb = posemb_lib.sincos(np.arange(N), D)
  scale = np.random.default_rng(1).normal(size=(B, N, D)).astype(np.float32)

  def loss(params):
    y, _ = model.apply({"params": params}, x, posemb, True, MASK)
    return jnp.sum(y * scale)

  def unrolled(blocks):
    step = adaptive_steps.Step(**model.step, max_steps=3)
    carry = adaptive_steps.Carry(
        state=x, output=jnp.zeros(x.shape),
        halting=act.start(jnp.asarray(MASK)))
    for t, params in enumerate(blocks, start=1):
      carry, _ = step.apply(
          {"params": params}, carry, jnp.int32(t), True, posemb, MASK)
    return jnp.sum(carry.output * scale)

  grads = drawn.jit(jax.grad(loss))(params)["block"]
  per_step = drawn.jit(jax.grad(unrolled))([params["block"]] * 3)
  assert np.abs(per_step[0]["transition"]["Dense_0"]["kernel"]
                - per_step[1]["transition"]["Dense_0"]["kernel"]).max() > 1e-3
  jax.tree.map(
      lambda got, *each: np.testing.assert_allclose(
          got, sum(each), rtol=1e-4, atol=2e-4), grads, *per_step)
  def is_rematerialized(model):
    return "remat" in str(jax.make_jaxpr(lambda p: model.apply(
        {"params": p}, x, posemb, True, MASK))(params))
  assert is_rematerialized(model)
  assert not is_rematerialized(model.clone(remat_policy="none"))


def test_coordinates_are_added_at_every_step():
  """With branches that return zero, nothing else happens."""
  model = ut.Model(None, norm="pre", eval_loop="scan", **IMAGES)
  params = _params(model, bias=-30)
  block = params["Transformer"]["block"]
  for name in ("MultiHeadDotProductAttention_0", "transition"):
    block[name] = jax.tree.map(np.zeros_like, block[name])
  block["halting"]["kernel"] *= 0
  _, out = drawn.apply(model, params, drawn.image())
  wanted = out["stem"].reshape(B, N, D)
  for t in range(1, M + 1):
    wanted = wanted + _numpy_posemb(model) + _numpy_sincos(t)
    np.testing.assert_allclose(
        out["encoder"][f"step{t:02d}"], wanted, atol=1e-5)
  np.testing.assert_allclose(out["encoder"]["pre_ln"], wanted, atol=1e-5)


def test_the_halting_unit_sees_coordinates():
  """Equal tokens get different probabilities, at the first step already."""
  model = ut.Model(K, eval_loop="scan", **IMAGES)
  params = _params(model)
  _, out = drawn.apply(model, params, 0 * drawn.image())
  halting = params["Transformer"]["block"]["halting"]
  x = (params["embedding"]["bias"] + _numpy_posemb(model) + _numpy_sincos(1))
  p = 1 / (1 + np.exp(-(x @ halting["kernel"][:, 0] + halting["bias"])))
  is_first = p >= 0.99
  np.testing.assert_allclose(
      out["encoder"]["weights"][0, :, 0], np.where(is_first, 1, p), atol=1e-5)
  assert np.ptp(p) > 0.1


def test_a_token_that_has_halted_stays_and_is_seen():
  model = ut.Model(None, eval_loop="scan", **TEXT)
  params = _params(model)
  text = _text()
  text[0, 0] = 0  # No other token of the first example is this one.
  text[0, 1:] = np.maximum(text[0, 1:], 1)
  # This token halts at once, the others never: told apart by a large channel.
  embedding = params["embedding"]["embedding"]
  embedding[:, 7], embedding[0, 7] = 0, 30
  halting = params["Transformer"]["block"]["halting"]
  halting["kernel"][:], halting["kernel"][7], halting["bias"][:] = 0, 5, -30
  _, out = drawn.apply(model, params, text, MASK)
  steps = [out["encoder"][f"step{t:02d}"] for t in range(1, M + 1)]
  assert out["encoder"]["num_steps"][0].tolist() == [1] + [M] * (N - 1)
  for before, after in zip(steps, steps[1:]):
    np.testing.assert_array_equal(before[0, 0], after[0, 0])
    assert np.abs(before[0, 1:] - after[0, 1:]).max(axis=1).min() > 1e-3
  embedding[0, 0] += 1
  _, other = drawn.apply(model, params, text, MASK)
  np.testing.assert_array_equal(
      other["encoder"]["num_steps"][0], out["encoder"]["num_steps"][0])
  assert np.abs(other["encoded"] - out["encoded"])[0].max(axis=1).min() > 1e-3
  np.testing.assert_array_equal(other["encoded"][1:], out["encoded"][1:])


def test_first_probability_is_that_of_the_published_bias():
  """sigmoid(1) = .73, so that every token takes two steps."""
  model = ut.Model(K, eval_loop="scan", **IMAGES)
  params = drawn.jit(model.init)(jax.random.key(0), drawn.image())["params"]
  _, out = drawn.apply(model, params, drawn.image())
  weights = out["encoder"]["weights"]
  np.testing.assert_allclose(weights[..., 0], 0.731059, atol=1e-5)
  np.testing.assert_allclose(weights[..., 1], 1 - 0.731059, atol=1e-5)
  assert np.all(out["encoder"]["num_steps"] == 2)


def test_without_halting_all_steps_are_taken():
  for sizes in (IMAGES, TEXT):
    model = ut.Model(K, halting="none", eval_loop="scan", **sizes)
    halting = ut.Model(K, eval_loop="scan", **sizes)
    params = _params(halting)
    args = _input(model)
    unused = params["Transformer"]["block"].pop("halting")
    _, out = drawn.apply(model, params, *args)
    real = args[-1] if len(args) == 2 else np.ones((B, N), bool)
    assert np.all(out["encoder"]["num_steps"] == M * real)
    np.testing.assert_array_equal(
        out["encoded"],
        np.where(real[..., None], out["encoder"][f"step{M:02d}"], 0))
    assert not {"losses", "measurements"} & set(out)
    # And it is what halting does if it never says so.
    unused["kernel"], unused["bias"] = 0 * unused["kernel"], np.full(1, -100.)
    params["Transformer"]["block"]["halting"] = unused
    _, never = drawn.apply(halting, params, *args)
    np.testing.assert_allclose(out["encoded"], never["encoded"], atol=1e-6)


# --- The loop that stops ------------------------------------------------------


@pytest.mark.parametrize("bias", [3.0, -1.0, -30.0])
@pytest.mark.parametrize("sizes", [IMAGES, TEXT], ids=["images", "text"])
def test_stopping_early_changes_nothing(sizes, bias):
  """Only the steps that some token needs are computed."""
  model = ut.Model(K, **sizes)
  params, args = _params(model, bias=bias), _input(model)
  if bias > 0:
    params["Transformer"]["block"]["halting"]["kernel"] *= 0
  logits, out = drawn.apply(model, params, *args)
  wanted_logits, wanted = drawn.apply(
      model.clone(eval_loop="scan"), params, *args)
  trained_logits, trained = drawn.apply(model, params, *args, train=True)
  np.testing.assert_allclose(logits, wanted_logits, atol=1e-6)
  np.testing.assert_array_equal(trained_logits, wanted_logits)
  assert tree.flatten_with_names(trained)[0][0] == (
      tree.flatten_with_names(wanted)[0][0])
  num_executed = out["encoder"].pop("num_executed")
  assert num_executed == out["encoder"]["num_steps"].max()
  assert num_executed == {3.0: 2, -30.0: M}.get(bias, num_executed)
  assert out["measurements"].pop("executed_steps") == num_executed
  assert wanted["measurements"].pop("executed_steps") == M
  assert wanted["encoder"].pop("num_executed") == M
  for t in range(1, M + 1):
    assert f"step{t:02d}" not in out["encoder"]
    del wanted["encoder"][f"step{t:02d}"]
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6),
               out, wanted)
  np.testing.assert_allclose(
      out["encoder"]["weights"].sum(axis=-1),
      1 if len(args) == 1 else MASK, atol=1e-6)


def test_the_program_of_evaluation_has_a_loop_of_unknown_length():
  """The program of training has none, so that it has a gradient."""
  model = ut.Model(K, **IMAGES)
  def primitives(**kw):
    jaxpr = jax.make_jaxpr(functools.partial(model.apply, **kw))(
        {"params": drawn.shapes(model)}, drawn.image())
    return {eqn.primitive.name for eqn in jaxpr.eqns} & {"while", "scan"}
  assert primitives() == {"while"}
  assert primitives(train=True) == {"scan"}


@pytest.mark.parametrize("sizes", [IMAGES, TEXT], ids=["images", "text"])
def test_examples_of_a_batch_do_not_meet(sizes):
  """An example gets the same result and steps, alone or in a batch."""
  model = ut.Model(K, **sizes)
  params, args = _params(model, bias=1.0), _input(model)
  logits, out = drawn.apply(model, params, *args)
  num_steps = out["encoder"]["num_steps"]
  assert len(set(num_steps.max(axis=1))) > 1  # Someone waits for others.
  for i in range(B):
    alone, out_alone = drawn.apply(model, params, *(x[i:i + 1] for x in args))
    np.testing.assert_allclose(alone[0], logits[i], atol=1e-6)
    np.testing.assert_array_equal(
        out_alone["encoder"]["num_steps"][0], num_steps[i])
    assert out_alone["encoder"]["num_executed"] == num_steps[i].max()


def test_an_empty_batch_of_padding_takes_no_step():
  model = ut.Model(K, **{**TEXT, "pool_type": "gap"})
  params = _params(model)
  logits, out = drawn.apply(model, params, _text(), np.zeros((B, N), bool))
  assert out["encoder"]["num_executed"] == 0
  assert out["losses"]["ponder_cost"] == 0
  np.testing.assert_allclose(
      logits, np.tile(params["head"]["bias"], (B, 1)), atol=1e-6)


# --- Padding ------------------------------------------------------------------


def test_padding_changes_nothing():
  """The content and the amount of padding do not matter."""
  model = ut.Model(K, transition="conv", **TEXT)
  params, text = _params(model), _text()
  logits, out = drawn.apply(model, params, text, MASK)
  # As if nothing were there: each example at its own length, without a mask.
  costs = [out["encoder"]["ponder"][0].mean()]  # The first has no padding.
  for i, length in list(enumerate(LENGTHS))[1:]:
    alone, out_alone = drawn.apply(model, params, text[i:i + 1, :length])
    np.testing.assert_allclose(logits[i, :length], alone[0], atol=1e-5)
    np.testing.assert_array_equal(
        out["encoder"]["num_steps"][i],
        np.pad(out_alone["encoder"]["num_steps"][0], (0, N - length)))
    costs.append(out_alone["losses"]["ponder_cost"])
  np.testing.assert_allclose(
      out["losses"]["ponder_cost"], np.mean(costs), rtol=1e-5)
  other = np.where(MASK, text, (text + 1) % V)
  np.testing.assert_array_equal(
      drawn.apply(model, params, other, MASK)[0], logits)
  np.testing.assert_allclose(
      logits[~MASK], np.tile(params["head"]["bias"], (np.sum(~MASK), 1)),
      atol=1e-6)


def test_shifted_places_are_those_behind_padding():
  """Each example by its own number, in training only."""
  shift = 3
  model = ut.Model(K, **TEXT)
  shifted = dataclasses.replace(model, max_shift=shift)
  params, text = _params(model), _text()
  everywhere = np.ones((B, N), bool)
  behind = [drawn.apply(model, params, np.pad(text, ((0, 0), (s, 0))),
                        np.pad(everywhere, ((0, 0), (s, 0))))[0][:, s:]
            for s in range(shift + 1)]
  apply = drawn.jit(lambda rng: shifted.apply(
      {"params": params}, text, everywhere, train=True,
      rngs={"dropout": rng})[0])
  found = set()
  for seed in range(4):
    logits = apply(jax.random.key(seed))
    found.add(tuple(
        next(s for s in range(shift + 1)
             if np.allclose(logits[i], behind[s][i], atol=1e-5))
        for i in range(B)))
  assert {0, shift} <= {s for shifts in found for s in shifts}
  assert any(len(set(shifts)) > 1 for shifts in found)
  np.testing.assert_array_equal(
      drawn.apply(shifted, params, text, everywhere)[0], behind[0])


# --- Gradients ----------------------------------------------------------------


def _make_grads(model, fn):
  """The function params -> ((fn(logits, out), (logits, out)), gradients)."""
  def value(params):
    logits, out = model.apply({"params": params}, *_input(model), train=True)
    return fn(logits, out), (logits, out)
  return drawn.jit(jax.value_and_grad(value, has_aux=True))


def test_ponder_cost_teaches_the_halting_unit():
  """The gradient is -1 for each probability before the last; N has none."""
  model = ut.Model(K, **TEXT)
  params = _params(model)
  # Of the unit alone: then each p is a function of the bias by itself.
  halting = params["Transformer"]["block"]["halting"]
  halting["kernel"] *= 0
  halting["bias"][:] = -0.5
  cost_and_grads = _make_grads(
      model, lambda _, out: out["losses"]["ponder_cost"])
  (cost, _), grads = cost_and_grads(params)
  p = 1 / (1 + math.exp(0.5))
  assert cost == pytest.approx(3 + 1 - 2 * p, rel=1e-5)  # .38, .76, 1.13
  assert grads["Transformer"]["block"]["halting"]["bias"][0] == pytest.approx(
      -2 * p * (1 - p), rel=1e-4)
  # One step for all: nothing can be gained, so nothing is learned.
  halting["bias"][:] = 10
  (cost, _), grads = cost_and_grads(params)
  assert cost == 2
  assert all(not np.any(grad) for grad in jax.tree.leaves(grads))


def test_a_larger_weight_of_the_cost_means_fewer_steps():
  """Compares training with no cost, a small and a large one."""
  model = ut.Model(K, **TEXT)
  labels = np.eye(K)[_text() % K]
  costs = []
  def loss(params, weight):
    logits, out = model.apply({"params": params}, *_input(model), train=True)
    xent = -jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1)
    cost = out["losses"]["ponder_cost"]
    return pooling.mean_of_tokens(xent, MASK).mean() + weight * cost, cost
  @drawn.jit
  def train(params, weight):
    def step(params, _):
      grads, cost = jax.grad(loss, has_aux=True)(params, weight)
      return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), cost
    return jax.lax.scan(step, params, length=40)[1]
  for weight in (0.0, 0.1, 1.0):
    costs.append(train(_params(model, scale=0.2), weight))
  assert costs[0][0] == costs[2][0]
  assert costs[2][-1] < costs[1][-1] - 0.2 < costs[0][-1] - 0.4


# --- Number formats, randomness -----------------------------------------------


def test_bfloat16_computes_and_float32_stays():
  model = ut.Model(K, norm="pre", dtype_mm="bfloat16", **TEXT)
  params, args = _params(model, scale=0.2), _input(model)
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"float32"}
  (_, (logits, out)), grads = _make_grads(model, lambda logits, out: (
      jnp.sum(logits ** 2) + out["losses"]["ponder_cost"]))(params)
  dtypes = {name: str(x.dtype) for name, x in tree.flatten_with_names(out)}
  for name in ("stem", "encoder/step01", f"encoder/step{M:02d}"):
    assert dtypes.pop(name) == "bfloat16", name
  for name in ("encoder/num_steps", "encoder/num_executed"):
    assert dtypes.pop(name) == "int32", name
  assert {dtypes[name] for name in dtypes if "/step" not in name} == {"float32"}
  wanted = np.stack([_numpy_ut(model, params, args[0][i], MASK[i])[0]
                     for i in range(B)])
  error = np.abs(logits - wanted).max() / np.abs(wanted).max()
  assert 1e-4 < error < 0.1
  for name, grad in tree.flatten_with_names(grads):
    assert grad.dtype == jnp.float32 and np.isfinite(grad).all(), name


def test_steps_are_counted_in_float32():
  """In bfloat16, .2485 is .248, and four of them are .992, not .994."""
  for p, num_steps in ((0.2485, 4), (0.2472, 5), (0.331, 3)):
    for dtype in checks.COMPUTE_DTYPES:
      model = ut.Model(K, dtype_mm=dtype, **IMAGES)
      params = _params(model, bias=math.log(p / (1 - p)))
      params["Transformer"]["block"]["halting"]["kernel"] *= 0
      _, out = drawn.apply(model, params, drawn.image())
      assert np.all(out["encoder"]["num_steps"] == num_steps), (p, dtype)


def test_dropout_draws_at_every_step():
  model = ut.Model(K, dropout=0.5, eval_loop="scan", halting="none", norm="pre",
                   **IMAGES)
  params = _params(model)
  train = drawn.jit(lambda params, seed: model.apply(
      {"params": params}, drawn.image(), train=True,
      rngs={"dropout": jax.random.key(seed)}))
  logits = train(params, 0)[0]
  np.testing.assert_array_equal(logits, train(params, 0)[0])
  assert np.abs(logits - train(params, 1)[0]).max() > 1e-3
  # With branches that give 1 what is kept is seen: elsewhere at each step.
  block = params["Transformer"]["block"]
  for name in ("MultiHeadDotProductAttention_0", "transition"):
    block[name] = jax.tree.map(np.zeros_like, block[name])
  block["transition"]["Dense_1"]["bias"] += 100
  _, out = train(params, 2)
  steps = [out["encoder"][f"step{t:02d}"] for t in (1, 2, 3)]
  kept = [steps[i + 1] - steps[i] > 100 for i in range(2)]
  assert 0.3 < np.mean(kept) < 0.7 and np.mean(kept[0] != kept[1]) > 0.3
  # Evaluation draws nothing: it needs no rng, which training does.
  jax.eval_shape(model.apply, {"params": params}, drawn.image())
  with pytest.raises(flax.errors.InvalidRngError):
    jax.eval_shape(functools.partial(model.apply, train=True),
                   {"params": params}, drawn.image())


def test_attention_with_random_features():
  """Drawn once, for all steps, and only read by the loop."""
  model = ut.Model(K, attention="favor(num_features=6)", **IMAGES)
  features = jax.eval_shape(
      model.init, jax.random.key(0), drawn.image())["features"]
  assert [leaf.shape for leaf in jax.tree.leaves(features)] == [(6, 4)]
  logits = []
  for seed in range(2):
    draws = jax.tree.map(
        lambda leaf, seed=seed: np.random.default_rng(seed).normal(
            size=leaf.shape).astype(np.float32), features)
    logits.append(drawn.compiled(model)(
        {"params": _params(model), "features": draws}, drawn.image())[0])
  assert np.abs(logits[0] - logits[1]).max() > 1e-4


# --- Outputs, options ---------------------------------------------------------


def test_out_names_and_shapes():
  steps = {f"encoder/step{t:02d}": (B, N, D) for t in range(1, M + 1)}
  both = {
      "encoder/weights": (B, N, M), "encoder/num_steps": (B, N),
      "encoder/ponder": (B, N), "encoder/num_executed": (),
      "encoded": (B, N, D), "losses/ponder_cost": (),
      "measurements/mean_steps": (), "measurements/executed_steps": ()}
  for sizes, eval_loop, wanted in (
      (IMAGES, "scan", {"stem": (B, H, W, D), "pre_logits": (B, D),
                        "logits": (B, K), **steps}),
      (TEXT, "while", {"stem": (B, N, D), "pre_logits": (B, N, D),
                       "logits": (B, N, K)})):
    model = ut.Model(K, eval_loop=eval_loop, **sizes)
    logits, out = drawn.apply(model, _params(model), *_input(model))
    shapes = {name: leaf.shape for name, leaf in tree.flatten_with_names(out)}
    assert shapes == both | wanted
    np.testing.assert_array_equal(out["logits"], logits)
  model = ut.Model(K, norm="pre", **IMAGES)
  _, out = drawn.apply(model, _params(model), drawn.image())
  assert out["encoder"]["pre_ln"].shape == (B, N, D)


def test_without_classes_the_features_come_out():
  model = ut.Model(None, **IMAGES)
  params = _params(model)
  features, out = drawn.apply(model, params, drawn.image())
  assert "head" not in params and "logits" not in out
  np.testing.assert_array_equal(features, out["pre_logits"])
  np.testing.assert_allclose(features, out["encoded"].mean(axis=1), atol=1e-5)


@pytest.mark.parametrize("sizes,kw,args,message", [
    (IMAGES, {}, (np.zeros((1, 9, 6, 3)),), r"\(4, 2\).*\[1, 9, 6, 3\]"),
    (IMAGES, {}, (np.zeros((1, 8), int),), "are .1, 8.. For text, set vocab"),
    (TEXT, {}, (np.zeros((1, 8)),),
     r"vocab_size=11 .*int\[b, n\]; it is float"),
    (TEXT, {}, (np.zeros((1, 8, 1), int),), r"it is int\d+\[1, 8, 1\]"),
    (TEXT, {}, (np.zeros((1, 8), int), np.ones((1, 7), bool)),
     r"for every token, \[1, 8\]; it is bool\[1, 7\]"),
    (IMAGES, dict(max_shift=2), (), "max_shift=2 must be.*sincos2d"),
    (TEXT, dict(posemb="sincos2d"), (np.zeros((1, 8), int),), "for images"),
    (TEXT, dict(width=7, num_heads=1), (np.zeros((1, 8), int),), "even width"),
    (IMAGES, dict(num_heads=3), (), "width 8 does not divide into num_heads 3"),
    (IMAGES, dict(max_steps=0), (), "max_steps must be at least 1, it is 0"),
    (IMAGES, dict(epsilon=0.0), (), r"epsilon must be in \(0, 1\), it is 0.0"),
    (IMAGES, dict(halting="pondernet"), (),
     "halting 'pondernet'.*'act', 'none'"),
    (IMAGES, dict(norm="mid"), (), "norm 'mid'.*'post', 'pre'"),
    (IMAGES, dict(transition="sepconv"), (), "'conv'.*'conv', 'dense'"),
    (IMAGES, dict(posemb="learn"), (), "posemb 'learn'.*'sincos', 'sincos2d'"),
    (IMAGES, dict(pool_type="map"), (), "pool_type 'map'.*'gap', 'none'"),
    (IMAGES, dict(eval_loop="for"), (), "eval_loop 'for'.*'scan', 'while'"),
    (IMAGES, dict(remat_policy="all"), (), "remat_policy 'all'"),
    (IMAGES, dict(dtype_mm="float16"), (), "dtype_mm 'float16'"),
])
def test_what_cannot_be_is_refused(sizes, kw, args, message):
  model = ut.Model(K, **{**sizes, **kw})
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), *(args or (drawn.image(),)))


def test_misspelt_argument_of_a_config_is_found():
  with pytest.raises(config_lib.ConfigError, match="mean 'max_steps'"):
    config_lib.call(ut.Model, {"max_step": 1}, "config.model", num_classes=2)


# --- On a mesh, loading -------------------------------------------------------


def test_sharded_activations_change_nothing():
  """All devices stop together, at the last token of all of them."""
  model = ut.Model(K, **TEXT)
  params = _params(model)
  text, mask = (np.concatenate([x, x])[:4] for x in _input(model))
  wanted, wanted_out = drawn.apply(model, params, text, mask)
  mesh = sharding.make_mesh([("data", 4), ("model", 2)])
  with sharding.use(mesh, [("act_batch", "data"), ("act_mlp", "model")]):
    logits, out = drawn.jit(model.apply)({"params": params}, text, mask)
  np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)
  assert logits.sharding.spec[0] == "data"
  np.testing.assert_array_equal(
      out["encoder"]["num_steps"], wanted_out["encoder"]["num_steps"])
  assert out["encoder"]["num_executed"] == (
      wanted_out["encoder"]["num_executed"])


def test_loading_round_trip(tmp_path):
  """Also for another number of steps, which is no part of the parameters."""
  params = _params(ut.Model(7, **IMAGES))
  path = str(tmp_path / "weights.npz")
  np.savez(path, **{
      f"params/{name}": leaf for name, leaf in tree.flatten_with_names(params)})
  shapes = drawn.shapes(ut.Model(K, **{**IMAGES, "max_steps": 3}))
  with pytest.raises(ValueError, match=r"head/kernel is float32\[8, 7\]"):
    ut.load(shapes, path, IMAGES)
  loaded = ut.load(shapes, path, IMAGES, dont_load=["head/.*"])
  assert loaded.pop("head")["kernel"] is shapes["head"]["kernel"]
  params.pop("head")
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  with pytest.raises(
      ValueError, match=r"'B/16'.*Published checkpoints are \[\]"):
    ut.load(shapes, "B/16", IMAGES)
