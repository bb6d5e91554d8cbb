"""Stores what the model says of a few images, for people to look at."""

import base64
from collections.abc import Iterator, Mapping, Sequence
import io
import itertools
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from big_vision.evaluators import harness


class Evaluator:
  """Writes the first images of a dataset with their predictions; no metric.

  Needs a predict function (state, batch) -> (logits float[b, k], out), and a
  batch with "image", float[b, h, w, 1 or 3], and `label_key`.

  Args:
    predict_fn: un-jitted.
    batch_sharding: of the batches.
    data, pp_fn, batch_size, pp_modules: see `common.open_data`.
    outfile: JSON that `tools.report` reads, where it is called
      "{workdir}/predictions.json".
    num_examples: how many images.
    label_key: one-hot or multi-hot float[b, k].
  """

  def __init__(
      self, predict_fn, *, batch_sharding, data: Mapping[str, Any], pp_fn: str,
      batch_size: int, outfile: str, num_examples: int = 32,
      label_key: str = "labels", pp_modules: Sequence[str] | None = None):
    self._batches = harness.open_data(
        data, pp_fn, batch_size, batch_sharding, pp_modules)
    self._outfile, self._num_examples = outfile, num_examples
    self._batch_size = batch_size

    def measure(state, batch):
      logits, _ = predict_fn(state, batch)
      labels = harness.get_from_batch(batch, label_key)
      return (batch["image"].astype(jnp.float32),
              jax.nn.softmax(logits.astype(jnp.float32)),
              jnp.argmax(labels, axis=-1)), batch["_mask"]
    self._measure = harness.jit(measure, batch_sharding)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Writes the file; yields nothing."""
    enough = -(-self._num_examples // self._batch_size)
    images, probabilities, labels = harness.collect(
        self._measure, state, itertools.islice(self._batches, enough))
    examples = []
    for image, p, label in itertools.islice(
        zip(images, probabilities, labels), self._num_examples):
      prediction = int(np.argmax(p))
      examples.append(dict(
          png_base64=_to_png(image), label=int(label), prediction=prediction,
          probability=float(p[prediction])))
    if jax.process_index() == 0:
      with open(f"{self._outfile}.tmp", "w", encoding="utf-8") as file:
        json.dump({"class_names": None, "examples": examples}, file)
      os.replace(f"{self._outfile}.tmp", self._outfile)
    yield from ()


def _to_png(image) -> str:
  """float[h, w, c] of any range as base64 PNG; its extremes are 0 and 255."""
  low, high = float(image.min()), float(image.max())
  scaled = (image - low) * (255 / (high - low)) if high > low else image * 0
  pixels = np.round(scaled).astype(np.uint8)
  stream = io.BytesIO()
  Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(
      stream, "PNG")
  return base64.b64encode(stream.getvalue()).decode()
