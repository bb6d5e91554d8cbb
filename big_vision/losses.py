"""Losses: pure functions that return one float32 number per example.

If logits have axes between those of examples and classes, such as tokens,
losses return one number for each position on these axes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from big_vision import config as config_lib


def sigmoid_xent(*, logits, labels):
  """Computes the binary cross-entropy of every class, summed over classes.

  The sum makes the scale grow with the number of classes: with 1,000 classes
  and `init_head_bias=-6.9`, the loss starts at 7.907.

  Args:
    logits: float[b, ..., k] of any float dtype; computed in float32.
    labels: float[b, ..., k] in [0, 1]; one-hot, multi-hot or mixed.

  Returns:
    float32[b, ...], nats.
  """
  logits = logits.astype(jnp.float32)
  log_p = jax.nn.log_sigmoid(logits)
  log_not_p = jax.nn.log_sigmoid(-logits)
  return -jnp.sum(labels * log_p + (1. - labels) * log_not_p, axis=-1)


def softmax_xent(*, logits, labels):
  """Computes the cross-entropy between `labels` and the softmax of `logits`.

  Args:
    logits: float[b, ..., k] of any float dtype; computed in float32.
    labels: float[b, ..., k], distributions over the classes. They are not
      normalized here, so a row of zeros has the loss 0.

  Returns:
    float32[b, ...], nats.
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  return -jnp.sum(labels * log_p, axis=-1)


_LOSSES = {"sigmoid_xent": sigmoid_xent, "softmax_xent": softmax_xent}


def get_loss(name: str) -> Callable:
  """Returns the loss called `name`, with keywords `logits` and `labels`.

  Raises:
    ConfigError: There is no such loss; the error names those that exist.
  """
  if name not in _LOSSES:
    raise config_lib.ConfigError(
        f"Unknown loss {name!r}{config_lib.nearest(name, _LOSSES)}; use one of "
        f"{sorted(_LOSSES)}.")
  return _LOSSES[name]
