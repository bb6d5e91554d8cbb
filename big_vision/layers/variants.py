"""Names of model sizes in configs, and signatures of `Model` functions."""

from collections.abc import Callable, Mapping, Sequence
import inspect
import re
from typing import Any

import flax.linen as nn


def decode_variant(
    variant: str | None, variants: Mapping[str, Sequence[int]],
    names: Sequence[str], *, family: str, is_square: bool = False,
) -> dict[str, Any]:
  """Returns the model arguments that a variant like "B/16" stands for.

  Args:
    variant: Key of `variants`, then / and the side of a patch; "B/14x10" has
      patches 14 high and 10 wide, "B" leaves the patch size open; None gives
      no arguments.
    variants: {name: sizes}.
    names: Argument names, one for each size.
    family: Name of the model family, for the error.
    is_square: Whether patches are always square; then "B/14x10" is invalid.

  Raises:
    ValueError: The variant is unknown; the error lists those that exist.
  """
  if variant is None:
    return {}
  name, slash, patch = variant.partition("/")
  sides = re.fullmatch(r"(\d+)" if is_square else r"(\d+)(?:x(\d+))?", patch)
  if name not in variants or (slash and not sides):
    raise ValueError(
        f"Unknown {family} variant {variant!r}; use one of {list(variants)}, "
        "then / and the side of a patch, like 'B/16'.")
  args = dict(zip(names, variants[name], strict=True))
  if slash:
    # For a single side, the first matched group is also the last one.
    args["patch_size"] = (int(sides[1]), int(sides[sides.lastindex]))
  return args


def takes_fields_of(module: type[nn.Module]) -> Callable[[Any], Any]:
  """Decorates a function that passes its `**kw` on to `module`.

  The fields of `module` are added to the function's signature, so that reading
  a config can report misspelt keys.
  """
  def spell_out(fn):
    own = {name: parameter
           for name, parameter in inspect.signature(fn).parameters.items()
           if parameter.kind != parameter.VAR_KEYWORD}
    fn.__signature__ = inspect.Signature([*own.values(), *(
        field.replace(kind=field.KEYWORD_ONLY)
        for name, field in inspect.signature(module).parameters.items()
        if name not in own)])
    return fn
  return spell_out
