"""Images that a model draws, and whether a classifier recognizes them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from big_vision import ranges
from big_vision.evaluators import harness
from big_vision.run import pictures
from big_vision.run import pretrained


class Evaluator:
  """Draws an image for each example of a data set, of its class.

  Needs a predict function that draws {"image": float[b, h, w, c]} in [-1, 1]
  from its rng, for the batch's "label", as "sample" does.

  Metrics:
    images: a picture of the first ones.
    recognized: with a classifier, the share of drawn images that it assigns to
      the class they were drawn for, in [0, 1]; higher is better. The classifier
      is trained on images, not on codes; its own accuracy is the upper limit.
  """

  def __init__(
      self, predict_fn: Callable, loader: harness.Loader, *,
      data: Mapping[str, Any], pp_fn: str,
      num_samples: ranges.Count | None = None,
      num_pictures: ranges.CountOrZero = 16, classifier: str | None = None,
      crop: ranges.Count | None = None):
    """Opens the data and the classifier; compiles and reads nothing yet.

    Args:
      predict_fn: (state, batch, rng=) -> {"image"}, not jitted.
      loader: Opens the data and compiles.
      data: Source of the labels.
      pp_fn: Preprocessing string; with a classifier it keeps "label".
      num_samples: Number of images to draw, for the first examples; None for
        one for each example.
      num_pictures: Number of images to show, 8 a row.
      classifier: Directory of a finished classification run, or None.
      crop: Side of the classifier's images, which are cut from the middle of
        the drawn ones; None takes them whole.

    Raises:
      ConfigError: There are fewer examples than `num_samples`.
    """
    self._num_samples, self._num_pictures = num_samples, num_pictures
    classify, self._variables = (None, None) if classifier is None else (
        pretrained.classifier(classifier, "classifier", crop))

    def measure(state, batch, rng):
      image = jnp.clip(predict_fn(state, batch, rng=rng)["image"], -1, 1)
      if classify is None:
        return {"image": image}
      logits, _ = classify(state["classifier"], image)
      label = harness.get_from_batch(batch, "label")
      return {"image": image, "right": jnp.argmax(logits, axis=-1) == label}
    self._measure = loader.compile(measure)
    self._examples = loader.open(data, pp_fn)
    self._examples.check_has(num_samples, "num_samples")

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields (name, value or picture).

    Raises:
      ValueError: A drawn image is not finite.
    """
    values = self._examples.collect(
        self._measure, {**state, "classifier": self._variables},
        self._num_samples)
    harness.check_finite(values["image"], "drawn images")
    if "right" in values:
      yield "recognized", np.mean(values["right"])
    if self._num_pictures:
      shown = pictures.to_uint8(values["image"][:self._num_pictures])
      columns = min(8, len(shown))
      yield "images", pictures.grid([
          shown[i:i + columns]
          for i in range(0, len(shown) - columns + 1, columns)])
