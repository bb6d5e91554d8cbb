"""Volume rendering against closed forms and loops.

Each test is named after a mistake that NeRFs written from memory make.
"""

from big_vision.proj.nerf import rendering
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import drawn

_composite = drawn.jit(
    rendering.composite, static_argnames=("far", "background"))


def _slab(density, length, num, *, direction=1.0, far="far"):
  """Opacity of a homogeneous slab between t = 0 and `length`."""
  t = jnp.linspace(0, length, num, endpoint=False)[None]
  shown = _composite(
      jnp.full((1, num), density), jnp.ones((1, num, 3)), t,
      jnp.asarray([direction]), far=length if far == "far" else None,
      background=0.0)
  return jax.device_get(shown)


def _loop(density, rgb, t, length, far, background):
  """Eq. 3, one sample after the other, float64."""
  colour, opacity, distance, weights = np.zeros(3), 0.0, 0.0, []
  through = 1.0
  for i in range(len(t)):
    end = t[i + 1] if i + 1 < len(t) else far
    alpha = 1 - np.exp(-density[i] * (end - t[i]) * length)
    weights.append(through * alpha)
    colour += weights[-1] * rgb[i]
    opacity += weights[-1]
    distance += weights[-1] * t[i] * length
    through *= 1 - alpha
  return colour + background * through, weights, opacity, distance / opacity


def _random(b=4, n=9, seed=0):
  rng = np.random.default_rng(seed)
  return (rng.exponential(1.0, (b, n)) * (rng.random((b, n)) < 0.7),
          rng.random((b, n, 3)), np.sort(rng.uniform(2, 6, (b, n))),
          rng.uniform(0.5, 2, b))


def test_composite_is_the_sum_of_the_paper():
  density, rgb, t, length = _random()
  shown = _composite(
      *(jnp.asarray(x, jnp.float32) for x in (density, rgb, t, length)),
      far=6.5, background=0.7)
  for i in range(len(t)):
    colour, weights, opacity, distance = _loop(
        density[i], rgb[i], t[i], length[i], 6.5, 0.7)
    np.testing.assert_allclose(shown["rgb"][i], colour, atol=1e-6)
    np.testing.assert_allclose(shown["weights"][i], weights, atol=1e-6)
    np.testing.assert_allclose(shown["opacity"][i], opacity, atol=1e-6)
    np.testing.assert_allclose(shown["distance"][i], distance, rtol=1e-5)


def test_transmittance_excludes_the_sample_itself():
  shown = _slab(0.5, 4.0, 64)
  np.testing.assert_allclose(shown["opacity"], 1 - np.exp(-2), atol=1e-6)
  # The sum of the weights is what the product of what passes leaves.
  density, rgb, t, length = _random()
  density[:, 0] = 2  # Something in the first interval must be seen whole.
  shown = _composite(
      *(jnp.asarray(x, jnp.float32) for x in (density, rgb, t, length)),
      far=7.0, background=0.0)
  delta = np.diff(t, axis=1, append=7.0) * length[:, None]
  alpha = 1 - np.exp(-density * delta)
  np.testing.assert_allclose(
      shown["weights"].sum(1), 1 - np.prod(1 - alpha, 1), atol=1e-6)
  np.testing.assert_allclose(shown["weights"][:, 0], alpha[:, 0], atol=1e-6)


def test_interval_lengths_scale_with_the_direction():
  once = _slab(0.5, 4.0, 64)
  twice = _slab(0.5, 2.0, 64, direction=2.0)  # The same places.
  np.testing.assert_allclose(twice["opacity"], once["opacity"], atol=1e-6)
  np.testing.assert_allclose(twice["distance"], once["distance"], rtol=1e-5)


RAYS = {"origin": np.asarray([[0.3, 0.1, 4.0], [0.0, -0.5, 4.0]], np.float32),
        "direction": np.asarray([[0.1, 0, -1], [0, 0.1, -1]], np.float32)}
OPTIONS = rendering.Options(2.0, 6.0, 1.0, 8, 16)


def _fog(points):
  return jnp.exp(-(points ** 2).sum(-1)), jax.nn.sigmoid(points)


def _render(options, rng=None, rays=RAYS, field=_fog):
  """What `render` returns, and what it asked of the fields, in order."""
  @drawn.jit
  def run(rays, rng):
    asked = []
    def ask(points, directions, noise):
      asked.append((points, directions, noise))
      return field(points)
    return rendering.render(
        {"coarse": ask, "fine": ask}, rays, options, rng), asked
  return jax.device_get(run(rays, rng))


