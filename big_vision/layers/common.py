"""What several families of models share; nothing here has parameters."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import inspect
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from big_vision import config as config_lib

COMPUTE_DTYPES = ("float32", "bfloat16")
STOCH_DEPTH_MODES = ("inverted", "huang", "bigvision")
# Of `jax.checkpoint_policies`, those that are policies, not makers of policies.
REMAT_POLICIES = (
    "none", "nothing_saveable", "everything_saveable", "dots_saveable",
    "dots_with_no_batch_dims_saveable", "checkpoint_dots",
    "checkpoint_dots_with_no_batch_dims")
# Logical names of axes that are inside a layer; see `constrain`.
_INNER_AXES = frozenset({"act_heads", "act_mlp"})


def check_choice(what: str, value: Any, options: Iterable[Any]):
  """Raises ValueError, listing what exists, if `value` is not an option."""
  options = list(options)
  if value not in options:
    raise ValueError(
        f"Unknown {what} {value!r}{config_lib.nearest(value, options)}; use "
        f"one of {sorted(options)}.")


def check_patches(
    image, patch_size: int | Sequence[int], hint: str = "") -> tuple[int, int]:
  """(height, width) of patches, in pixels, after a check that images fit.

  Args:
    image: of any shape.
    patch_size: a side, or (height, width).
    hint: a sentence that ends the error.

  Raises:
    ValueError: `image` is not [b, height, width, channels] with sizes that are
      multiples of the patch, and not 0; or a side of the patch is below 1.
  """
  patch_size = (
      (patch_size,) * 2 if isinstance(patch_size, int) else tuple(patch_size))
  if image.ndim != 4 or min(patch_size) < 1 or any(
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
  """bool[b, n] of a mask of tokens, bool or number; None of None.

  Raises:
    ValueError: it has another shape than `shape`.
  """
  if mask is None:
    return None
  if mask.shape != tuple(shape):
    raise ValueError(
        f"A mask must have a number for every token, {list(shape)}; it is "
        f"{mask.dtype}{list(mask.shape)}.")
  return mask > 0


def mean_of_tokens(x, mask=None):
  """Mean over axis 1, [b, n, ...] -> [b, ...], of what `mask` bool[b, n] has.

  Without a mask it is that of all; of nothing it is 0.
  """
  if mask is None:
    return jnp.mean(x, axis=1)
  mask = mask.reshape(*mask.shape, *(1,) * (x.ndim - 2))
  return (jnp.sum(jnp.where(mask, x, 0), axis=1)
          / jnp.maximum(jnp.sum(mask, axis=1), 1))


def decode_variant(
    variant: str | None, variants: Mapping[str, Sequence[int]],
    names: Sequence[str], *, family: str, is_square: bool = False,
) -> dict[str, Any]:
  """The model arguments that a variant like "B/16" stands for.

  Args:
    variant: a key of `variants`, then / and the side of a patch; "B/14x10" has
      patches 14 high and 10 wide, "B" leaves them open; None is {}.
    variants: {name: sizes}.
    names: of the arguments that these sizes are.
    family: of the models, for the error.
    is_square: whether patches are, so that there is no "B/14x10".

  Raises:
    ValueError: any other; lists the names.
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
    # A single side is both the first group that matched and the last.
    args["patch_size"] = (int(sides[1]), int(sides[sides.lastindex]))
  return args


def takes_fields_of(module: type[nn.Module]) -> Callable[[Any], Any]:
  """Decorates a function that hands its `**kw` to `module`: says what they are.

  In its signature the fields of `module` follow what it names itself, so that a
  config's misspelt key is found.
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


def compute_dtype(dtype_mm: str):
  """The dtype that activations have; parameters are float32 regardless."""
  check_choice("dtype_mm", dtype_mm, COMPUTE_DTYPES)
  return jnp.dtype(dtype_mm)


def constrain(x, *names: str | None):
  """States how the axes of an activation are split over the mesh.

  The run's `sharding_rules` say which mesh axis each logical name stands for;
  axes whose name has no rule are not split. For act_heads and act_mlp without a
  rule nothing is stated: these inherit their split from the parameters, and
  gathering them would be waste. Without rules or a mesh, nothing happens.

  Args:
    x: an array with one axis per name.
    *names: act_batch, act_len, act_emb, act_heads, act_mlp or None.
  """
  rules = nn.get_logical_axis_rules()
  if not rules or jax.sharding.get_abstract_mesh().empty:
    return x
  free = _INNER_AXES - {name for name, _ in rules}
  spec = nn.logical_to_mesh_axes(
      [None if name in free else name for name in names], rules)
  return jax.lax.with_sharding_constraint(x, P(*(
      P.UNCONSTRAINED if name in free else axes
      for name, axes in zip(names, spec, strict=True))))


def remat(module: type[nn.Module], policy: str, *, in_scan: bool = False):
  """`module` that recomputes, in the backward pass, what `policy` drops.

  Args:
    module: a class whose `__call__` has a static third argument, `train`.
    policy: one of REMAT_POLICIES, the names in `jax.checkpoint_policies`;
      "none" returns `module` as it is.
    in_scan: a scan keeps the compiler from undoing the recomputation; a
      Python loop needs barriers against that.
  """
  check_choice("remat_policy", policy, REMAT_POLICIES)
  if policy == "none":
    return module
  return nn.remat(
      module, policy=getattr(jax.checkpoint_policies, policy),
      prevent_cse=not in_scan, static_argnums=(3,))


def stoch_depth_rates(stoch_depth: float, depth: int) -> list[float]:
  """The drop rate of every block: from 0 at the first, linearly to the last.

  Source: arXiv:1603.09382, Section 3, where the first of L blocks has 1/L of
  the last one's rate; here it has 0, as published ViTs and Mixers do.

  Raises:
    ValueError: `stoch_depth` is not in [0, 1).
  """
  if not 0 <= stoch_depth < 1:
    raise ValueError(f"stoch_depth must be in [0, 1), it is {stoch_depth}.")
  return [stoch_depth * i / max(depth - 1, 1) for i in range(depth)]


def drop_branch(x, rate, rng, *, mode: str, train: bool):
  """Stochastic depth: leaves out a residual branch, example by example.

  Args:
    x: [b, ...], what the branch is about to add to the residual.
    rate: probability of leaving it out, in [0, 1); may be traced.
    rng: a jax key, only used when training.
    mode: what keeps the expectation the same in training and evaluation:
      "inverted": kept branches are scaled by 1 / (1 - rate) in training;
      "huang": branches are scaled by 1 - rate in evaluation (arXiv:1603.09382);
      "bigvision": nothing does; what published Mixers were trained with.
    train: whether to drop.

  Returns:
    [b, ...], dtype of `x`.
  """
  check_choice("stoch_depth_mode", mode, STOCH_DEPTH_MODES)
  keep = 1 - rate
  if not train:
    return (x * keep).astype(x.dtype) if mode == "huang" else x
  kept = jax.random.bernoulli(rng, keep, (len(x),) + (1,) * (x.ndim - 1))
  if mode == "inverted":
    x = (x / keep).astype(x.dtype)
  return jnp.where(kept, x, jnp.zeros_like(x))
