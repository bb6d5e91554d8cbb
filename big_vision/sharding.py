"""Where arrays live: the mesh, rules by regex, placing a state.

A mesh has named axes. Two lists in the config say what is split over them:
`sharding_strategy` for what is stored (parameters, optimizer state, averages),
by name; `sharding_rules` for what flows (activations, batches), by the logical
names that models give to their axes. `sharding_preset` names common choices of
both.
"""

from collections.abc import Sequence
import contextlib
import re
from typing import Any

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import numpy as np

from big_vision import config as config_lib
from big_vision import op_string
from big_vision import tree

DEFAULT_MESH = (("data", -1),)
DEFAULT_STRATEGY = ((".*", "replicate"),)

# Tensor parallelism (arXiv:1909.08053, section 3): heads of attention and the
# hidden units of MLPs are split over "model", so that each block exchanges
# activations twice. Dimensions count from the end, for blocks that are scanned.
_TENSOR_PARALLEL = (
    (r".*/(query|key|value)/(kernel|bias)", "shard_dim('model', -2)"),
    (r".*/MultiHeadDotProductAttention_\d+/out/kernel",
     "shard_dim('model', -3)"),
    (r".*/(MlpBlock_\d+|transition)/Dense_0/(kernel|bias)",
     "shard_dim('model', -1)"),
    (r".*/(MlpBlock_\d+|transition)/Dense_1/kernel",
     "shard_dim('model', -2)"),
)
# What adafactor keeps of a kernel has other dimensions than it.
_FACTORED = r".*/v(_row|_col)?/.*"
PRESETS = ("replicate", "fsdp", "tp", "fsdp_tp")


