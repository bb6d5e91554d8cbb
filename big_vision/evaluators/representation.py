"""Features and labels of examples, for evaluators that probe a representation.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from big_vision import config as config_lib
from big_vision import tree
from big_vision.evaluators import harness


def represent(
    state, batch, rng, *, predict_fn: Callable, layer: str | None,
    label_key: str):
  """Returns features and labels of a batch; made for `Loader.compile`.

  Args:
    state: The task's state.
    batch: A batch with `label_key`.
    rng: Key for the predict function.
    predict_fn: (state, batch, rng=) -> (logits [b, k], out), with `out` a dict
      of intermediates.
    layer: Name in `out` ("pre_logits", "encoder/block07"); None for the logits.
    label_key: Key of the labels, int[b], in the batch.

  Returns:
    Features float32[b, d] and labels int[b].

  Raises:
    ConfigError: The layer or the label does not exist, or has the wrong shape.
  """
  logits, out = predict_fn(state, batch, rng=rng)
  features = logits
  if layer is not None:
    named = dict(tree.flatten_with_names(out))
    if layer not in named:
      raise config_lib.ConfigError(
          f"representation_layer={layer!r} is not in the model's output"
          f"{config_lib.nearest(layer, named)}. There are {sorted(named)}.")
    features = named[layer]
  if features.ndim != 2:
    raise config_lib.ConfigError(
        f"representation_layer={layer!r} has the shape {features.shape}; "
        "one vector per example, [b, d], is needed.")
  labels = harness.get_from_batch(batch, label_key)
  if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
    raise config_lib.ConfigError(
        f"label_key={label_key!r} is {labels.dtype}{list(labels.shape)} in "
        "the batch; one class index per example, int[b], is needed.")
  return features.astype(jnp.float32), labels


def check_labelled(labels: np.ndarray, where: str):
  """Raises ValueError if some labels are negative, which stands for unknown.

  Args:
    labels: int[n].
    where: Name of the data, for the message.
  """
  if (labels < 0).any():
    raise ValueError(
        f"{where}: {np.sum(labels < 0)} of {labels.size} labels are negative. "
        "Is this a split whose labels are not public?")
