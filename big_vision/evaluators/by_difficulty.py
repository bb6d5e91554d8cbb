"""Accuracy by difficulty: by the depth, length or hops of each example.

Legend: b batch, n tokens, k classes.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from big_vision import config as config_lib
from big_vision import tree
from big_vision.evaluators import harness


class Evaluator:
  """Measures accuracy over all examples, and over those of each difficulty.

  Needs a predict function that returns (logits, out). Logits float[b, k] are
  compared with one label per example: int[b], or one-hot number[b, k]. Logits
  float[b, n, k] are compared with int[b, n], one label per token; an example is
  then right if all of its unmasked tokens are.

  A metric "x" is the mean over all examples, and "x/3" the mean over those of
  difficulty 3; there is one for every difficulty in the data. The metrics are:
    prec@1: whether an example is right; in [0, 1], higher is better.
    token_prec@1: whether a token is right, over all unmasked tokens of these
      examples; only with labels per token.
    the last part of `measure` ("steps" for "act/steps"): the model's own
      measurement, in its unit.
  """

  def __init__(
      self, predict_fn: Callable, loader: harness.Loader, *,
      data: Mapping[str, Any], pp_fn: str, key: str = "difficulty",
      label_key: str = "labels", mask_key: str | None = "mask",
      measure: str | None = None):
    """Opens the data; compiles and reads nothing yet.

    Args:
      predict_fn: (state, batch, rng=) -> (logits, out), not jitted.
      loader: Opens the data and compiles.
      data: Source to evaluate on.
      pp_fn: Preprocessing string; its result has the keys below.
      key: Key of the difficulty, int[b].
      label_key: Key of the labels.
      mask_key: Key of number[b, n], 1 for tokens that count, 0 for padding;
        only needed if labels or measurements are per token. None counts all
        tokens.
      measure: Path in `out` of a measurement to average as well: number[b], or
        number[b, n], which is averaged over an example's unmasked tokens first.
    """
    self._label_key, self._mask_key = label_key, mask_key
    self._measure = loader.compile(
        _measure, predict_fn=predict_fn, key=key, label_key=label_key,
        mask_key=mask_key, measure_path=measure)
    self._examples = loader.open(data, pp_fn)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields each metric of `state` over all examples, then by difficulty.

    Raises:
      ValueError: An example has no label, or no token that counts.
    """
    values = self._examples.collect(self._measure, state)
    for is_usable, wanted in (
        (values.pop("has_label"), f"exactly one label in {self._label_key!r}"),
        (values.pop("has_token"), f"a token that counts: {self._mask_key!r} is "
         "0 for all of them")):
      if not is_usable.all():
        raise ValueError(
            f"{np.sum(~is_usable)} of {is_usable.size} examples do not have "
            f"{wanted}.")
    difficulty = values.pop("difficulty")
    groups = [("", slice(None))] + [
        (f"/{d}", difficulty == d) for d in np.unique(difficulty)]
    for name, (sums, counts) in values.items():
      for suffix, rows in groups:
        yield f"{name}{suffix}", (
            np.sum(sums[rows], dtype=np.float64) / np.sum(counts[rows]))


def _measure(
    state, batch, rng, *, predict_fn: Callable, key: str, label_key: str,
    mask_key: str | None, measure_path: str | None):
  """Returns {metric: (sums [b], counts [b])}, and what `run` checks."""
  logits, out = predict_fn(state, batch, rng=rng)
  b = len(batch["_mask"])
  difficulty = harness.get_from_batch(batch, key, "key")
  if difficulty.shape != (b,) or not _is_int(difficulty):
    raise config_lib.ConfigError(
        f"key={key!r} is {_type(difficulty)} in the batch; one integer per "
        f"example, int[{b}], is needed.")
  has_label, metrics = _measure_accuracy(logits, batch, label_key, mask_key)
  if measure_path is not None:
    name = measure_path.rpartition("/")[2]
    if name in metrics or name in ("difficulty", "has_label", "has_token"):
      raise config_lib.ConfigError(
          f"measure={measure_path!r} would be called {name!r}, which is the "
          f"name of something else: {sorted(metrics)}.")
    metrics[name] = _measure_output(out, batch, measure_path, mask_key)
  is_per_token = logits.ndim == 3 or (
      measure_path is not None and _output(out, measure_path).ndim == 2)
  has_token = jnp.ones(b, bool)
  if is_per_token and mask_key is not None:
    has_token = jnp.any(batch[mask_key] > 0, axis=1)
  return {**metrics, "difficulty": difficulty, "has_label": has_label,
          "has_token": has_token}


