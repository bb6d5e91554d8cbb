"""Accuracy by difficulty: by depth, length or hops of every example.

Legend: b batch, n tokens, k classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision import config as config_lib
from big_vision import tree
from big_vision.evaluators import harness


class Evaluator:
  """Accuracy over all examples, and over those of each difficulty.

  Needs a predict function (state, batch) -> (logits, out). Logits
  float[b, k] are compared with one label per example: int[b], or one-hot
  number[b, k]. Logits float[b, n, k] are compared with int[b, n], one label per
  token; an example is then right if all of its unmasked tokens are.

  A metric "x" is the mean over all examples, "x/3" that over those of
  difficulty 3, for every difficulty in the data:
    prec@1: whether an example is right; in [0, 1], higher is better.
    token_prec@1: whether a token is, over all unmasked tokens of these
      examples; only with labels per token.
    the last part of `measure` ("steps" of "act/steps"): the model's own
      measurement, in its unit.
  """

  def __init__(
      self, predict_fn: Callable, *,
      batch_sharding: jax.sharding.NamedSharding, data: Mapping[str, Any],
      pp_fn: str, batch_size: int, pp_modules: Sequence[str] | None = None,
      key: str = "difficulty", label_key: str = "labels",
      mask_key: str | None = "mask", measure: str | None = None):
    """Opens the data; compiles and reads nothing yet.

    Args:
      predict_fn: (state, batch) -> (logits, out), not jitted.
      batch_sharding: of the batches.
      data: source to evaluate on.
      pp_fn: preprocessing; its result has the keys below.
      batch_size: over all devices.
      pp_modules: modules with the preprocessing ops.
      key: of the difficulty, int[b].
      label_key: of the labels.
      mask_key: of number[b, n], 1 for tokens that count, 0 for padding; only
        needed where there is something for each token. None if all count.
      measure: path in `out` of something to average as well: number[b], or
        number[b, n], whose mean over an example's unmasked tokens is taken.
    """
    self._label_key, self._mask_key = label_key, mask_key
    self._measure = _make_measure(
        predict_fn, key, label_key, mask_key, measure, batch_sharding)
    self._batches = harness.open_data(
        data, pp_fn, batch_size, batch_sharding, pp_modules)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the metrics of `state`: each over all, then by difficulty.

    Raises:
      ValueError: an example has no label, or none of its tokens counts.
    """
    values = harness.collect(self._measure, state, self._batches)
    for is_usable, what in (
        (values.pop("has_label"), f"exactly one label in {self._label_key!r}"),
        (values.pop("has_token"), f"a token that counts: {self._mask_key!r} is "
         "0 for all of them")):
      if not is_usable.all():
        raise ValueError(
            f"{np.sum(~is_usable)} of {is_usable.size} examples do not have "
            f"{what}.")
    difficulty = values.pop("difficulty")
    groups = [("", slice(None))] + [
        (f"/{d}", difficulty == d) for d in np.unique(difficulty)]
    for name, (sums, counts) in values.items():
      for suffix, rows in groups:
        yield f"{name}{suffix}", (
            np.sum(sums[rows], dtype=np.float64) / np.sum(counts[rows]))


@functools.lru_cache(maxsize=64)  # One compilation for all data it is used on.
def _make_measure(
    predict_fn: Callable, key: str, label_key: str, mask_key: str | None,
    measure_path: str | None, batch_sharding: jax.sharding.NamedSharding
) -> Callable:
  """The compiled (state, batch) -> ({name: (sums [b], counts [b])}, mask)."""

  def measure(state, batch):
    logits, out = predict_fn(state, batch)
    b = len(batch["_mask"])
    difficulty = harness.get_from_batch(batch, key, "key")
    if difficulty.shape != (b,) or not _is_int(difficulty):
      raise config_lib.ConfigError(
          f"key={key!r} is {_type(difficulty)} in the batch; one integer per "
          f"example, int[{b}], is needed.")
    labels = harness.get_from_batch(batch, label_key)
    values = {"difficulty": difficulty, "has_token": jnp.ones(b, bool)}

    def token_mask(shape):
      if mask_key is None:
        return jnp.ones(shape, bool)
      mask = harness.get_from_batch(batch, mask_key, "mask_key")
      if mask.shape != shape:
        raise config_lib.ConfigError(
            f"mask_key={mask_key!r} is {_type(mask)} in the batch; one number "
            f"per token, of shape {shape}, is needed.")
      values["has_token"] &= jnp.any(mask > 0, axis=1)
      return mask > 0

    def is_class(labels):
      return (0 <= labels) & (labels < logits.shape[-1])

    # Equal logits are the first's, as in argmax; NaN is never right.
    predicted = jnp.where(
        jnp.any(jnp.isnan(logits), axis=-1), -1, jnp.argmax(logits, axis=-1))
    if logits.ndim == 2 and labels.shape == logits.shape:
      values["has_label"] = jnp.sum(labels > 0, axis=-1) == 1
      right = predicted == jnp.argmax(labels, axis=-1)
    elif logits.ndim == 2 and labels.shape == (b,) and _is_int(labels):
      values["has_label"] = is_class(labels)
      right = predicted == labels
    elif (logits.ndim == 3 and labels.shape == logits.shape[:2] and
          _is_int(labels)):
      is_token = token_mask(labels.shape)
      values["has_label"] = jnp.all(~is_token | is_class(labels), axis=1)
      is_hit = predicted == labels
      right = jnp.all(~is_token | is_hit, axis=1)
      values["token_prec@1"] = (
          jnp.sum(is_token & is_hit, axis=1), jnp.sum(is_token, axis=1))
    else:
      raise config_lib.ConfigError(
          f"label_key={label_key!r} is {_type(labels)} in the batch and the "
          f"logits are {_type(logits)}. Logits [b, k] need labels int[b] or "
          "one-hot [b, k]; logits [b, n, k] need int[b, n].")
    one = jnp.ones(b, jnp.int32)
    values["prec@1"] = right, one

    if measure_path is not None:
      named = dict(tree.flatten_with_names(out))
      if measure_path not in named:
        raise config_lib.ConfigError(
            f"measure={measure_path!r} is not in the model's output"
            f"{config_lib.nearest(measure_path, named)}. There are "
            f"{sorted(named)}.")
      measured = named[measure_path]
      if measured.ndim not in (1, 2) or len(measured) != b:
        raise config_lib.ConfigError(
            f"measure={measure_path!r} is {_type(measured)}; one number per "
            f"example or per token, [{b}] or [{b}, n], is needed.")
      if measured.ndim == 2:
        is_token = token_mask(measured.shape)
        measured = jnp.mean(measured, axis=1, where=is_token, dtype=jnp.float32)
      name = measure_path.rpartition("/")[2]
      if name in values:
        raise config_lib.ConfigError(
            f"measure={measure_path!r} would be called {name!r}, which is the "
            f"name of something else: {sorted(values)}.")
      values[name] = measured, one
    return values, batch["_mask"]

  return harness.jit(measure, batch_sharding)


def _is_int(array) -> bool:
  return jnp.issubdtype(array.dtype, jnp.integer)


def _type(array) -> str:
  return f"{array.dtype}{list(array.shape)}"
