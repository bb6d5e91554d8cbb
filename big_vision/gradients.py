"""Transformers of functions that return a loss and its gradients.

All of them take and return a function of the form

  (params, batch, rng) -> ((value, aux), grads)

which is what `jax.value_and_grad(loss_fn, has_aux=True)` returns for a
`loss_fn(params, batch, rng)`. Calling one on another's result combines them.
`from_config` makes the one that a config asks for.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp

from big_vision import config as config_lib
from big_vision import ranges
from big_vision import tree

ValueAndGrad = Callable[[Any, Any, Any], tuple[tuple[Any, Any], Any]]

_MEAN_OVER = ("examples", "batch")


def from_config(
    config: Mapping[str, Any], *, mean_over: str = "examples"
) -> Callable[[ValueAndGrad], ValueAndGrad]:
  """Makes the transformer that a config asks for.

  Args:
    config: Reads grad_accum_steps, the number of parts a batch is split into.
    mean_over: "examples" if the loss is a mean of terms that depend on one
      example each; "batch" if its terms depend on several, as in contrastive
      losses, so that the mean over parts of a batch is not the loss of the
      whole.

  Raises:
    ConfigError: `grad_accum_steps` is not a positive integer, or the loss does
      not allow accumulation.
  """
  if mean_over not in _MEAN_OVER:
    raise ValueError(f"mean_over is {mean_over!r}; use one of {_MEAN_OVER}.")
  steps = config_lib.get_checked(config, "grad_accum_steps", ranges.Count, 1)
  if steps > 1 and mean_over != "examples":
    raise config_lib.ConfigError(
        f"config.grad_accum_steps is {steps}, but this trainer's loss compares "
        "the examples of a batch with each other: its mean over parts is not "
        "the loss of the whole batch. Use grad_accum_steps=1.")
  return functools.partial(accumulate, steps=steps)


def accumulate(value_and_grad: ValueAndGrad, steps: int) -> ValueAndGrad:
  """Splits the batch into `steps` parts and averages values and gradients.

  The result is exact for losses that are means over examples and wrong for all
  others; `from_config` refuses those. Memory for activations falls by a factor
  of `steps`. Parts take every `steps`-th example, so that each part stays
  spread over all devices.

  Args:
    value_and_grad: Function to transform, see the top of this file. The arrays
      in its `aux` are averaged too, so they must be floats.
    steps: Number of parts; 1 returns `value_and_grad` itself.

  Returns:
    A function of the same signature. Averages are computed in float32 or wider
    and have the dtypes of `value_and_grad`'s results.

  Raises:
    ValueError: While tracing: the batch does not split into `steps` parts, or
      `aux` has arrays that are not floats; the error names them.
  """
  if steps == 1:
    return value_and_grad

  def accumulated(params, batch, rng):
    parts = _split(batch, steps)
    rngs = jax.random.split(rng, steps)
    shapes = jax.eval_shape(
        value_and_grad, params, jax.tree.map(lambda x: x[0], parts), rngs[0])
    _check_floats(shapes[0][1])
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)),
        shapes)

    def body(total, part):
      result = value_and_grad(params, *part)
      return jax.tree.map(jnp.add, total, result), None

    total, _ = jax.lax.scan(body, zeros, (parts, rngs))
    return jax.tree.map(
        lambda t, s: (t / steps).astype(s.dtype), total, shapes)

  return accumulated


def _split(batch, steps: int):
  """Splits every array [b, ...] of a batch into [steps, b / steps, ...]."""
  def split(name, x):
    if not jnp.ndim(x):
      raise ValueError(
          f"The batch's {name!r} has no axis of examples, so it does not split "
          f"into grad_accum_steps={steps}.")
    b, *rest = x.shape
    if b % steps:
      raise ValueError(
          f"A batch of {b} does not split into grad_accum_steps={steps}; "
          f"the nearest that do are {b // steps * steps} and "
          f"{-(-b // steps) * steps}.")
    return x.reshape(b // steps, steps, *rest).swapaxes(0, 1)
  return tree.map_with_names(split, batch)


def _check_floats(aux):
  """Raises ValueError if `aux` has integers, whose mean would be rounded."""
  wrong = {name: str(leaf.dtype) for name, leaf in tree.flatten_with_names(aux)
           if not jnp.issubdtype(leaf.dtype, jnp.floating)}
  if wrong:
    raise ValueError(
        "grad_accum_steps averages everything that a loss returns in addition "
        f"to its value, which must be floats; these are not: {wrong}.")
