"""Stores a model's predictions for a few images, for people to look at."""

import base64
from collections.abc import Callable, Iterator, Mapping
import io
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from big_vision import files
from big_vision import ranges
from big_vision.evaluators import harness


class Evaluator:
  """Writes the first images of a data set with their predictions; no metric.

  Needs a predict function that returns (logits float[b, k], out), and batches
  with "image", float[b, h, w, 1 or 3], and `label_key`.
  """

  def __init__(
      self, predict_fn: Callable, loader: harness.Loader, *,
      data: Mapping[str, Any], pp_fn: str, outfile: str,
      num_examples: ranges.Count = 32, label_key: str = "labels"):
    """Opens the data; compiles and reads nothing yet.

    Args:
      predict_fn: (state, batch, rng=) -> (logits, out), not jitted.
      loader: Opens the data and compiles.
      data: Source of the images.
      pp_fn: Preprocessing string; keeps "image" and `label_key`.
      outfile: JSON file to write. `tools.report` reads it if it is called
        "{workdir}/predictions.json".
      num_examples: Number of images.
      label_key: Key of the labels in the batch, one-hot or multi-hot
        float[b, k].
    """
    self._outfile, self._num_examples = outfile, num_examples
    self._measure = loader.compile(
        _measure, predict_fn=predict_fn, label_key=label_key)
    self._data = loader.open(data, pp_fn)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Writes the file; yields nothing."""
    images, probabilities, labels = self._data.collect(
        self._measure, state, self._num_examples)
    examples = []
    for image, p, label in zip(images, probabilities, labels):
      prediction = int(np.argmax(p))
      examples.append(dict(
          png_base64=_to_png(image), label=int(label), prediction=prediction,
          probability=float(p[prediction])))
    if jax.process_index() == 0:
      files.write_text(self._outfile, json.dumps(
          {"class_names": self._data.class_names, "examples": examples}))
    yield from ()


def _measure(state, batch, rng, *, predict_fn, label_key):
  logits, _ = predict_fn(state, batch, rng=rng)
  labels = harness.get_from_batch(batch, label_key)
  return (batch["image"].astype(jnp.float32),
          jax.nn.softmax(logits.astype(jnp.float32)),
          jnp.argmax(labels, axis=-1))


def _to_png(image) -> str:
  """Encodes float[h, w, c] as base64 PNG; its extremes become 0 and 255."""
  low, high = float(image.min()), float(image.max())
  scaled = (image - low) * (255 / (high - low)) if high > low else image * 0
  pixels = np.round(scaled).astype(np.uint8)
  stream = io.BytesIO()
  Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(
      stream, "PNG")
  return base64.b64encode(stream.getvalue()).decode()