def make_mesh(
    axes: Sequence[tuple[str, int]] = DEFAULT_MESH, devices=None) -> Mesh:
  """A mesh over `devices` (default: all), neighbours placed by topology.

  Args:
    axes: (name, size) pairs; one size may be -1, for all that is left.
    devices: list of jax devices.

  Raises:
    ConfigError: the sizes do not multiply to the number of devices, or are not
      how they are linked.
  """
  devices = jax.devices() if devices is None else devices
  names = tuple(name for name, _ in axes)
  sizes = [size for _, size in axes]
  if len(set(names)) != len(names):
    raise config_lib.ConfigError(f"config.mesh names an axis twice: {names}.")
  known = int(np.prod([size for size in sizes if size != -1]))
  if sizes.count(-1) > 1 or len(devices) % known:
    raise config_lib.ConfigError(
        f"config.mesh is {[tuple(axis) for axis in axes]} and there are "
        f"{len(devices)} devices; sizes must multiply to that, and one of them "
        "may be -1.")
  sizes = [len(devices) // known if size == -1 else size for size in sizes]
  if int(np.prod(sizes)) != len(devices):
    raise config_lib.ConfigError(
        f"config.mesh is {[tuple(axis) for axis in axes]}, which takes "
        f"{int(np.prod(sizes))} devices; there are {len(devices)}.")
  num_slices = len({getattr(device, "slice_index", 0) for device in devices})
  if num_slices > 1:
    return _make_hybrid_mesh(names, sizes, num_slices, devices)
  # Since jax 0.9 the default is Explicit, under which matrix products of
  # sharded arrays are errors; Auto leaves them to the compiler.
  try:
    return jax.make_mesh(
        tuple(sizes), names, axis_types=(AxisType.Auto,) * len(sizes),
        devices=devices)
  except NotImplementedError as error:  # Of TPUs, whose links are a torus.
    raise config_lib.ConfigError(
        f"config.mesh is {dict(zip(names, sizes))}, which is not how these "
        f"devices are linked: {error}") from error


def _make_hybrid_mesh(names, sizes, num_slices, devices) -> Mesh:
  """A mesh over several slices: the first axis is cut at their borders.

  Between slices the network is slow; only what that axis exchanges (gradients,
  where it is "data") goes over it.
  """
  if sizes[0] % num_slices:
    raise config_lib.ConfigError(
        f"There are {num_slices} slices, over which the first axis of "
        f"config.mesh is split; {names[0]!r} has {sizes[0]} devices.")
  within = (sizes[0] // num_slices, *sizes[1:])
  across = (num_slices,) + (1,) * len(sizes[1:])
  return Mesh(
      mesh_utils.create_hybrid_device_mesh(within, across, devices), names,
      axis_types=(AxisType.Auto,) * len(names))


@contextlib.contextmanager
def use(mesh: Mesh, rules: Sequence[tuple[str, Any]]):
  """Within it, models' logical constraints speak of this mesh."""
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    yield


def default_rules(mesh: Mesh) -> tuple[tuple[str, Any], ...]:
  """The rules where the config has none: batches split over the first axis."""
  return (("act_batch", mesh.axis_names[0]),)


def make_rules(
    mesh: Mesh, rules: Sequence[Sequence[Any]] | None,
    preset: str | None = None) -> list[tuple[str, Any]]:
  """Logical-axis rules of the config, checked against the mesh.

  Args:
    mesh: the run's mesh.
    rules: (logical name, mesh axis | several | None) pairs, or None.
    preset: one of PRESETS, whose rules `rules` change, or None.

  Raises:
    ConfigError: an axis the mesh does not have.
  """
  checked = []
  if preset is not None:
    rules = list({**dict(preset_rules(preset, mesh)), **dict(rules or ())}
                 .items())
  for name, axes in rules or default_rules(mesh):
    axes = tuple(axes) if isinstance(axes, (list, tuple)) else axes
    _check_axes(mesh, axes, f"sharding_rules for {name!r}")
    checked.append((name, axes))
  return checked


def preset_rules(name: str, mesh: Mesh) -> list[tuple[str, Any]]:
  """The `sharding_rules` of a preset.

  Raises:
    ConfigError: an unknown name, a mesh without the axes it needs.
  """
  if name not in PRESETS:
    raise config_lib.ConfigError(
        f"Unknown sharding_preset {name!r}{config_lib.nearest(name, PRESETS)}; "
        f"use one of {list(PRESETS)}.")
  axes = {"tp": ("model",), "fsdp_tp": ("data", "model")}.get(name, ())
  _check_axes(mesh, axes, f"sharding_preset {name!r}")
  if name == "fsdp":
    return [("act_batch", mesh.axis_names)]
  rules = list(default_rules(mesh))
  if "model" in axes:
    rules += [("act_heads", "model"), ("act_mlp", "model")]
  return rules


def preset_strategy(name: str, shapes, mesh: Mesh) -> list[tuple[str, str]]:
  """The `sharding_strategy` of a preset, for a state of these shapes.

    `replicate`: a copy on each device;
    `fsdp`: all is split over all axes, and parameters are gathered when used.
      Each axis splits another dimension, so that of 1,024 devices as 128 x 8,
      one needs to divide by 128 and one by 8;
    `tp`: heads of attention and MLPs are split over "model";
    `fsdp_tp`: these over "model", and all over "data".

  Raises:
    ConfigError: `tp` of a model without attention or MLPs to split.
  """
  axes = {"fsdp": mesh.axis_names, "fsdp_tp": ("data",)}.get(name, ())
  rest = "|".join(f"fsdp(axis={axis!r})" for axis in axes) or "replicate"
  if "tp" not in name:
    return [(".*", rest)]
  names = [leaf for leaf, _ in tree.flatten_with_names(shapes)]
  def matches(regex):
    return any(re.fullmatch(regex, leaf) for leaf in names)
  split = [(regex, f"{op}|{rest}" if "fsdp" in name else op)
           for regex, op in _TENSOR_PARALLEL if matches(regex)]
  if not split:
    raise config_lib.ConfigError(
        f"sharding_preset {name!r} splits the attention and MLPs of "
        f"transformers; there are none among {names[:3]}, ...: use 'fsdp', or "
        "a sharding_strategy.")
  return [(_FACTORED, rest)] * matches(_FACTORED) + split + [(".*", rest)]


def batch_sharding(mesh: Mesh, rules: Sequence[tuple[str, Any]]):
  """The sharding of a batch's first axis, as the rule for "act_batch" says."""
  return NamedSharding(mesh, P(dict(rules).get("act_batch")))


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, P())


def check_divides(batch_size: int, sharding: NamedSharding, where: str):
  """Raises ConfigError if a batch cannot be split evenly; names who could."""
  shards = num_shards(sharding)
  if batch_size % shards:
    below = batch_size // shards * shards
    near = [size for size in (below, below + shards) if size]
    raise config_lib.ConfigError(
        f"{where} is {batch_size}, which does not divide over {shards} "
        f"shards of the batch; the nearest sizes that do are {near}.")


def num_shards(sharding: NamedSharding) -> int:
  """Over how many parts the first axis of an array is split."""
  axes = sharding.spec[0] if len(sharding.spec) else None
  axes = (axes,) if isinstance(axes, str) else (axes or ())
  return int(np.prod([sharding.mesh.shape[axis] for axis in axes]))


def infer(
    shapes, strategy: Sequence[Sequence[str]], mesh: Mesh,
    rules: Sequence[tuple[str, Any]] = ()):
  """The sharding of every leaf, by the first regex that matches its name.

  The ops of a strategy, applied from left to right, are
    `replicate`: a copy everywhere;
    `fsdp(axis="data", min_size_to_shard_mb=4)`: the largest free dimension that
      divides is split over `axis` (a name or a tuple); small leaves are not;
    `shard_dim(axis, dim, ignore_ndim_error=False)`: tensor parallelism by hand,
      negative `dim` counts from the end;
    `logical(name, ...)`: one logical name (or None) per dimension, looked up in
      `rules`.

  Args:
    shapes: a tree with `.shape` and `.dtype` at its leaves.
    strategy: (regex, "op|op(args)") pairs.
    mesh: the run's mesh.
    rules: logical names to mesh axes, see `make_rules`.

  Returns:
    The tree, a NamedSharding at every leaf.

  Raises:
    ConfigError: an unknown op, argument or axis; a regex that matches nothing;
      a dimension that is taken or does not divide. It names the leaf.
  """
  names = [name for name, _ in tree.flatten_with_names(shapes)]
  matches = tree.first_match(names, [pattern for pattern, _ in strategy])
  for index, (pattern, _) in enumerate(strategy):
    if index not in matches.values():
      raise config_lib.ConfigError(
          f"sharding_strategy: {pattern!r} is the first match of no leaf. "
          f"Leaves are named like {names[:3]}.")
  context = dict(mesh=mesh, rules=dict(rules))

  def leaf_sharding(name, leaf):
    spec = [None] * len(leaf.shape)
    if matches[name] is not None:
      for op in op_string.parse(strategy[matches[name]][1]):
        if op.name not in _OPS:
          raise config_lib.ConfigError(
              f"Unknown sharding op {op.name!r} for {name}"
              f"{config_lib.nearest(op.name, _OPS)}; use one of "
              f"{sorted(_OPS)}.")
        try:
          spec = _OPS[op.name](
              *op.args, **op.kwargs)(spec, leaf, name, **context)
        except TypeError as error:
          raise config_lib.ConfigError(
              f"sharding_strategy, {op.text!r}: {error}.") from error
    return NamedSharding(mesh, P(*spec))

  return tree.map_with_names(leaf_sharding, shapes)


def put(values, shardings):
  """Places host arrays (the same on every process) into their shards."""
  def place(value, sharding):
    value = np.asarray(value)
    return jax.make_array_from_callback(
        value.shape, sharding, lambda index: value[index])
  return jax.tree.map(place, values, shardings)


def _check_axes(mesh: Mesh, axes, where: str):
  """Raises ConfigError if the mesh lacks one of `axes` (name, tuple, None)."""
  for axis in (axes,) if isinstance(axes, str) else (axes or ()):
    if axis not in mesh.shape:
      raise config_lib.ConfigError(
          f"{where} uses the axis {axis!r}"
          f"{config_lib.nearest(axis, mesh.axis_names)}; the mesh has "
          f"{list(mesh.axis_names)}.")


def _free_axis_size(mesh, axes, spec, name) -> int:
  """Devices along `axes`, after checking that the leaf does not use them."""
  _check_axes(mesh, axes, f"The sharding of {name}")
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


def _fsdp(axis="data", min_size_to_shard_mb=4):
  axis = tuple(axis) if isinstance(axis, (list, tuple)) else axis

  def apply(spec, leaf, name, mesh, **unused):
    del unused
    size = _free_axis_size(mesh, axis, spec, name)
    if leaf.size * leaf.dtype.itemsize <= min_size_to_shard_mb * 2 ** 20:
      return spec
    free = [dim for dim, entry in enumerate(spec)
            if entry is None and leaf.shape[dim] % size == 0]
    if not free:
      return spec
    largest = max(free, key=lambda dim: leaf.shape[dim])
    return [axis if dim == largest else entry for dim, entry in enumerate(spec)]
  return apply


def _shard_dim(axis, dim, ignore_ndim_error=False):
  axis = tuple(axis) if isinstance(axis, (list, tuple)) else axis

  def apply(spec, leaf, name, mesh, **unused):
    del unused
    size = _free_axis_size(mesh, axis, spec, name)
    if not -len(spec) <= dim < len(spec):
      if ignore_ndim_error:
        return spec
      raise config_lib.ConfigError(
          f"{name} has shape {leaf.shape}; there is no dimension {dim}.")
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
          f"{name} has shape {leaf.shape}; `logical` names "
          f"{len(logical_names)} dimensions: {logical_names}.")
    for dim, logical_name in enumerate(logical_names):
      if rules.get(logical_name) is not None:
        spec = _shard_dim(rules[logical_name], dim)(spec, leaf, name, mesh)
    return spec
  return apply


_OPS = {"replicate": _replicate, "fsdp": _fsdp, "shard_dim": _shard_dim,
        "logical": _logical}
