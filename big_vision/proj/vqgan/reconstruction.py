"""Quality of reconstructed images, in numbers and pictures."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from big_vision import image_quality
from big_vision import ranges
from big_vision.evaluators import harness
from big_vision.run import pictures


class Evaluator:
  """Measures PSNR, SSIM, L1 and sharpness of reconstructions, and shows some.

  Needs a predict function that returns {"image": float[b, h, w, c]} in [-1, 1],
  as "reconstruct" does; values outside of that are clipped before they are
  measured.

  Metrics, all means over images:
    psnr: dB, higher is better.
    ssim: at most 1, higher is better.
    l1: mean |x - x^| of values in [-1, 1], lower is better.
    sharpness: mean size of the Laplacian of all reconstructions relative to
      that of the images; 1 is as sharp, less is blurred.
    images: a picture: a row of inputs, a row of reconstructions, ...
  """

  def __init__(
      self, predict_fn: Callable, loader: harness.Loader, *,
      data: Mapping[str, Any], pp_fn: str,
      num_pictures: ranges.CountOrZero = 16):
    """Opens the data; compiles and reads nothing yet.

    Args:
      predict_fn: (state, batch, rng=) -> {"image"}, not jitted.
      loader: Opens the data and compiles.
      data: Source to evaluate on.
      pp_fn: Preprocessing string.
      num_pictures: Number of images to show, 8 a row.
    """
    self._num_pictures = num_pictures
    self._measure = loader.compile(_measure, predict_fn=predict_fn)
    self._show = loader.compile(_reconstruct, predict_fn=predict_fn)
    self._examples = loader.open(data, pp_fn)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields (name, value or picture)."""
    means = self._examples.mean(self._measure, state)
    for name in ("psnr", "ssim", "l1"):
      yield name, means[name]
    yield "sharpness", means["sharp_reconstruction"] / means["sharp"]
    if self._num_pictures:
      pairs = self._examples.collect(self._show, state, self._num_pictures)
      yield "images", compare(*pairs)


def _reconstruct(state, batch, rng, *, predict_fn):
  """Returns images and reconstructions, float32[b, h, w, c] in [-1, 1]."""
  reconstruction = predict_fn(state, batch, rng=rng)["image"]
  return batch["image"].astype(jnp.float32), jnp.clip(reconstruction, -1, 1)


def _measure(state, batch, rng, *, predict_fn):
  image, reconstruction = _reconstruct(
      state, batch, rng, predict_fn=predict_fn)
  a, b = (image + 1) / 2, (reconstruction + 1) / 2
  return {
      "psnr": image_quality.psnr(a, b), "ssim": image_quality.ssim(a, b),
      "l1": jnp.mean(jnp.abs(image - reconstruction), axis=(1, 2, 3)),
      "sharp": image_quality.sharpness(a),
      "sharp_reconstruction": image_quality.sharpness(b),
  }


def compare(
    inputs: np.ndarray, outputs: np.ndarray, columns: int = 8) -> np.ndarray:
  """Arranges images in a picture, each row above the row of its outputs.

  Args:
    inputs: float[n, h, w, c] in [-1, 1].
    outputs: float[n, h, w, c] in [-1, 1].
    columns: Images in a row; what does not fill a row is left out.

  Returns:
    uint8[..., ..., c].
  """
  columns = min(columns, len(inputs))
  rows = []
  for start in range(0, len(inputs) - columns + 1, columns):
    rows += [pictures.to_uint8(x[start:start + columns])
             for x in (inputs, outputs)]
  return pictures.grid(rows)
