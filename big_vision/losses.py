"""Losses: pure functions that return one float32 number per example.

Or per token, where there are axes between that of the examples and the classes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from big_vision import config as config_lib


def sigmoid_xent(*, logits, labels):
  """Binary cross-entropy of every class, summed over the classes.

  Summed and not averaged (systems T3), so its scale grows with the number of
  classes; `init_head_bias=-6.9` with 1,000 classes starts it at 7.907.

  Args:
    logits: float[b, ..., k], any float dtype; computed in float32.
    labels: float[b, ..., k] in [0, 1]; one-hot, multi-hot or mixed.

  Returns:
    float32[b, ...], nats.
  """
  logits = logits.astype(jnp.float32)
  log_p = jax.nn.log_sigmoid(logits)
  log_not_p = jax.nn.log_sigmoid(-logits)
  return -jnp.sum(labels * log_p + (1. - labels) * log_not_p, axis=-1)


def softmax_xent(*, logits, labels):
  """Cross-entropy between `labels` and the softmax of `logits`.

  Args:
    logits: float[b, ..., k], any float dtype; computed in float32.
    labels: float[b, ..., k]; a distribution per row. Not normalized here: an
      all-zero row costs nothing.

  Returns:
    float32[b, ...], nats.
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  return -jnp.sum(labels * log_p, axis=-1)


_LOSSES = {"sigmoid_xent": sigmoid_xent, "softmax_xent": softmax_xent}


def get_loss(name: str) -> Callable:
  """The loss called `name`, a function of keywords `logits` and `labels`.

  Raises:
    ConfigError: no such loss; names those that exist.
  """
  if name not in _LOSSES:
    raise config_lib.ConfigError(
        f"Unknown loss {name!r}{config_lib.nearest(name, _LOSSES)}; use one of "
        f"{sorted(_LOSSES)}.")
  return _LOSSES[name]
