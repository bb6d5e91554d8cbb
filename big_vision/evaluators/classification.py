"""Accuracy and loss of a classifier, for one or several labels per image."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from big_vision import config as config_lib
from big_vision import losses
from big_vision.evaluators import harness


class Evaluator:
  """Measures `prec@1`, `prec@5` and `loss` over the labelled examples.

  Needs a predict function that returns (logits float[b, k], out).

  Labels are one-hot or multi-hot. A prediction is right if it is any of the
  example's labels, and an example without labels does not count. With one-hot
  labels this is plain accuracy.

  Metrics, all means over the examples that count:
    prec@1: whether the top class is a label; in [0, 1], higher is better.
    prec@5: whether one of the top five is; only with more than five classes.
    loss: value of `loss_name`, nats.

  Source: ReaL, arXiv:2006.07159.
  """

  def __init__(
      self, predict_fn: Callable, loader: harness.Loader, *,
      data: Mapping[str, Any], pp_fn: str, loss_name: str = "sigmoid_xent",
      label_key: str = "labels"):
    """Opens the data; compiles and reads nothing yet.

    Args:
      predict_fn: (state, batch, rng=) -> (logits, out), not jitted.
      loader: Opens the data and compiles.
      data: Source to evaluate on.
      pp_fn: Preprocessing string; its result has `label_key`.
      loss_name: Name of a function in `losses`.
      label_key: Key of the labels in the batch, number[b, k] in {0, 1}.
    """
    self._label_key = label_key
    self._measure = loader.compile(
        _measure, predict_fn=predict_fn, loss_fn=losses.get_loss(loss_name),
        label_key=label_key)
    self._examples = loader.open(data, pp_fn)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the metrics of `state`.

    Raises:
      ValueError: A label is neither 0 nor 1, or no example has a label.
    """
    values = self._examples.collect(self._measure, state)
    is_binary = values.pop("is_binary")
    if not is_binary.all():
      raise ValueError(
          f"{np.sum(~is_binary)} of {is_binary.size} examples have values "
          f"other than 0 and 1 in {self._label_key!r}. Accuracy is not defined "
          "for smoothed or mixed labels: leave the on and off values of onehot "
          "at 1 and 0 in the preprocessing of evaluators.")
    has_label = values.pop("has_label")
    if not has_label.any():
      raise ValueError(
          f"None of {has_label.size} examples has a label in "
          f"{self._label_key!r}: there is nothing to average.")
    for name, value in values.items():
      yield name, np.mean(value[has_label], dtype=np.float64)


def _measure(state, batch, rng, *, predict_fn, loss_fn, label_key):
  logits, _ = predict_fn(state, batch, rng=rng)
  labels = harness.get_from_batch(batch, label_key)
  if labels.shape != logits.shape:
    raise config_lib.ConfigError(
        f"{label_key!r} has the shape {labels.shape} and the logits "
        f"{logits.shape}; both must be [b, k]. Does the preprocessing "
        f"have onehot({logits.shape[-1]})?")
  is_label = labels > 0
  rank = _rank_of_best_label(logits, is_label)
  values = {"prec@1": rank < 1}
  if logits.shape[-1] > 5:
    values["prec@5"] = rank < 5
  values["loss"] = loss_fn(logits=logits, labels=labels.astype(jnp.float32))
  values["has_label"] = jnp.any(is_label, axis=-1)
  values["is_binary"] = jnp.all((labels == 0) | (labels == 1), axis=-1)
  return values


def _rank_of_best_label(logits, is_label):
  """Counts the classes that are ahead of the best label, int32[b].

  Of equal logits, the first is ahead, as in argmax. `jax.lax.top_k` would be
  shorter, but XLA would gather the logits of all devices for it.
  """
  labelled = jnp.where(is_label, logits, -jnp.inf)
  best = jnp.max(labelled, axis=-1, keepdims=True)
  best_idx = jnp.argmax(labelled, axis=-1, keepdims=True)
  not_ahead = (logits < best) | (
      (logits == best) & (jnp.arange(logits.shape[-1]) >= best_idx))
  # Negated, because comparisons with NaN are false: a NaN is then last rather
  # than first.
  return jnp.sum(~not_ahead, axis=-1)
