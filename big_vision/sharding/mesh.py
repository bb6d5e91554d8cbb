"""Makes the mesh: the devices of a run, arranged along named axes."""

from collections.abc import Sequence
import contextlib
from typing import Any, Literal

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh
import numpy as np

from big_vision import config as config_lib
from big_vision import ranges

DEFAULT_MESH = (("data", -1),)


def make_mesh(
    axes: Sequence[tuple[str, int]] = DEFAULT_MESH, devices=None) -> Mesh:
  """Makes a mesh in which neighbours are devices with a direct link.

  Args:
    axes: Pairs of an axis name and its size. One size may be -1; it becomes
      the number of devices divided by the product of the other sizes.
    devices: List of jax devices; None for all devices.

  Returns:
    A mesh whose axes are all of the type `Auto`.

  Raises:
    ConfigError: A size is not positive, an axis is named twice, the product of
      the sizes differs from the number of devices, or the links of the devices
      do not allow this arrangement.
  """
  devices = jax.devices() if devices is None else devices
  config_lib.check(
      axes, "config.mesh", Sequence[tuple[str, Literal[-1] | ranges.Count]])
  names = tuple(name for name, _ in axes)
  sizes = _resolve_sizes(axes, len(devices))
  num_slices = len({getattr(device, "slice_index", 0) for device in devices})
  if num_slices > 1:
    return _make_hybrid_mesh(names, sizes, num_slices, devices)
  # Since jax 0.9 the default axis type is Explicit, under which matrix products
  # of sharded arrays are errors. Auto leaves their sharding to the compiler.
  try:
    return jax.make_mesh(
        tuple(sizes), names, axis_types=(AxisType.Auto,) * len(sizes),
        devices=devices)
  except NotImplementedError as error:
    # The links of a TPU form a torus, on which not every factorization of the
    # number of devices can be laid out.
    raise config_lib.ConfigError(
        f"config.mesh is {dict(zip(names, sizes))}, which does not match how "
        f"these devices are linked: {error}") from error


def _resolve_sizes(
    axes: Sequence[tuple[str, int]], num_devices: int) -> list[int]:
  """Returns the sizes of the axes, with the -1 replaced; checks them all."""
  names = [name for name, _ in axes]
  sizes = [size for _, size in axes]
  if len(set(names)) != len(names):
    raise config_lib.ConfigError(f"config.mesh names an axis twice: {names}.")
  known = int(np.prod([size for size in sizes if size != -1]))
  if sizes.count(-1) > 1 or num_devices % known:
    raise config_lib.ConfigError(
        f"config.mesh is {[tuple(axis) for axis in axes]} and there are "
        f"{num_devices} devices; the product of the sizes must be the number "
        "of devices, and only one of them may be -1.")
  sizes = [num_devices // known if size == -1 else size for size in sizes]
  if int(np.prod(sizes)) != num_devices:
    raise config_lib.ConfigError(
        f"config.mesh is {[tuple(axis) for axis in axes]}, which takes "
        f"{int(np.prod(sizes))} devices; there are {num_devices}.")
  return sizes


def _make_hybrid_mesh(names, sizes, num_slices, devices) -> Mesh:
  """Makes a mesh over several slices, whose first axis crosses their borders.

  The network between slices is slow. With the other axes inside a slice, only
  the collectives of the first axis cross it: the sum of the gradients, where
  that axis is "data".
  """
  if sizes[0] % num_slices:
    raise config_lib.ConfigError(
        f"The first axis of config.mesh is split over the {num_slices} slices; "
        f"its size must be a multiple of that, but {names[0]!r} has the size "
        f"{sizes[0]}.")
  within = (sizes[0] // num_slices, *sizes[1:])
  across = (num_slices,) + (1,) * len(sizes[1:])
  return Mesh(
      mesh_utils.create_hybrid_device_mesh(within, across, devices), names,
      axis_types=(AxisType.Auto,) * len(names))


@contextlib.contextmanager
def use(mesh: Mesh, rules: Sequence[tuple[str, Any]]):
  """Makes the logical constraints of models refer to `mesh` and `rules`."""
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    yield


def check_axes(mesh: Mesh, axes: str | Sequence[str] | None, where: str):
  """Raises ConfigError if the mesh lacks one of the axes.

  Args:
    mesh: Mesh of the run.
    axes: Name of an axis, several names, or None.
    where: Setting that uses the axes, named in the error.
  """
  for axis in (axes,) if isinstance(axes, str) else (axes or ()):
    if axis not in mesh.shape:
      raise config_lib.ConfigError(
          f"{where} uses the axis {axis!r}"
          f"{config_lib.nearest(axis, mesh.axis_names)}; the mesh has "
          f"{list(mesh.axis_names)}.")
