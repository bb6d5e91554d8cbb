"""Quantizers against loops."""

import itertools

from big_vision import config as config_lib
from big_vision.proj.vqgan import quantizers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
CODEBOOK = RNG.normal(size=(7, 5)).astype(np.float32)


def _vq(**kw):
  return quantizers.VectorQuantizer(7, 5, **kw)


def _apply(quantizer, z=Z, codebook=CODEBOOK, **kw):
  return quantizer.apply({"params": {"embedding": codebook}}, z, **kw)


def _brute_force_codes(z, codebook):
  codes = np.zeros(z.shape[:-1], int)
  for place in np.ndindex(codes.shape):
    distances = [sum((float(a) - float(b)) ** 2 for a, b in zip(z[place], e))
                 for e in codebook]
    codes[place] = distances.index(min(distances))
  return codes


def test_nearest_codes_are_those_a_loop_finds():
  quantized, out = _apply(_vq())
  codes = _brute_force_codes(Z, CODEBOOK)
  assert out["codes"].dtype == jnp.int32
  np.testing.assert_array_equal(out["codes"], codes)
  np.testing.assert_allclose(quantized, CODEBOOK[codes], atol=1e-6)
  assert len(set(codes.ravel())) > 3


@pytest.mark.parametrize("legacy", [False, True])
def test_beta_scales_the_encoder_term_unless_legacy(legacy):
  def loss(z, codebook):
    _, out = _apply(_vq(beta=0.25, legacy=legacy), z, codebook)
    return sum(out["losses"].values())
  to_z, to_codebook = jax.grad(loss, (0, 1))(Z, CODEBOOK)
  codes = _brute_force_codes(Z, CODEBOOK)
  plain = 2 * (Z - CODEBOOK[codes]) / Z.size
  plain_codebook = np.zeros_like(CODEBOOK)
  np.add.at(plain_codebook, codes, -plain)
  beta_z, beta_codebook = (1, 0.25) if legacy else (0.25, 1)
  np.testing.assert_allclose(to_z, beta_z * plain, rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(
      to_codebook, beta_codebook * plain_codebook, rtol=1e-4, atol=1e-7)


def test_straight_through_gradients_reach_the_encoder_only():
  weights = RNG.normal(size=Z.shape).astype(np.float32)
  def loss(z, codebook):
    return jnp.sum(weights * _apply(_vq(), z, codebook)[0])
  to_z, to_codebook = jax.grad(loss, (0, 1))(Z, CODEBOOK)
  np.testing.assert_array_equal(to_z, weights)
  assert not np.any(to_codebook)


def test_distances_are_float32_for_any_activation_dtype():
  rng = np.random.default_rng(1)
  codebook = rng.uniform(-1, 1, (64, 16)).astype(np.float32) / 64
  z = jnp.asarray(rng.normal(size=(1, 8, 8, 16)), jnp.bfloat16)
  exact = np.argmin(np.sum((np.asarray(z, np.float64)[..., None, :]
                            - codebook.astype(np.float64)) ** 2, -1), -1)
  np.testing.assert_array_equal(
      quantizers.nearest_codes(z, codebook), exact)
  # What the mistake would do.
  low = jnp.asarray(codebook, jnp.bfloat16)
  distances = jnp.sum(z * z, -1, keepdims=True) + jnp.sum(low * low, -1) - (
      2 * z @ low.T)
  assert np.mean(jnp.argmin(distances, -1) == exact) < 0.5


def test_codes_start_within_one_over_their_number():
  table = _vq().init(jax.random.key(0), Z)["params"]["embedding"]
  assert 0.8 / 7 < np.abs(table).max() <= 1 / 7


@pytest.mark.parametrize("spec", [
    "vq(num_codes=7, width=5)", "ema(num_codes=7, width=5)",
    "fsq(levels=(4, 3, 2, 5, 8))"])
def test_looking_up_the_codes_gives_the_quantized_values(spec):
  quantizer = quantizers.make(spec)
  assert quantizer.width == 5
  variables = quantizer.init(jax.random.key(0), Z)
  quantized, out = quantizer.apply(variables, Z)
  assert quantized.dtype == jnp.float32
  assert 0 <= out["codes"].min() and out["codes"].max() < quantizer.num_codes
  # z + (e - z) is rounded: close, and not the same.
  np.testing.assert_allclose(quantizer.apply(
      variables, out["codes"], method="lookup"), quantized, atol=1e-5)


# --- EMA ----------------------------------------------------------------------


def _ema_steps(batches, decay=0.9):
  quantizer = quantizers.EMAQuantizer(7, 5, decay=decay)
  variables = quantizer.init(jax.random.key(0), Z)
  assert set(variables) == {quantizers.CODEBOOK}
  variables = {"codebook": {
      "usage": np.full(7, 1 / 7, np.float32), "total": CODEBOOK / 7}}
  for z in batches:
    _, variables = quantizer.apply(
        variables, z, train=True, mutable=["codebook"])
  return variables["codebook"]


def test_ema_codes_are_running_means_of_their_vectors():
  batches = [RNG.normal(size=Z.shape).astype(np.float32) for _ in range(3)]
  usage, total = np.full(7, 1 / 7), CODEBOOK.astype(np.float64) / 7
  for z in batches:
    codes = _brute_force_codes(z, total / usage[:, None])
    count, summed = np.zeros(7), np.zeros((7, 5))
    for place in np.ndindex(codes.shape):
      count[codes[place]] += 1
      summed[codes[place]] += z[place]
    usage = 0.9 * usage + 0.1 * count / codes.size
    total = 0.9 * total + 0.1 * summed / codes.size
  got = _ema_steps(batches)
  np.testing.assert_allclose(got["usage"], usage, rtol=1e-5)
  np.testing.assert_allclose(got["total"], total, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(got["usage"].sum(), 1, rtol=1e-6)


def test_ema_is_still_in_evaluation():
  quantizer = quantizers.EMAQuantizer(7, 5)
  variables = quantizer.init(jax.random.key(0), Z)
  quantizer.apply(variables, Z)  # Would raise if it changed anything.


def test_reviving_changes_neither_sums_nor_used_codes():
  usage = np.array([0.3, 0.0, 0.25, 0.2, 1e-5, 0.15, 0.09999], np.float32)
  total = (RNG.normal(size=(7, 5)) * usage[:, None]).astype(np.float32)
  got = jax.device_get(quantizers.revive(
      {"usage": jnp.asarray(usage), "total": jnp.asarray(total)},
      jax.random.key(0)))
  np.testing.assert_allclose(got["usage"].sum(), usage.sum(), rtol=1e-6)
  np.testing.assert_allclose(
      got["total"].sum(axis=0), total.sum(axis=0), rtol=1e-4, atol=1e-6)
  # The least used takes from the most used, the next from the next.
  for dead, donor in ((1, 0), (4, 2)):
    np.testing.assert_allclose(
        got["usage"][[dead, donor]], (usage[dead] + usage[donor]) / 2,
        rtol=1e-6)
    before = total[donor] / usage[donor]
    for code in (dead, donor):
      np.testing.assert_allclose(
          got["total"][code] / got["usage"][code], before, rtol=0.01)
    apart = got["total"][dead] - got["total"][donor]
    assert 0 < np.abs(apart).max() < 0.01
  for code in (3, 5, 6):
    assert got["usage"][code] == usage[code]
    np.testing.assert_array_equal(got["total"][code], total[code])


def test_a_codebook_far_from_the_data_comes_to_life():
  """All vectors choose one code at first; in the end they use most of them."""
  z = RNG.normal(size=(4, 8, 8, 5)).astype(np.float32)
  quantizer = quantizers.EMAQuantizer(16, 5, decay=0.8)
  usage = jnp.full(16, 1e-4)
  codebook = {"usage": usage, "total": (
      50 + jnp.arange(16.)[:, None]) * jnp.ones((16, 5)) * usage[:, None]}

  @jax.jit
  def step(codebook, rng):
    (_, out), changed = quantizer.apply(
        {"codebook": codebook}, z, train=True, mutable=["codebook"])
    return quantizers.revive(changed["codebook"], rng), out["codes"]
  used = []
  for i in range(60):
    codebook, codes = step(codebook, jax.random.key(i))
    used.append(len(np.unique(codes)))
  assert used[0] == 1 and used[-1] >= 14


# --- FSQ ----------------------------------------------------------------------


LEVELS = (4, 3, 2)


def test_fsq_is_the_nearest_level_of_each_channel():
  fsq = quantizers.FSQ(LEVELS)
  z = (RNG.normal(size=(1, 6, 6, 3)) * 2).astype(np.float32)
  quantized, out = fsq.apply({}, z)
  assert fsq.num_codes == 24 and not out["losses"]
  # Where a channel is 0 it is at its middle level; see the paper's appendix.
  allowed = [[-1, -0.5, 0, 0.5], [-1, 0, 1], [-1, 0]]
  for place in np.ndindex(1, 6, 6):
    values, code, basis = [], 0, 1
    for x, level, levels in zip(z[place], allowed, LEVELS):
      half = (levels - 1) * 1.001 / 2
      offset = 0.0 if levels % 2 else 0.5
      bounded = np.tanh(x + np.arctanh(offset / half)) * half - offset
      values.append(np.round(bounded) / (levels // 2))
      assert values[-1] in level
      code += basis * level.index(values[-1])
      basis *= levels
    np.testing.assert_allclose(quantized[place], values, atol=1e-6)
    assert out["codes"][place] == code


def test_fsq_lookup_has_every_code_once():
  fsq = quantizers.FSQ(LEVELS)
  table = np.asarray(fsq.apply({}, jnp.arange(24), method="lookup"))
  assert len(np.unique(table, axis=0)) == 24
  assert {tuple(row) for row in table} == set(itertools.product(
      [-1, -0.5, 0, 0.5], [-1, 0, 1], [-1, 0]))


def test_fsq_gradient_is_that_of_the_bounded_value():
  fsq = quantizers.FSQ((5,))
  z = np.linspace(-2, 2, 9, dtype=np.float32)[:, None]
  grad = jax.grad(lambda z: fsq.apply({}, z)[0].sum())(z)
  np.testing.assert_allclose(
      grad, 2.002 / 2 / np.cosh(z) ** 2, rtol=1e-4)


@pytest.mark.parametrize("spec, message", [
    ("vqq(num_codes=2)", "'vqq'.*'vq'"),
    ("vq(num_code=2, width=3)", "num_code does not exist.*'num_codes'"),
    ("vq(num_codes=2)", "lacks.*width"),
    ("vq(7, 5)", "need names")])
def test_wrong_specs_are_errors_that_help(spec, message):
  with pytest.raises((ValueError, config_lib.ConfigError), match=message):
    quantizers.make(spec)


# --- An independent implementation --------------------------------------------


@pytest.mark.peer
def test_vq_agrees_with_vector_quantize_pytorch():
  torch = pytest.importorskip("torch")
  vqp = pytest.importorskip("vector_quantize_pytorch")
  theirs = vqp.VectorQuantize(
      dim=5, codebook_size=7, learnable_codebook=True, ema_update=False,
      commitment_weight=0.25)
  theirs._codebook.embed.data = torch.tensor(CODEBOOK)[None]
  theirs.eval()
  quantized, codes, _ = theirs(torch.tensor(Z.reshape(2, 12, 5)))
  ours, out = _apply(_vq())
  np.testing.assert_array_equal(out["codes"].reshape(2, 12), codes)
  np.testing.assert_allclose(
      ours.reshape(2, 12, 5), quantized.detach(), atol=1e-6)


@pytest.mark.peer
def test_fsq_agrees_with_vector_quantize_pytorch():
  torch = pytest.importorskip("torch")
  vqp = pytest.importorskip("vector_quantize_pytorch")
  levels = (8, 5, 5, 4)
  z = RNG.normal(size=(1, 50, 4)).astype(np.float32)
  quantized, codes = vqp.FSQ(list(levels))(torch.tensor(z))
  ours, out = quantizers.FSQ(levels).apply({}, z)
  np.testing.assert_array_equal(out["codes"], codes)
  np.testing.assert_allclose(ours, quantized.detach(), atol=1e-6)
