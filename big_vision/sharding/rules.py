"""Makes logical-axis rules, and presets of common ways to split a run."""

from collections.abc import Sequence
import re
from typing import Any

from jax.sharding import Mesh

from big_vision import config as config_lib
from big_vision import tree
from big_vision.sharding import mesh as mesh_lib

PRESETS = ("replicate", "fsdp", "tp", "fsdp_tp")

# Tensor parallelism (arXiv:1909.08053, section 3): the heads of attention and
# the hidden units of MLPs are split over "model". The first product of each
# pair then needs no communication and the second one a single sum, so a block
# exchanges activations twice. Dimensions count from the end because blocks in
# a scan have one more dimension, depth, in front.
_TENSOR_PARALLEL = (
    (r".*/(query|key|value)/(kernel|bias)", "shard_dim('model', -2)"),
    # The second of each pair of names is that of GPTs.
    (r".*/(MultiHeadDotProductAttention|block)_\d+/out/kernel",
     "shard_dim('model', -3)"),
    (r".*/((MlpBlock_\d+|transition)/Dense_0|mlp_in)/(kernel|bias)",
     "shard_dim('model', -1)"),
    (r".*/((MlpBlock_\d+|transition)/Dense_1|mlp_out)/kernel",
     "shard_dim('model', -2)"),
)
# Adafactor's factored moments have fewer dimensions than their kernel, so the
# rules above would split the wrong one.
_FACTORED = r".*/v(_row|_col)?/.*"


def default_rules(mesh: Mesh) -> tuple[tuple[str, Any], ...]:
  """Returns rules that split only batches, over the mesh's first axis."""
  return (("act_batch", mesh.axis_names[0]),)


def make_rules(
    mesh: Mesh, rules: Sequence[Sequence[Any]] | None,
    preset: str | None = None) -> list[tuple[str, Any]]:
  """Checks the config's logical-axis rules and completes them from the preset.

  Args:
    mesh: Mesh of the run.
    rules: Pairs of a logical name and a mesh axis, several axes or None; None
      for `default_rules`.
    preset: One of PRESETS, whose rules are overridden by those in `rules`; or
      None.

  Returns:
    The rules as flax takes them.

  Raises:
    ConfigError: A rule uses an axis that the mesh does not have.
  """
  checked = []
  if preset is not None:
    overrides = dict(rules or ())
    rules = list({**dict(preset_rules(preset, mesh)), **overrides}.items())
  for name, axes in rules or default_rules(mesh):
    axes = tuple(axes) if isinstance(axes, (list, tuple)) else axes
    mesh_lib.check_axes(mesh, axes, f"sharding_rules for {name!r}")
    checked.append((name, axes))
  return checked


def preset_rules(name: str, mesh: Mesh) -> list[tuple[str, Any]]:
  """Returns the `sharding_rules` of a preset.

  Raises:
    ConfigError: The preset is unknown, or the mesh lacks an axis it needs.
  """
  if name not in PRESETS:
    raise config_lib.ConfigError(
        f"Unknown sharding_preset {name!r}{config_lib.nearest(name, PRESETS)}; "
        f"use one of {list(PRESETS)}.")
  axes = {"tp": ("model",), "fsdp_tp": ("data", "model")}.get(name, ())
  mesh_lib.check_axes(mesh, axes, f"sharding_preset {name!r}")
  if name == "fsdp":
    # All axes hold parameters here, so all of them can share the batch too.
    return [("act_batch", mesh.axis_names)]
  rules = list(default_rules(mesh))
  if "model" in axes:
    rules += [("act_heads", "model"), ("act_mlp", "model")]
  return rules


def preset_strategy(name: str, shapes, mesh: Mesh) -> list[tuple[str, str]]:
  """Returns the `sharding_strategy` of a preset.

    `replicate`: Every device holds a copy.
    `fsdp`: Everything is split over all axes, and parameters are gathered when
      they are used. Each axis splits another dimension: on 1,024 devices in a
      mesh of 128 x 8, one dimension needs to divide by 128 and another by 8,
      where a single split would need one that divides by 1,024.
    `tp`: Attention heads and hidden units of MLPs are split over "model".
    `fsdp_tp`: Heads and hidden units are split over "model", and everything
      over "data".

  Args:
    name: One of PRESETS.
    shapes: The state as a tree of jax.ShapeDtypeStruct.
    mesh: Mesh of the run.

  Raises:
    ConfigError: `tp` or `fsdp_tp` for a model without attention and MLPs.
  """
  axes = {"fsdp": mesh.axis_names, "fsdp_tp": ("data",)}.get(name, ())
  rest = "|".join(f"fsdp(axis={axis!r})" for axis in axes) or "replicate"
  if "tp" not in name:
    return [(".*", rest)]
  names = [leaf for leaf, _ in tree.flatten_with_names(shapes)]
  def matches(regex):
    return any(re.fullmatch(regex, leaf) for leaf in names)
  # Keep only regexes that match, because `infer` refuses all others.
  split = [(regex, f"{op}|{rest}" if "fsdp" in name else op)
           for regex, op in _TENSOR_PARALLEL if matches(regex)]
  if not split:
    raise config_lib.ConfigError(
        f"sharding_preset {name!r} splits the attention and MLPs of "
        f"transformers, and the state has neither (its leaves are {names[:3]}, "
        "...); use 'fsdp' or a sharding_strategy.")
  return [(_FACTORED, rest)] * matches(_FACTORED) + split + [(".*", rest)]
