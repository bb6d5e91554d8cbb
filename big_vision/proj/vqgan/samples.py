"""Pictures that a model draws, and whether a classifier recognizes them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision.evaluators import harness
from big_vision.run import pictures
from big_vision.run import pretrained


class Evaluator:
  """Draws an image for each example of a data set, of its class.

  Needs a predict function that returns {"image": float[b, h, w, c]} in [-1, 1]
  for the batch's "label" and an `rng`, as "sample" does. Every evaluation draws
  with the same keys, one for each batch. Yields
    "images"      a picture of the first;
    "recognized"  with a classifier: the share of drawn images that it says are
                  of the class they were drawn for. Trained on the same images,
                  not on codes; its own accuracy is what it can reach at most.

  Args:
    predict_fn: un-jitted.
    batch_sharding: of the batches.
    data, pp_fn, batch_size, pp_modules: see `common.open_data`; "label" is to
      be kept for `classifier`.
    num_samples: how many to draw; None for one for each example.
    num_pictures: how many of them to show; 8 a row.
    classifier: workdir of a finished classification run, or None.
    crop: size of its images, cut from the middle; None for all.
  """

  def __init__(
      self, predict_fn: Callable, *, batch_sharding, data: Mapping[str, Any],
      pp_fn: str, batch_size: int, num_samples: int | None = None,
      num_pictures: int = 16, classifier: str | None = None,
      crop: int | None = None, pp_modules: Sequence[str] | None = None):
    self._batches = harness.open_data(
        data, pp_fn, batch_size, batch_sharding, pp_modules)
    self._num_batches = num_samples and -(-num_samples // batch_size)
    self._num_pictures = num_pictures
    self._variables = None
    if classifier is not None:
      classify, self._variables = pretrained.classifier(
          classifier, "classifier", crop)

    def measure(state, numbered):
      batch_idx, batch = numbered
      rng = jax.random.fold_in(jax.random.key(0), batch_idx)
      image = jnp.clip(predict_fn(state, batch, rng=rng)["image"], -1, 1)
      right = jnp.zeros(len(image), bool)
      if classifier is not None:
        logits, _ = classify(state["classifier"], image)
        right = jnp.argmax(logits, axis=-1) == harness.get_from_batch(
            batch, "label")
      return (image, right), batch["_mask"]
    self._measure = harness.jit(measure, batch_sharding)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields (name, value or picture)."""
    state = {**state, "classifier": self._variables}
    images, right = harness.collect(self._measure, state, itertools.islice(
        enumerate(self._batches), self._num_batches))
    if self._variables is not None:
      yield "recognized", np.mean(right)
    if self._num_pictures:
      shown = pictures.to_uint8(images[:self._num_pictures])
      columns = min(8, len(shown))
      yield "images", pictures.grid([
          shown[i:i + columns]
          for i in range(0, len(shown) - columns + 1, columns)])
