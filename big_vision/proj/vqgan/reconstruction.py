"""How well images are reconstructed, in numbers and to look at."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import itertools
from typing import Any

import jax.numpy as jnp

from big_vision import image_quality
from big_vision.evaluators import harness
from big_vision.run import pictures


class Evaluator:
  """PSNR, SSIM, L1 and sharpness of reconstructions, and a picture of some.

  Needs a predict function that returns {"image": float[b, h, w, c]} in [-1, 1],
  as "reconstruct" does; what is outside of that is cut before it is measured.
  Yields, as means over images,
    "psnr"       dB, higher is better;
    "ssim"       at most 1, higher is better;
    "l1"         mean |x - x^| of values in [-1, 1], lower is better;
    "sharpness"  the mean size of the Laplacian of all reconstructions relative
                 to that of the images: 1 is as sharp, less is blurred;
    "images"     a picture: a row of inputs, a row of reconstructions, ...

  Args:
    predict_fn: un-jitted.
    batch_sharding: of the batches.
    data, pp_fn, batch_size, pp_modules: see `common.open_data`.
    num_pictures: how many images to show; 8 a row.
  """

  def __init__(
      self, predict_fn: Callable, *, batch_sharding, data: Mapping[str, Any],
      pp_fn: str, batch_size: int, num_pictures: int = 16,
      pp_modules: Sequence[str] | None = None):
    self._batches = harness.open_data(
        data, pp_fn, batch_size, batch_sharding, pp_modules)
    self._num_pictures = num_pictures
    self._batch_size = batch_size

    def reconstruct(state, batch):
      image = batch["image"].astype(jnp.float32)
      return image, jnp.clip(predict_fn(state, batch)["image"], -1, 1)

    def measure(state, batch):
      image, reconstruction = reconstruct(state, batch)
      a, b = (image + 1) / 2, (reconstruction + 1) / 2
      return {
          "psnr": image_quality.psnr(a, b), "ssim": image_quality.ssim(a, b),
          "l1": jnp.mean(jnp.abs(image - reconstruction), axis=(1, 2, 3)),
          "sharp": image_quality.sharpness(a),
          "sharp_reconstruction": image_quality.sharpness(b),
      }, batch["_mask"]

    self._measure = harness.jit(measure, batch_sharding)
    self._show = harness.jit(
        lambda state, batch: (reconstruct(state, batch), batch["_mask"]),
        batch_sharding)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields (name, value or picture)."""
    values = harness.collect(self._measure, state, self._batches)
    for name in ("psnr", "ssim", "l1"):
      yield name, values[name].mean(dtype="float64")
    yield "sharpness", (values["sharp_reconstruction"].sum(dtype="float64")
                        / values["sharp"].sum(dtype="float64"))
    if self._num_pictures:
      enough = -(-self._num_pictures // self._batch_size)
      pairs = harness.collect(
          self._show, state, itertools.islice(self._batches, enough))
      yield "images", compare(*(x[:self._num_pictures] for x in pairs))


def compare(inputs, outputs, columns: int = 8):
  """A picture with rows of `inputs`, and below each the row of `outputs`."""
  columns = min(columns, len(inputs))
  rows = []
  for start in range(0, len(inputs) - columns + 1, columns):
    rows += [pictures.to_uint8(x[start:start + columns])
             for x in (inputs, outputs)]
  return pictures.grid(rows)
