"""Reads any checkpoint: its metadata, its arrays, a state into shardings."""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from big_vision import tree
from big_vision.run.checkpoints import agreement
from big_vision.run.checkpoints import digests
from big_vision.run.checkpoints import errors
from big_vision.run.checkpoints import folders


def read_meta(directory: str, step: int | None = None) -> dict[str, Any]:
  """Returns the `meta` that `Checkpoints.save` was given.

  Args:
    directory: Directory of a run's checkpoints, or the folder of one step.
    step: Step to read; None for the newest.

  Raises:
    StorageError: There is no such checkpoint.
    CheckpointDamaged: The metadata cannot be read.
  """
  return read_description(folders.find(directory, step))["user"]


def read_arrays(
    directory: str, step: int | None = None, prefix: str = ""
) -> dict[str, np.ndarray]:
  """Reads the arrays whose names start with `prefix`, without a mesh.

  For warm starts, pretrained parts and inspection; the structure of the state
  need not be known.

  Args:
    directory: Directory of a run's checkpoints, or the folder of one step.
    step: Step to read; None for the newest.
    prefix: Beginning of the names, such as "params/"; other arrays are not
      read.

  Returns:
    {name: array} on the host.

  Raises:
    StorageError: There is no such checkpoint.
    CheckpointDamaged: The stored data does not match its digest.
  """
  path = folders.find(directory, step)
  leaves = read_description(path)["leaves"]
  device = jax.local_devices()[0]
  where = jax.sharding.SingleDeviceSharding(device)
  # This may be called while a run is built, under its mesh; arrays of a single
  # device would clash with it.
  with jax.set_mesh(jax.sharding.Mesh([device], "alone")):
    arrays = _read_arrays(path, {
        name: jax.ShapeDtypeStruct(
            tuple(shape), jnp.dtype(dtype), sharding=where)
        for name, (shape, dtype, _) in leaves.items()
        if name.startswith(prefix)})
    if (error := _find_damage(path, leaves, arrays)) is not None:
      raise error
  return {name: np.asarray(leaf) for name, leaf in arrays.items()}


def load(path: epath.Path, shapes) -> tuple[Any, dict[str, Any]]:
  """Reads one step into shardings; all processes succeed or raise together.

  Args:
    path: Folder of the step.
    shapes: Tree of jax.ShapeDtypeStruct with shardings.

  Returns:
    (state, meta)

  Raises:
    CheckpointMismatch, CheckpointDamaged: See `Checkpoints.restore`.
    StorageError: Reading failed for a reason that may pass.
  """
  stored = agreement.from_first(lambda: read_description(path))
  named = dict(tree.flatten_with_names(shapes))
  _check_structure(path, stored["leaves"], named)
  _check_shardings(named)
  restored = error = None
  try:
    restored = _read_arrays(path, named)
  except errors.StorageError as e:
    error = e
  agreement.raise_together(path, error)
  # Wait until all processes have all arrays: the digest of a sharded array is a
  # collective, in which every process has to take part.
  agreement.raise_together(
      path, _find_damage(path, stored["leaves"], restored))
  return (jax.tree.unflatten(jax.tree.structure(shapes), restored.values()),
          stored["user"])


def read_description(path: epath.Path) -> dict[str, Any]:
  """Reads the meta item of a step.

  Returns:
    "leaves" as `digests.describe` made them, and "user", the user's `meta`.

  Raises:
    StorageError, CheckpointDamaged: See `errors.reading`.
  """
  file = path / folders.META
  with errors.reading(f"{file}, the description of the data, cannot be read"):
    return digests.unseal(json.loads(file.read_text()))


def _read_arrays(
    path: epath.Path, named: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
  """Reads arrays by name; the caller has to check their digests.

  Communicates with no other process, so that a process that fails does not
  leave the others waiting.

  Args:
    path: Folder of the step.
    named: Shapes with shardings, by name.
  """
  read = {name: shape for name, shape in named.items() if shape.size}
  with errors.reading(f"The arrays of {path} cannot be read"):
    arrays = {}
    if read:
      nested = tree.unflatten(read)
      arrays = dict(tree.flatten_with_names(
          ocp.PyTreeCheckpointHandler().restore(
              path / "state", args=ocp.args.PyTreeRestore(
                  item=nested, partial_restore=True,
                  restore_args=ocp.checkpoint_utils.construct_restore_args(
                      nested)))))
    # orbax returns the ShapeDtypeStruct itself for arrays it does not find.
    if missing := [name for name in read
                   if not isinstance(arrays.get(name), jax.Array)]:
      raise ValueError(f"{missing[:10]} are missing")
  # Arrays without elements are not stored; their shape is all there is.
  return {
      name: arrays[name] if name in read else jax.make_array_from_callback(
          shape.shape, shape.sharding,
          lambda index, shape=shape: np.zeros(shape.shape, shape.dtype)[index])
      for name, shape in named.items()}


def _find_damage(path, leaves, arrays) -> errors.CheckpointDamaged | None:
  """Returns the error to raise if arrays do not match their digests."""
  found = digests.describe(arrays)
  if wrong := [name for name in arrays if found[name] != leaves[name]]:
    return errors.CheckpointDamaged(
        f"{path} is damaged: the stored data of {wrong[:10]} does not match "
        "its digest.")
  return None


def _check_structure(path, leaves, named):
  """Raises CheckpointMismatch unless both sides have the same leaves."""
  lines = [f"  only stored: {name}" for name in sorted({*leaves} - {*named})]
  lines += [f"  not stored: {name}" for name in sorted({*named} - {*leaves})]
  for name in sorted({*named} & {*leaves}):
    stored = f"{leaves[name][1]}{leaves[name][0]}"
    wanted = f"{named[name].dtype}{list(named[name].shape)}"
    if stored != wanted:
      lines.append(f"  {name}: stored {stored}, wanted {wanted}")
  if len(lines) > 40:
    lines[40:] = [f"  and {len(lines) - 40} more"]
  if lines:
    raise errors.CheckpointMismatch(
        f"{path} was saved with another model or optimizer than the config "
        "describes. Use the config it was saved with, or another workdir.\n"
        + "\n".join(lines))


def _check_shardings(named):
  """Raises ValueError for invalid shardings.

  orbax would raise too, but from inside reading, where it looks like damage.
  """
  for name, shape in named.items():
    if shape.sharding is None:
      raise ValueError(f"The shape of {name} has no sharding.")
    try:
      shape.sharding.shard_shape(tuple(shape.shape))
    except ValueError as error:
      raise ValueError(
          f"{name} cannot be sharded like this: {error}") from error
