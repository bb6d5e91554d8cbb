"""The registry of attention implementations, and the function that calls them.

Dimensions: b batch, n queries, s keys, m heads of the queries, m_kv heads of
keys and values, d features of a head.
"""

from collections.abc import Callable
import inspect
from typing import NamedTuple

import jax.numpy as jnp

from big_vision import config as config_lib
from big_vision.layers import checks


class Implementation(NamedTuple):
  """An implementation and its properties.

  Attributes:
    fn: Function (q, k, v, **options) -> [b, n, m, d].
    draw: Function (rng, (num_features, d)) -> the argument `projection` of
      `fn`, for implementations that have it; more leading axes are independent
      draws.
    any_mask: Whether a mask may differ between queries; otherwise it is refused
      unless its third axis is 1.
  """
  fn: Callable
  draw: Callable | None = None
  any_mask: bool = True


IMPLEMENTATIONS: dict[str, Implementation] = {}


def register(
    name: str, *, draw: Callable | None = None, any_mask: bool = True):
  """Registers the decorated function as `attend(..., impl=name)`.

  It is called as `fn(q, k, v, **options)` with checked shapes; a `mask` or
  `bias` has four axes, each 1 or of full size.

  Args:
    name: Name in configs and errors.
    draw: see `Implementation`; `MultiHeadAttention` calls it and keeps the
      result in the collection FEATURES.
    any_mask: see `Implementation`.

  Raises:
    ValueError: The name is taken.
  """
  def decorate(fn):
    if name in IMPLEMENTATIONS:
      raise ValueError(f"There is an attention {name!r} already.")
    IMPLEMENTATIONS[name] = Implementation(
        fn=fn, draw=draw, any_mask=any_mask)
    return fn
  return decorate


def attend(q, k, v, *, mask=None, bias=None, causal: bool = False,
           impl: str = "dense", **options):
  """Mixes values by softmax(q k^T / sqrt(d) + bias).

  "dense", "xla", "cudnn", "fused" and "memory_efficient" compute exactly that;
  "local" does within a window, "favor" estimates it, "linear" weights values
  differently.

  Args:
    q: [b, n, m, d] queries, float32 or bfloat16.
    k: [b, s, m_kv, d] keys. m_kv divides m: query head i reads the keys of
      head i // (m / m_kv), so m_kv = 1 is multi-query attention.
    v: [b, s, m_kv, d] values.
    mask: bool, broadcastable to [b, m, n, s]; queries see only keys where it is
      True. A query that sees no key gets the mean of all values, including
      later ones if causal; ignore such results.
    bias: Array broadcastable to [b, m, n, s], added to the logits, in nats.
    causal: Whether query i sees keys 0..i only.
    impl: Name in IMPLEMENTATIONS.
    **options: Further keyword arguments of the implementation.

  Returns:
    [b, n, m, d], dtype of `q`. The softmax is computed in float32. With
    `return_weights=True`, an option of "dense", a pair of this and the weights,
    float32[b, m, n, s], which sum to one over the keys.

  Raises:
    ValueError: The implementation is unknown or does not support an option
      (says which ones do), shapes do not fit, or a mask is not bool.

  Source: arXiv:1706.03762; grouped heads: arXiv:2305.13245.
  """
  checks.check_choice("attention", impl, IMPLEMENTATIONS)
  _check_shapes(q, k, v)
  logits_shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
  if mask is not None:
    if mask.dtype != jnp.bool_:
      raise ValueError(
          f"An attention mask must be bool, this one is {mask.dtype}; what is "
          "added to the logits is called bias.")
    options["mask"] = _with_four_axes(mask, "mask", logits_shape)
  if bias is not None:
    options["bias"] = _with_four_axes(bias, "bias", logits_shape)
  if causal:
    options["causal"] = True
  _check_options(impl, options)
  return IMPLEMENTATIONS[impl].fn(q, k, v, **options)


def _check_options(impl: str, options):
  """Raises ValueError for options that are unsupported or missing."""
  for option in options:
    if option not in _supported(impl):
      able = [name for name in IMPLEMENTATIONS if option in _supported(name)]
      known = {name for each in IMPLEMENTATIONS for name in _supported(each)}
      raise ValueError(
          f"Attention {impl!r} does not support {option!r}; "
          + (f"{able} do." if able else
             f"none does{config_lib.nearest(option, known)}.")
          + f" It takes {_supported(impl)}.")
  mask = options.get("mask")
  if mask is not None and mask.shape[2] != 1 and (
      not IMPLEMENTATIONS[impl].any_mask):
    able = [name for name, other in IMPLEMENTATIONS.items()
            if other.any_mask and "mask" in _supported(name)]
    raise ValueError(
        f"Attention {impl!r} supports only masks that are the same for all "
        f"queries, [b, m, 1, s]; this one is {list(mask.shape)}. {able} "
        "support any.")
  needed = [p.name for p in _parameters(impl) if p.default is p.empty]
  if missing := [name for name in needed if name not in options]:
    raise ValueError(
        f"Attention {impl!r} needs {missing}, which `MultiHeadAttention` would "
        f"draw; it got {sorted(options)}.")


def _parameters(impl: str) -> list[inspect.Parameter]:
  """Returns the keyword-only parameters of an implementation."""
  return [p for p in
          inspect.signature(IMPLEMENTATIONS[impl].fn).parameters.values()
          if p.kind is p.KEYWORD_ONLY]


def _supported(impl: str) -> list[str]:
  """Returns the names of the options of an implementation."""
  return [p.name for p in _parameters(impl)]


def _check_shapes(q, k, v):
  """Raises ValueError unless queries, keys and values fit together."""
  fit = (
      q.ndim == k.ndim == 4 and k.shape == v.shape and
      (q.shape[0], q.shape[3]) == (k.shape[0], k.shape[3]) and
      q.shape[2] % k.shape[2] == 0)
  if not fit or not q.dtype == k.dtype == v.dtype:
    raise ValueError(
        "Attention wants q [b, n, m, d] and k, v [b, s, m_kv, d] of one dtype, "
        f"where m_kv divides m; it got q {q.dtype}{list(q.shape)}, "
        f"k {k.dtype}{list(k.shape)}, v {v.dtype}{list(v.shape)}.")


def _with_four_axes(x, what, shape):
  """Adds leading axes of size 1 to `x`, after checking that it broadcasts."""
  full = (1,) * (4 - x.ndim) + x.shape
  if len(full) != 4 or any(i not in (1, j) for i, j in zip(full, shape)):
    raise ValueError(
        f"An attention {what} must broadcast to [b, m, n, s] = {list(shape)}, "
        f"this one has shape {list(x.shape)}.")
  return x.reshape(full)
