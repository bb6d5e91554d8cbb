"""Splits the leaves of a state by a strategy, pairs of a regex and ops.

An op is a function that takes its arguments from the config and returns a
function (spec, leaf, name, mesh, rules) -> spec, where `spec` is a list with
the mesh axes of each dimension, or None. Ops are chained with "|"; each sees
the spec that the ones before it left.
"""

from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np

from big_vision import config as config_lib
from big_vision import op_string
from big_vision import ranges
from big_vision import tree
from big_vision.sharding import mesh as mesh_lib

DEFAULT_STRATEGY = ((".*", "replicate"),)


def infer(
    shapes, strategy: Sequence[Sequence[str]], mesh: Mesh,
    rules: Sequence[tuple[str, Any]] = ()):
  """Infers the sharding of every leaf from the first regex that matches it.

  The ops of a strategy are applied from left to right:
    `replicate`: Keeps a copy on every device.
    `fsdp(axis="data", min_size_to_shard_mb=4)`: Splits the largest dimension
      that is not yet split and divides over `axis` (a name or a tuple of
      names). Leaves of at most `min_size_to_shard_mb` MiB stay whole.
    `shard_dim(axis, dim, ignore_ndim_error=False)`: Splits dimension `dim`; a
      negative one counts from the end. For tensor parallelism by hand.
    `logical(name, ...)`: Looks up one logical name (or None) per dimension in
      `rules`.

  Args:
    shapes: Tree with `.shape` and `.dtype` at its leaves.
    strategy: Pairs of a regex and "op|op(args)".
    mesh: Mesh of the run.
    rules: Pairs of a logical name and mesh axes, see `make_rules`.

  Returns:
    The tree with a NamedSharding at every leaf. A leaf that no regex matches
    is replicated.

  Raises:
    ConfigError: An op, argument or axis is unknown; a regex is not the first
      match of any leaf; a dimension is already split or does not divide. The
      error names the leaf.
  """
  names = [name for name, _ in tree.flatten_with_names(shapes)]
  matches = tree.first_match(names, [pattern for pattern, _ in strategy])
  # A regex without a leaf has a typo, or comes after one that is too general.
  # Either way, something would silently stay unsplit.
  for index, (pattern, _) in enumerate(strategy):
    if index not in matches.values():
      raise config_lib.ConfigError(
          f"sharding_strategy: {pattern!r} is not the first match of any leaf. "
          f"Leaves are named like {names[:3]}.")

  def leaf_sharding(name, leaf):
    spec = [None] * len(leaf.shape)
    if matches[name] is not None:
      for op in op_string.parse(strategy[matches[name]][1]):
        spec = _apply(op, spec, leaf, name, mesh, dict(rules))
    return NamedSharding(mesh, P(*spec))

  return tree.map_with_names(leaf_sharding, shapes)


def _apply(op, spec, leaf, name, mesh, rules):
  """Applies one parsed op of a strategy to the spec of a leaf."""
  if op.name not in _OPS:
    raise config_lib.ConfigError(
        f"Unknown sharding op {op.name!r} for {name}"
        f"{config_lib.nearest(op.name, _OPS)}; use one of {sorted(_OPS)}.")
  make = _OPS[op.name]
  try:
    config_lib.check_arguments(
        make, op.args, op.kwargs, f"config.sharding_strategy: {op.name}")
    return make(*op.args, **op.kwargs)(spec, leaf, name, mesh=mesh, rules=rules)
  except TypeError as error:  # The op has no such argument.
    raise config_lib.ConfigError(
        f"sharding_strategy, {op.text!r}: {error}.") from error


def _free_axis_size(mesh, axes, spec, name) -> int:
  """Returns the number of devices along `axes`.

  Raises:
    ConfigError: The mesh lacks one of the axes, or another dimension of the
      leaf is split over it: one axis can split only one dimension.
  """
  mesh_lib.check_axes(mesh, axes, f"The sharding of {name}")
  axes = (axes,) if isinstance(axes, str) else tuple(axes)
  used = [a for entry in spec if entry
          for a in ((entry,) if isinstance(entry, str) else entry)]
  if set(axes) & set(used):
    raise config_lib.ConfigError(
        f"{name} is already split over {sorted(set(axes) & set(used))}.")
  return int(np.prod([mesh.shape[axis] for axis in axes]))


def _replicate():
  def apply(spec, leaf, name, **unused):
    del leaf, unused
    if any(spec):
      raise config_lib.ConfigError(
          f"{name}: `replicate` comes after an op that splits it as {spec}.")
    return spec
  return apply


def _fsdp(
    axis: str | Sequence[str] = "data",
    min_size_to_shard_mb: ranges.NotNegative = 4):
  axis = tuple(axis) if isinstance(axis, (list, tuple)) else axis

  def apply(spec, leaf, name, mesh, **unused):
    del unused
    size = _free_axis_size(mesh, axis, spec, name)
    # Splitting a small array would save almost no memory and cost messages.
    if leaf.size * leaf.dtype.itemsize <= min_size_to_shard_mb * 2 ** 20:
      return spec
    free = [dim for dim, entry in enumerate(spec)
            if entry is None and leaf.shape[dim] % size == 0]
    if not free:
      # No dimension divides evenly: padding would change shapes, so the leaf
      # stays whole along this axis. `tools.plan` lists such leaves.
      return spec
    largest = max(free, key=lambda dim: leaf.shape[dim])
    return [axis if dim == largest else entry for dim, entry in enumerate(spec)]
  return apply


def _shard_dim(
    axis: str | Sequence[str], dim: ranges.Integer,
    ignore_ndim_error: bool = False):
  axis = tuple(axis) if isinstance(axis, (list, tuple)) else axis

  def apply(spec, leaf, name, mesh, **unused):
    del unused
    size = _free_axis_size(mesh, axis, spec, name)
    if not -len(spec) <= dim < len(spec):
      if ignore_ndim_error:
        return spec
      raise config_lib.ConfigError(
          f"{name} has the shape {leaf.shape} and hence no dimension {dim}.")
    if spec[dim] is not None or leaf.shape[dim] % size:
      raise config_lib.ConfigError(
          f"{name}: dimension {dim} of {leaf.shape}, split as {spec}, cannot "
          f"be split over {axis!r} of size {size}.")
    return [axis if i == dim % len(spec) else entry
            for i, entry in enumerate(spec)]
  return apply


def _logical(*logical_names):
  def apply(spec, leaf, name, mesh, rules):
    if len(logical_names) != len(spec):
      raise config_lib.ConfigError(
          f"{name} has the shape {leaf.shape}, but `logical` names "
          f"{len(logical_names)} dimensions: {logical_names}.")
    for dim, logical_name in enumerate(logical_names):
      if rules.get(logical_name) is not None:
        spec = _shard_dim(rules[logical_name], dim)(spec, leaf, name, mesh)
    return spec
  return apply


_OPS = {"replicate": _replicate, "fsdp": _fsdp, "shard_dim": _shard_dim,
        "logical": _logical}