def test_fields_get_unit_directions():
  one, asked = _render(OPTIONS._replace(last_interval="far"))
  longer, asked_longer = _render(
      OPTIONS._replace(last_interval="far", near=1.0, far=3.0),
      rays={**RAYS, "direction": 2 * RAYS["direction"]})
  for _, directions, _ in asked + asked_longer:
    np.testing.assert_allclose(
        np.linalg.norm(directions, axis=-1), 1, rtol=1e-6)
  for name in one:
    for key in ("rgb", "opacity", "distance"):
      np.testing.assert_allclose(
          one[name][key], longer[name][key], rtol=2e-5, err_msg=key)


def test_the_last_interval():
  """Published, any density in it is opaque; "far" is for exact comparisons."""
  np.testing.assert_allclose(_slab(1e-3, 4.0, 64, far=None)["opacity"], 1)
  np.testing.assert_allclose(
      _slab(1e-3, 4.0, 64)["opacity"], 1 - np.exp(-4e-3), atol=1e-7)
  with pytest.raises(ValueError, match="last_interval 'fra'.*'far'"):
    rendering.check(rendering.Options(2, 6, 1, last_interval="fra"))
  for wrong in (dict(num_coarse=2), dict(num_fine=-1), dict(noise_std=-1.)):
    with pytest.raises(ValueError, match=f"{list(wrong)[0]}="):
      rendering.check(rendering.Options(2, 6, 1, **wrong))


_importance = drawn.jit(rendering.importance, static_argnums=3)


def _sampled(t, weights, u):
  """Inverse of the distribution function, one number at a time."""
  edges = [(a + b) / 2 for a, b in zip(t[:-1], t[1:])]
  pdf = np.asarray(weights[1:-1], np.float64) + 1e-5
  cdf = np.concatenate([[0], np.cumsum(pdf / pdf.sum())])
  place = min(np.searchsorted(cdf, u, side="right"), len(cdf) - 1)
  share = (u - cdf[place - 1]) / (cdf[place] - cdf[place - 1])
  return edges[place - 1] + share * (edges[place] - edges[place - 1])


def test_importance_sampling_inverts_the_distribution():
  rng = np.random.default_rng(0)
  t = np.sort(rng.uniform(2, 6, (3, 9))).astype(np.float32)
  weights = rng.random((3, 9)).astype(np.float32)
  got = _importance(None, t, weights, 16)
  expected = [[_sampled(t[i], weights[i], (k + 0.5) / 16) for k in range(16)]
              for i in range(3)]
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_samples_are_drawn_where_the_weights_are():
  """Two spikes; off by half a bin or by one, and the mean is."""
  t = np.linspace(2, 6, 32, dtype=np.float32)
  weights = np.zeros(32, np.float32)
  weights[[8, 20]] = 0.75, 0.25
  got = np.asarray(_importance(
      jax.random.key(0), t[None], weights[None], 200_000))[0]
  bin_width = t[1] - t[0]
  expected = 0.75 * t[8] + 0.25 * t[20]
  assert abs(got.mean() - expected) < 0.02 * bin_width
  near = np.minimum(abs(got - t[8]), abs(got - t[20])) < 0.51 * bin_width
  assert near.mean() > 0.999
  # Where nothing was seen, samples are everywhere.
  got = np.asarray(_importance(None, t[None], 0 * t[None], 100))
  np.testing.assert_allclose(np.diff(got), np.diff(got)[0, 0], rtol=1e-3)


def test_no_gradient_flows_through_sample_positions():
  def seen(scale):
    fields = {
        "coarse": lambda points, *_: (scale * _fog(points)[0], _fog(points)[1]),
        "fine": lambda points, *_: _fog(points)}
    seen = rendering.render(fields, RAYS, OPTIONS, jax.random.key(0))
    return seen["fine"]["rgb"].sum(), seen["coarse"]["rgb"].sum()
  tangent = drawn.jit(lambda x: jax.jvp(seen, (x,), (1.0,))[1])(1.0)
  assert float(tangent[0]) == 0 and float(tangent[1]) != 0


def test_the_fine_field_gets_the_sorted_union_of_samples():
  _, asked = _render(OPTIONS, jax.random.key(1))
  # t, as directions go along -z from 4.
  coarse, fine = (4.0 - points[..., 2] for points, _, _ in asked)
  assert coarse.shape == (2, 8) and fine.shape == (2, 8 + 16)
  assert (np.diff(fine) >= 0).all()
  for a, b in zip(coarse, fine):
    assert np.isin(a, b).all()


def test_density_noise_is_for_training_only():
  noisy = OPTIONS._replace(noise_std=2.0)
  for options, rng in ((noisy, None), (OPTIONS, jax.random.key(0))):
    assert [noise for *_, noise in _render(options, rng)[1]] == [0.0, 0.0]
  many = {key: np.repeat(value, 100, 0) for key, value in RAYS.items()}
  for *_, noise in _render(noisy, jax.random.key(0), many)[1]:
    np.testing.assert_allclose(np.std(noise), 2.0, rtol=0.06)


