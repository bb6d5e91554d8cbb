"""Accuracy and loss of a classifier, for one or several labels per image."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision import config as config_lib
from big_vision import losses
from big_vision.evaluators import harness


class Evaluator:
  """`prec@1`, `prec@5` and `loss`, averaged over the labelled examples.

  Needs a predict function that returns (logits float[b, k], out).

  Labels are one-hot or multi-hot. A prediction is right if it is any of the
  example's labels, and an example without labels does not count: this is the
  protocol of ReaL (arXiv:2006.07159), and with one-hot labels plain accuracy.

  Metrics, all means over the examples that count:
    prec@1: whether the top class is a label; in [0, 1], higher is better.
    prec@5: whether one of the top five is; only with more than five classes.
    loss: of `loss_name`, nats.
  """

  def __init__(
      self, predict_fn: Callable, *,
      batch_sharding: jax.sharding.NamedSharding, data: Mapping[str, Any],
      pp_fn: str, batch_size: int, pp_modules: Sequence[str] | None = None,
      loss_name: str = "sigmoid_xent", label_key: str = "labels"):
    """Opens the data; compiles and reads nothing yet.

    Args:
      predict_fn: (state, batch) -> (logits, out), not jitted.
      batch_sharding: of the batches.
      data: source to evaluate on.
      pp_fn: preprocessing; its result has `label_key`.
      batch_size: over all devices.
      pp_modules: modules with the preprocessing ops.
      loss_name: name of a function in `losses`.
      label_key: of number[b, k] in {0, 1} in the batch.
    """
    self._label_key = label_key
    self._measure = _make_measure(
        predict_fn, loss_name, label_key, batch_sharding)
    self._batches = harness.open_data(
        data, pp_fn, batch_size, batch_sharding, pp_modules)

  def run(self, state: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the metrics of `state`.

    Raises:
      ValueError: labels other than 0 and 1, or no example with a label.
    """
    values = harness.collect(self._measure, state, self._batches)
    is_binary = values.pop("is_binary")
    if not is_binary.all():
      raise ValueError(
          f"{np.sum(~is_binary)} of {is_binary.size} examples have values "
          f"other than 0 and 1 in {self._label_key!r}: smoothed or mixed "
          "labels, for which accuracy is not defined. Leave the on and off "
          "values of onehot at 1 and 0 in the preprocessing of evaluators.")
    counts = values.pop("has_label")
    if not counts.any():
      raise ValueError(
          f"None of {counts.size} examples has a label in "
          f"{self._label_key!r}: there is nothing to average.")
    for name, value in values.items():
      yield name, np.mean(value[counts], dtype=np.float64)


@functools.lru_cache(maxsize=64)  # One compilation for val, test, ReaL, ...
def _make_measure(
    predict_fn: Callable, loss_name: str, label_key: str,
    batch_sharding: jax.sharding.NamedSharding) -> Callable:
  """The compiled (state, batch) -> ({name: [b]}, mask)."""
  loss_fn = losses.get_loss(loss_name)

  def measure(state, batch):
    logits, _ = predict_fn(state, batch)
    labels = harness.get_from_batch(batch, label_key)
    if labels.shape != logits.shape:
      raise config_lib.ConfigError(
          f"{label_key!r} has the shape {labels.shape} and the logits "
          f"{logits.shape}; both must be [b, k]: has the preprocessing "
          f"onehot({logits.shape[-1]})?")
    is_label = labels > 0
    rank = _rank_of_best_label(logits, is_label)
    values = {"prec@1": rank < 1}
    if logits.shape[-1] > 5:
      values["prec@5"] = rank < 5
    values["loss"] = loss_fn(logits=logits, labels=labels.astype(jnp.float32))
    values["has_label"] = jnp.any(is_label, axis=-1)
    values["is_binary"] = jnp.all((labels == 0) | (labels == 1), axis=-1)
    return values, batch["_mask"]

  return harness.jit(measure, batch_sharding)


def _rank_of_best_label(logits, is_label):
  """int32[b]: how many classes are ahead of the first of the labels.

  Of equal logits the first is ahead, as in argmax. Not by `jax.lax.top_k`, for
  which XLA would gather the logits of all devices.
  """
  labelled = jnp.where(is_label, logits, -jnp.inf)
  best = jnp.max(labelled, axis=-1, keepdims=True)
  best_idx = jnp.argmax(labelled, axis=-1, keepdims=True)
  not_ahead = (logits < best) | (
      (logits == best) & (jnp.arange(logits.shape[-1]) >= best_idx))
  # Counted by what is not ahead, so that NaN is last and not first.
  return jnp.sum(~not_ahead, axis=-1)
