"""Volume rendering in pure functions: samples along rays and their colours.

Dimensions: b rays, n samples along each. A ray is origin + t * direction.
Directions have any length, so that distances in the world are t * |direction|.

Source: arXiv:2003.08934, sections 4 and 5.2, appendix C; bmild/nerf.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from big_vision import ranges
from big_vision.layers import checks

# Length of the interval behind the last sample, if it never ends.
INFINITE = 1e10


class Options(NamedTuple):
  """Options of rendering; the scene gives near, far, background and ndc.

  Attributes:
    near, far: Range of t in which samples lie.
    background: Grey value in [0, 1] behind everything.
    num_coarse: Number of samples of the coarse field, evenly spread.
    num_fine: Number of additional samples of the fine field, placed where the
      coarse field saw something; with 0 there is no fine field.
    noise_std: Standard deviation of Gaussian noise on the raw density, in
      training only.
    last_interval: End of the last sample's interval. "infinite" never ends, as
      published, so that any density there is opaque; "far" ends at `far`.
    ndc: (height, width, focal) of the cameras to render in normalized device
      coordinates, for cameras that all look forward; None for world
      coordinates.
  """
  near: float
  far: float
  background: float
  num_coarse: ranges.Count = 64
  num_fine: ranges.CountOrZero = 128
  noise_std: ranges.NotNegative = 0.0
  last_interval: str = "infinite"
  ndc: tuple[int, int, float] | None = None


def check(options: Options):
  """Raises ValueError for invalid options."""
  checks.check_choice(
      "last_interval", options.last_interval, ("infinite", "far"))
  # Importance sampling needs at least one interval between two midpoints.
  if options.num_coarse < 3 or options.num_fine < 0 or options.noise_std < 0:
    raise ValueError(
        f"num_coarse={options.num_coarse} must be 3 or more, num_fine="
        f"{options.num_fine} and noise_std={options.noise_std} 0 or more.")


def render(
    fields: Mapping[str, Callable], rays: Mapping[str, Any], options: Options,
    rng=None) -> dict[str, dict[str, Any]]:
  """Renders rays with a coarse field and, if there is one, a fine field.

  Args:
    fields: {"coarse": f, "fine": f}, or the first of them alone; each is
      (points [b, n, 3], directions [b, n, 3], noise) -> (density, rgb), see
      `mlp.Model`.
    rays: {"origin": float32[b, 3], "direction": float32[b, 3]}, in world
      coordinates.
    options: Options of rendering.
    rng: Key of jitter and noise, for training. Without it, samples are at the
      middles of their bins and nothing is random.

  Returns:
    {name of a field: the dict that `composite` returns}. "distance" is in world
    units, or with ndc in normalized device coordinates.
  """
  keys = [None] * 4 if rng is None else jax.random.split(rng, 4)
  viewed = normalize(rays["direction"])
  origin, direction = rays["origin"], rays["direction"]
  if options.ndc is not None:
    origin, direction = to_ndc(origin, direction, *options.ndc)

  def render_field(name, t, rng_noise):
    points = origin[:, None] + t[..., None] * direction[:, None]
    noise = 0.0
    if rng_noise is not None and options.noise_std:
      noise = options.noise_std * jax.random.normal(rng_noise, t.shape)
    density, rgb = fields[name](
        points, jnp.broadcast_to(viewed[:, None], points.shape), noise)
    return composite(
        density, rgb, t, jnp.linalg.norm(direction, axis=-1),
        far=options.far if options.last_interval == "far" else None,
        background=options.background)

  t = stratified(
      keys[0], len(origin), options.num_coarse, options.near, options.far)
  seen = {"coarse": render_field("coarse", t, keys[1])}
  if options.num_fine:
    more = importance(keys[2], t, seen["coarse"]["weights"], options.num_fine)
    t = jnp.sort(jnp.concatenate([t, more], axis=-1), axis=-1)
    seen["fine"] = render_field("fine", t, keys[3])
  return seen


def stratified(rng, num_rays: int, num: int, near: float, far: float):
  """Draws one sample in each of `num` equal bins between near and far, Eq. 2.

  Args:
    rng: Key; each ray and bin draws its own place. None takes the middles.
    num_rays, num: Shape of the result.
    near, far: Range of t.

  Returns:
    float32[num_rays, num], ascending along a ray.
  """
  shape = (num_rays, num)
  within = jnp.full(shape, 0.5) if rng is None else (
      jax.random.uniform(rng, shape))
  return near + (far - near) / num * (jnp.arange(num) + within)


def importance(rng, t, weights, num: int):
  """Draws samples in proportion to weights along each ray, section 5.2.

  Their distribution is constant between the midpoints of samples. The first and
  the last weight have a midpoint on one side only and are left out. No gradient
  flows through the samples.

  Args:
    rng: Key of the samples; None takes evenly spaced quantiles.
    t: float32[b, n], ascending.
    weights: float32[b, n], non-negative.
    num: Number of samples for each ray.

  Returns:
    float32[b, num], unsorted.
  """
  t, weights = jax.lax.stop_gradient((t, weights))
  edges = 0.5 * (t[:, 1:] + t[:, :-1])  # n - 1 edges of n - 2 intervals.
  pdf = weights[:, 1:-1] + 1e-5  # Uniform where all weights are 0.
  cdf = jnp.cumsum(pdf / pdf.sum(axis=-1, keepdims=True), axis=-1)
  cdf = jnp.concatenate(
      [jnp.zeros_like(cdf[:, :1]), cdf[:, :-1], jnp.ones_like(cdf[:, :1])], -1)
  shape = (len(t), num)
  u = (jnp.broadcast_to((jnp.arange(num) + 0.5) / num, shape) if rng is None
       else jax.random.uniform(rng, shape))
  right = jax.vmap(
      lambda edges, x: jnp.searchsorted(edges, x, side="right"))(cdf, u)
  right = jnp.clip(right, 1, cdf.shape[-1] - 1)
  pick = lambda x, i: jnp.take_along_axis(x, i, axis=-1)
  low, high = pick(cdf, right - 1), pick(cdf, right)
  share = (u - low) / jnp.maximum(high - low, 1e-10)
  start, end = pick(edges, right - 1), pick(edges, right)
  return start + jnp.clip(share, 0.0, 1.0) * (end - start)


def composite(density, rgb, t, length, *, far: float | None, background: float):
  """Composites samples along rays into colours and distances, Eq. 3.

  The density and colour of a sample extend from it to the next one.

  Args:
    density: float32[b, n], per unit of length, non-negative.
    rgb: float32[b, n, 3] in [0, 1].
    t: float32[b, n], ascending.
    length: float32[b], lengths of the rays' directions.
    far: End of the last sample's interval; None if it never ends.
    background: Grey value behind everything.

  Returns:
    A dict of "rgb", float32[b, 3] in [0, 1]; "weights", float32[b, n], the
    share of a pixel's light that comes from each sample; "opacity", float32[b],
    the sum of weights; "distance", float32[b], the weighted mean of t * length,
    0 where all weights are 0.
  """
  last = (jnp.full_like(t[:, :1], INFINITE) if far is None
          else jnp.maximum(far - t[:, -1:], 0.0))
  delta = jnp.concatenate([t[:, 1:] - t[:, :-1], last], -1) * length[:, None]
  depth = density * delta
  # An exclusive sum: nothing blocks the first sample.
  before = jnp.cumsum(depth[:, :-1], axis=-1)
  before = jnp.concatenate([jnp.zeros_like(depth[:, :1]), before], axis=-1)
  weights = -jnp.expm1(-depth) * jnp.exp(-before)
  opacity = weights.sum(axis=-1)
  colour = (weights[..., None] * rgb).sum(axis=-2)
  distance = (weights * t).sum(axis=-1) * length
  return {
      "rgb": colour + background * (1 - opacity)[:, None],
      "weights": weights, "opacity": opacity,
      "distance": distance / jnp.maximum(opacity, 1e-10)}


def to_ndc(
    origin, direction, height: int, width: int, focal: float,
    near: float = 1.0):
  """Moves rays to normalized device coordinates; cameras look along -z.

  Rays meet the plane z = -near at t = 0 and reach infinity at t = 1.

  Args:
    origin, direction: float32[b, 3], in the coordinates of the mean camera.
    height, width, focal: Image size and focal length of the cameras, pixels.
    near: Distance of the near plane.

  Returns:
    origin, direction: float32[b, 3].

  Source: arXiv:2003.08934, appendix C, Eq. 25 and 26.
  """
  # Move origins to the near plane, so that t starts there.
  t = -(near + origin[:, 2:]) / direction[:, 2:]
  origin = origin + t * direction
  (ox, oy, oz), (dx, dy, dz) = origin.T, direction.T
  sx, sy = 2 * focal / width, 2 * focal / height
  return (
      jnp.stack([-sx * ox / oz, -sy * oy / oz, 1 + 2 * near / oz], axis=-1),
      jnp.stack([-sx * (dx / dz - ox / oz), -sy * (dy / dz - oy / oz),
                 -2 * near / oz], axis=-1))


def normalize(x):
  """Scales vectors [..., 3] to length 1; they must not be 0."""
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