def test_jitter_samples_and_noise_are_drawn_independently():
  many = {key: np.repeat(value, 200, 0) for key, value in RAYS.items()}
  empty = lambda points: (0 * points[..., 0], points)
  options = OPTIONS._replace(noise_std=1.0, num_fine=8)
  _, ((coarse, _, noise), (fine, _, fine_noise)) = _render(
      options, jax.random.key(2), many, empty)
  # In empty space, samples of the fine field are uniform between midpoints.
  coarse, fine = 4.0 - coarse[..., 2], 4.0 - fine[..., 2]
  within = (coarse - 2) / 0.5 % 1
  edges = (coarse[:, 1:] + coarse[:, :-1]) / 2
  mean = (fine.sum(1) - coarse.sum(1)) / 8
  share = (mean - edges[:, 0]) / (edges[:, -1] - edges[:, 0])
  for a, b in ((within, noise), (within.mean(1), share),
               (noise, fine_noise.ravel()[:noise.size].reshape(noise.shape)),
               (noise.mean(1), share)):
    assert abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]) < 0.25


def test_empty_space_shows_the_background_once():
  def nothing(points):
    return jnp.zeros(points.shape[:-1]), jnp.full(points.shape, 0.2)
  for background in (0.0, 1.0):
    seen, _ = _render(OPTIONS._replace(background=background), field=nothing)
    np.testing.assert_array_equal(seen["fine"]["rgb"], background)
    np.testing.assert_array_equal(seen["fine"]["distance"], 0)
  # Half seen, half background.
  shown = _composite(
      jnp.full((1, 1), np.log(2.0)), jnp.full((1, 1, 3), 0.4),
      jnp.zeros((1, 1)), jnp.ones(1), far=1.0, background=1.0)
  np.testing.assert_allclose(shown["opacity"], 0.5, rtol=1e-6)
  np.testing.assert_allclose(shown["rgb"], 0.7, rtol=1e-6)


def test_each_ray_and_bin_draws_its_own_position():
  stratified = drawn.jit(rendering.stratified, static_argnums=(1, 2))
  t = np.asarray(stratified(jax.random.key(0), 500, 20, 2.0, 6.0))
  within = (t - 2.0) / 0.2 - np.arange(20)
  assert ((within > -1e-4) & (within < 1 + 1e-4)).all()
  # Uniform: variance 1/12, over rays and over bins, and unrelated.
  np.testing.assert_allclose(within.var(axis=0), 1 / 12, rtol=0.25)
  np.testing.assert_allclose(within.var(axis=1).mean(), 1 / 12, rtol=0.05)
  related = np.corrcoef(within.T) - np.eye(20)
  assert abs(related).max() < 0.25
  middles = stratified(None, 2, 4, 2.0, 6.0)
  np.testing.assert_allclose(middles, [[2.5, 3.5, 4.5, 5.5]] * 2)


def test_ndc_is_the_perspective_of_the_camera():
  """Along a ray, NDC are projections of the points on it, and t' is 1 + 1/z."""
  h, w, focal = 6, 8, 10.0
  rng = np.random.default_rng(0)
  origin = rng.normal(size=(5, 3)).astype(np.float32) * 0.2
  direction = np.concatenate([rng.normal(size=(5, 2)) * 0.3, -np.ones((5, 1))],
                             1).astype(np.float32)
  start, way = map(np.asarray, drawn.jit(rendering.to_ndc)(
      origin, direction, h, w, focal))
  for t in (0.0, 0.3, 0.9):
    got = start + t * way
    # OpenGL's projection with n = 1 and no far plane, of some point on the ray.
    z = -1 / (1 - t)
    point = origin + ((z - origin[:, 2]) / direction[:, 2])[:, None] * direction
    expected = np.stack([
        -focal / (w / 2) * point[:, 0] / point[:, 2],
        -focal / (h / 2) * point[:, 1] / point[:, 2],
        1 + 2 / point[:, 2]], -1)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.peer
def test_weights_are_those_of_nerfacc():
  nerfacc = pytest.importorskip("nerfacc")
  import torch
  density, rgb, t, length = _random(seed=1)
  shown = _composite(
      *(jnp.asarray(x, jnp.float32) for x in (density, rgb, t, length)),
      far=6.5, background=0.0)
  ends = np.concatenate([t[:, 1:], np.full((len(t), 1), 6.5)], 1)
  as_tensor = lambda x: torch.tensor(
      np.asarray(x) * length[:, None], dtype=torch.float32)
  weights, *_ = nerfacc.render_weight_from_density(
      as_tensor(t), as_tensor(ends), torch.tensor(density, dtype=torch.float32))
  np.testing.assert_allclose(shown["weights"], weights.numpy(), atol=1e-6)