def _measure_accuracy(logits, batch, label_key, mask_key):
  """Compares logits with labels.

  Returns:
    has_label: bool[b], whether the example has exactly one label (per token).
    metrics: {"prec@1", "token_prec@1"}, each (sums [b], counts [b]).
  """
  labels = harness.get_from_batch(batch, label_key)
  b = len(batch["_mask"])

  def is_class(labels):
    return (0 <= labels) & (labels < logits.shape[-1])

  # Of equal logits the first wins, as in argmax; NaN is never right.
  predicted = jnp.where(
      jnp.any(jnp.isnan(logits), axis=-1), -1, jnp.argmax(logits, axis=-1))
  metrics = {}
  if logits.ndim == 2 and labels.shape == logits.shape:
    has_label = jnp.sum(labels > 0, axis=-1) == 1
    right = predicted == jnp.argmax(labels, axis=-1)
  elif logits.ndim == 2 and labels.shape == (b,) and _is_int(labels):
    has_label = is_class(labels)
    right = predicted == labels
  elif (logits.ndim == 3 and labels.shape == logits.shape[:2] and
        _is_int(labels)):
    is_token = _token_mask(batch, labels.shape, mask_key)
    has_label = jnp.all(~is_token | is_class(labels), axis=1)
    is_hit = predicted == labels
    right = jnp.all(~is_token | is_hit, axis=1)
    metrics["token_prec@1"] = (
        jnp.sum(is_token & is_hit, axis=1), jnp.sum(is_token, axis=1))
  else:
    raise config_lib.ConfigError(
        f"label_key={label_key!r} is {_type(labels)} in the batch and the "
        f"logits are {_type(logits)}. Logits [b, k] need labels int[b] or "
        "one-hot [b, k]; logits [b, n, k] need int[b, n].")
  metrics["prec@1"] = right, jnp.ones(b, jnp.int32)
  return has_label, metrics


def _measure_output(out, batch, path, mask_key):
  """Returns the model's own measurement, as (sums [b], counts [b])."""
  b = len(batch["_mask"])
  measured = _output(out, path)
  if measured.ndim not in (1, 2) or len(measured) != b:
    raise config_lib.ConfigError(
        f"measure={path!r} is {_type(measured)}; one number per example or per "
        f"token, [{b}] or [{b}, n], is needed.")
  if measured.ndim == 2:
    measured = jnp.mean(
        measured, axis=1, dtype=jnp.float32,
        where=_token_mask(batch, measured.shape, mask_key))
  return measured, jnp.ones(b, jnp.int32)


def _output(out, path):
  """Returns the value at `path` in the model's output."""
  named = dict(tree.flatten_with_names(out))
  if path not in named:
    raise config_lib.ConfigError(
        f"measure={path!r} is not in the model's output"
        f"{config_lib.nearest(path, named)}. There are {sorted(named)}.")
  return named[path]


def _token_mask(batch, shape, mask_key):
  """Returns bool[b, n], whether each token counts."""
  if mask_key is None:
    return jnp.ones(shape, bool)
  mask = harness.get_from_batch(batch, mask_key, "mask_key")
  if mask.shape != shape:
    raise config_lib.ConfigError(
        f"mask_key={mask_key!r} is {_type(mask)} in the batch; one number per "
        f"token, of shape {shape}, is needed.")
  return mask > 0


def _is_int(array) -> bool:
  return jnp.issubdtype(array.dtype, jnp.integer)


def _type(array) -> str:
  return f"{array.dtype}{list(array.shape)}"
