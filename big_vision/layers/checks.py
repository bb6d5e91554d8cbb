"""Checks that models and layers make of their options and inputs."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp

from big_vision import config as config_lib

COMPUTE_DTYPES = ("float32", "bfloat16")


def check_choice(what: str, value: Any, options: Iterable[Any]):
  """Raises ValueError unless `value` is one of `options`.

  Args:
    what: Name of the option, for the error.
    value: Chosen value.
    options: Values that exist; the error lists them.
  """
  options = list(options)
  if value not in options:
    raise ValueError(
        f"Unknown {what} {value!r}{config_lib.nearest(value, options)}; use "
        f"one of {sorted(options)}.")


def check_pair(name: str, size: int | Sequence[int]) -> tuple[int, int]:
  """Returns (height, width) for a size that is given as one or two numbers.

  A single number, also in a tuple, is the side of a square: the command line
  turns `--config.model.patch_size=8` into (8,) if the config has a tuple there.

  Args:
    name: Name of the option, for the error.
    size: Side of a square; or (height, width).

  Raises:
    ValueError: There are more numbers, or one is not an integer of at least 1.
  """
  sides = (size,) if isinstance(size, int) else tuple(size)
  if len(sides) not in (1, 2) or not all(map(_is_positive, sides)):
    raise ValueError(
        f"{name} must be one integer of at least 1, or two, (height, width); "
        f"it is {size!r}.")
  return sides[0], sides[-1]


def _is_positive(size) -> bool:
  return isinstance(size, int) and not isinstance(size, bool) and size > 0


def check_patches(
    image, patch_size: int | Sequence[int], hint: str = "") -> tuple[int, int]:
  """Checks that images divide into patches.

  Args:
    image: Array; should be [b, height, width, channels].
    patch_size: Side of a patch, or its (height, width), in pixels.
    hint: Sentence that ends the error.

  Returns:
    (height, width) of a patch, in pixels.

  Raises:
    ValueError: `patch_size` is neither one nor two positive integers, `image`
      does not have four axes, or its height or width is 0 or not a multiple of
      the patch.
  """
  patch_size = check_pair("patch_size", patch_size)
  if image.ndim != 4 or any(
      pixels % patch or not pixels
      for pixels, patch in zip(image.shape[1:3], patch_size)):
    raise ValueError(
        "Images must be [b, height, width, channels] with height and width "
        f"multiples of patch_size {patch_size}; they are "
        f"{list(image.shape)}. {hint}".rstrip())
  return patch_size


def check_text(text, vocab_size: int, hint: str = ""):
  """Raises ValueError, ending in `hint`, unless `text` is int[b, n]."""
  if text.ndim != 2 or not jnp.issubdtype(text.dtype, jnp.integer):
    raise ValueError(
        f"With vocab_size={vocab_size} text must be int[b, n]; it is "
        f"{text.dtype}{list(text.shape)}. {hint}".rstrip())


def check_mask(mask, shape: Sequence[int]):
  """Checks the shape of a mask of tokens and makes it boolean.

  Args:
    mask: bool or number[b, n], 0 for padding; or None.
    shape: The expected (b, n).

  Returns:
    bool[b, n]; None if `mask` is None.

  Raises:
    ValueError: `mask` has another shape.
  """
  if mask is None:
    return None
  if mask.shape != tuple(shape):
    raise ValueError(
        f"A mask must have a number for every token, {list(shape)}; it is "
        f"{mask.dtype}{list(mask.shape)}.")
  return mask > 0


def compute_dtype(dtype_mm: str):
  """Returns the dtype of activations; parameters are float32 regardless."""
  check_choice("dtype_mm", dtype_mm, COMPUTE_DTYPES)
  return jnp.dtype(dtype_mm)
