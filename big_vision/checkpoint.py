"""Checkpoints: orbax behind a wrapper that trusts nothing.

A step is what its folder proves: committed by orbax, described by our own
`meta` item, every leaf equal to a digest taken before it was written. orbax
alone restores flipped bits silently, takes any folder called "7" for a step and
goes on counting steps whose saving failed; each of these has a test.
"""

from collections.abc import Mapping
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from big_vision import tree

_COMMITTED = "commit_success.txt"


class StorageError(RuntimeError):
  """A checkpoint could not be written or read; names path and cause."""


class CheckpointDamaged(StorageError):
  """What is stored is not what was saved."""


class CheckpointMismatch(StorageError):
  """The checkpoint is whole, but of another structure than asked for."""


class Checkpoints:
  """The checkpoints of one run, `directory`/<step>; a context manager.

  All processes of a run call its methods together.

  Args:
    directory: made if it is not there.
    keep_every: checkpoints at multiples of this many steps stay for ever.
    keep_last: how many of the newest stay.
    read_only: to look at a run that may be alive elsewhere: nothing is made,
      removed or set aside.

  Raises:
    StorageError: the directory cannot be used.
  """

  def __init__(self, directory: str, *, keep_every: int | None = None,
               keep_last: int = 2, read_only: bool = False):
    self._directory = _absolute(directory)
    self._read_only = read_only
    if read_only:
      if os.path.isdir(self._directory):
        self._manager = _open_read_only(self._directory)
      return
    _clean(self._directory)
    managers = ocp.checkpoint_managers
    keep = [managers.LatestN(keep_last)]
    if keep_every:
      keep.append(managers.EveryNSteps(keep_every))
    try:
      self._manager = ocp.CheckpointManager(
          self._directory, item_names=("state", "meta"),
          options=ocp.CheckpointManagerOptions(
              preservation_policy=managers.AnyPreservationPolicy(keep),
              cleanup_tmp_directories=True,
              atomicity_options=ocp.options.AtomicityOptions(
                  mode=ocp.options.AtomicityMode.COMMIT_FILE),
              async_options=ocp.AsyncOptions(timeout_secs=600)))
    except OSError as error:
      raise StorageError(
          f"{self._directory} cannot be used: {error}") from error

  def steps(self) -> list[int]:
    """Steps that are committed and described, ascending; reads names only."""
    return list_steps(self._directory)

  def latest(self) -> int | None:
    """The newest of `steps()`, None if there is none."""
    steps = self.steps()
    return steps[-1] if steps else None

  def save(self, step: int, state, meta: Mapping[str, Any] | None = None):
    """Starts to save; returns when the state may be changed or donated.

    Args:
      step: its name. A step that is stored already stays as it is.
      state: a tree of arrays, sharded or not.
      meta: whatever JSON holds; comes back from `restore`.

    Raises:
      StorageError: this or the previous saving failed.
    """
    step = int(step)
    self.wait()
    if step in self.steps():
      return
    # NumPy leaves would be restored without any check of their shape.
    named = {name: jnp.asarray(leaf)
             for name, leaf in tree.flatten_with_names(state)}
    digests = jax.device_get(_digests(named))
    leaves = {name: [list(leaf.shape), str(leaf.dtype), int(digests[name])]
              for name, leaf in named.items()}
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(tree.unflatten(named)),
        meta=ocp.args.JsonSave(_seal({"leaves": leaves, "user": meta or {}})))
    try:
      saved = self._manager.save(step, args=args)
    except Exception as error:
      self._recover()
      raise StorageError(
          f"Saving step {step} to {self._directory} failed: "
          f"{type(error).__name__}: {error}. Complete are the steps "
          f"{self.steps()}.") from error
    if not saved:
      raise StorageError(
          f"orbax refused to save step {step} to {self._directory}, which has "
          f"the steps {self.steps()}: a newer one is in the way. Move it away.")

  def restore(self, shapes, step: int | None = None
              ) -> tuple[int, Any, dict[str, Any]] | None:
    """The newest checkpoint that is whole, or that of `step`.

    A damaged one is reported, renamed to `<step>.damaged`, and the one before
    it is taken.

    Args:
      shapes: a tree of jax.ShapeDtypeStruct with shardings; on any mesh, not
        only the one it was saved from.
      step: which; None for the newest.

    Returns:
      (step, state, meta); None if nothing was ever saved.

    Raises:
      CheckpointMismatch: names, shapes or dtypes differ from `shapes`.
      CheckpointDamaged: there are checkpoints and none is whole.
      StorageError: `step` is not there.
    """
    self.wait()
    steps = self.steps()
    if step is not None:
      if step not in steps:
        raise StorageError(
            f"{self._directory} has no step {step}; it has {steps}.")
      steps = [step]
    had_some = bool(steps)
    while steps:
      candidate = steps.pop()
      state, meta, problem = self._try_restore(candidate, shapes)
      if problem is None:
        return candidate, state, meta
      where = "left there" if self._read_only else (
          f"set aside as {self._set_aside(candidate)}")
      print(f"The checkpoint {self._directory}/{candidate} is damaged "
            f"({problem}). It was {where}; trying the one before.", flush=True)
    if had_some or (not self._read_only and self._damaged()):
      raise CheckpointDamaged(
          f"{self._directory} has no whole checkpoint, and had some: "
          f"{sorted(os.listdir(self._directory))}. To start from scratch, "
          "remove them.")
    return None

  def wait(self):
    """Waits until all is stored; raises StorageError if it could not be."""
    if self._read_only:
      return
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      self._recover()
      raise StorageError(
          f"Saving to {self._directory} failed: {type(error).__name__}: "
          f"{error}. Complete are the steps {self.steps()}.") from error

  def close(self):
    """`wait`, then gives back threads."""
    self.wait()
    if not self._read_only:
      self._manager.close()

  def __enter__(self):
    return self

  def __exit__(self, exception_type, *unused):
    if exception_type is None:
      self.close()
    else:
      # The exception that is on its way matters more than one of these.
      try:
        self.close()
      except StorageError as error:
        print(error, file=sys.stderr, flush=True)

  def _try_restore(self, step, shapes):
    """(state, meta, None), or (None, None, what is damaged)."""
    problem = state = meta = None
    try:
      stored = _read_meta(self._manager, step)
      leaves, meta = stored["leaves"], stored["user"]
    except Exception as error:  # Whatever reading damaged JSON may raise.
      problem = f"its meta item cannot be read: {_brief(error)}"
    if not _all_agree(problem is None):
      return None, None, problem or "another process could not read it"
    named = dict(tree.flatten_with_names(shapes))
    _check_structure(os.path.join(self._directory, str(step)), leaves, named)
    try:
      restored = self._manager.restore(step, args=ocp.args.Composite(
          state=ocp.args.StandardRestore(tree.unflatten(named))))["state"]
      restored = dict(tree.flatten_with_names(restored))
      digests = jax.device_get(_digests(restored))
      wrong = [name for name in named if int(digests[name]) != leaves[name][2]]
      if wrong:
        problem = f"the stored values of {wrong} are not those that were saved"
      else:
        state = jax.tree.unflatten(
            jax.tree.structure(shapes), [restored[name] for name in named])
    except Exception as error:  # Whatever reading damaged files may raise.
      problem = f"its arrays cannot be read: {_brief(error)}"
    if not _all_agree(problem is None):
      return None, None, problem or "another process could not read it"
    return state, meta, None

  def _set_aside(self, step) -> str:
    """Renames the folder of `step`, which is damaged; returns the new name."""
    path = os.path.join(self._directory, str(step))
    target = _unused(f"{path}.damaged")
    _barrier(f"set aside {step}")
    if jax.process_index() == 0:
      os.rename(path, target)
    _barrier(f"has set aside {step}")
    self._manager.reload()
    return os.path.basename(target)

  def _damaged(self) -> list[str]:
    return [name for name in os.listdir(self._directory) if ".damaged" in name]

  def _recover(self):
    """After a failed saving: no half a step stays, none is believed."""
    if jax.process_index() == 0:
      for name in os.listdir(self._directory):
        if ".orbax-checkpoint-tmp" in name or (
            name.isdigit() and int(name) not in self.steps()):
          shutil.rmtree(os.path.join(self._directory, name),
                        ignore_errors=True)
    self._manager.reload()


class Best:
  """Keeps the checkpoint with the best value of a metric.

  Args:
    directory: its own folder.
    metric: the name of an evaluator's metric; None to keep nothing.
    mode: "max" or "min".

  Raises:
    ValueError: another mode.
  """

  def __init__(self, directory: str, metric: str | None = None,
               mode: str = "max"):
    if mode not in ("max", "min"):
      raise ValueError(f"keep_best.mode is {mode!r}; use 'max' or 'min'.")
    self._metric, self._sign = metric, 1 if mode == "max" else -1
    self._checkpoints = None
    self._best = -np.inf
    if metric is not None:
      self._checkpoints = Checkpoints(directory, keep_last=1)
      if (step := self._checkpoints.latest()) is not None:
        self._best = self._sign * read_meta(directory, step)["best"]

  def update(self, step: int, state, values: Mapping[str, float]):
    """Saves `state` if `values` has the metric, better than before."""
    if self._metric not in values:
      return
    if self._sign * values[self._metric] > self._best:
      self._best = self._sign * values[self._metric]
      self._checkpoints.save(step, state, {"best": values[self._metric]})

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    if self._checkpoints is not None:
      self._checkpoints.__exit__(*exception)


def list_steps(directory: str) -> list[int]:
  """Steps in `directory` that are committed and described, ascending."""
  if not os.path.isdir(directory):
    return []
  return sorted(
      int(name) for name in os.listdir(directory) if re.fullmatch(r"\d+", name)
      and all(os.path.exists(os.path.join(directory, name, *item, _COMMITTED))
              for item in ((), ("state",), ("meta",))))


def _clean(directory: str):
  """Moves folders out of the way that only look like steps.

  orbax takes any folder with a number for a step, and then refuses to save the
  steps before it. What was never committed (a killed saving) is removed; what
  was, and lacks something, is set aside.
  """
  if jax.process_index() == 0 and os.path.isdir(directory):
    steps = list_steps(directory)
    for name in os.listdir(directory):
      path = os.path.join(directory, name)
      if not re.fullmatch(r"\d+", name) or int(name) in steps:
        continue
      if os.path.exists(os.path.join(path, _COMMITTED)):
        os.rename(path, _unused(f"{path}.junk"))
      else:
        shutil.rmtree(path)
  _barrier("cleaned")


def _unused(path: str) -> str:
  """`path`, or the first of `path`.1, `path`.2, ... that is not there."""
  names = itertools.chain([path], (f"{path}.{i}" for i in itertools.count(1)))
  return next(name for name in names if not os.path.exists(name))


def _barrier(name: str):
  """Waits for all processes."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"checkpoint {name}")


def read_meta(directory: str, step: int) -> dict[str, Any]:
  """What `save` was given as `meta`."""
  with _open_read_only(_absolute(directory)) as manager:
    return _read_meta(manager, step)["user"]


def read_arrays(
    directory: str, step: int | None = None, prefix: str = ""
) -> dict[str, np.ndarray]:
  """The arrays of a checkpoint whose names start with `prefix`, by name.

  For warm starts and for looking: needs no mesh and no structure.

  Args:
    directory: of `Checkpoints`.
    step: which; None for the newest.
    prefix: for instance "params/"; others are not read.

  Raises:
    StorageError: there is no such checkpoint.
    CheckpointDamaged: the values are not those that were saved.
  """
  directory = _absolute(directory)
  steps = list_steps(directory)
  step = steps[-1] if step is None and steps else step
  if step not in steps:
    raise StorageError(f"{directory} has no step {step}; it has {steps}.")
  where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  with _open_read_only(directory, item_handlers={
      "state": ocp.PyTreeCheckpointHandler(),
      "meta": ocp.JsonCheckpointHandler()}) as manager:
    leaves = _read_meta(manager, step)["leaves"]
    wanted = {
        name: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype), sharding=where)
        for name, (shape, dtype, _) in leaves.items() if name.startswith(prefix)}
    nested = tree.unflatten(wanted)
    restored = manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
            item=nested, partial_restore=True,
            restore_args=ocp.checkpoint_utils.construct_restore_args(nested))
    ))["state"]
  restored = dict(tree.flatten_with_names(restored))
  digests = jax.device_get(_digests(restored))
  wrong = [name for name in wanted if int(digests[name]) != leaves[name][2]]
  if wrong:
    raise CheckpointDamaged(
        f"{directory}/{step}: the stored values of {wrong} are not those that "
        "were saved.")
  return {name: np.asarray(leaf) for name, leaf in restored.items()}


@jax.jit
def _digests(named):
  """uint32 per leaf: any flipped bit or swapped pair of values changes it."""
  return {name: _digest(leaf) for name, leaf in named.items()}


def _digest(x):
  """A sum of hashes of (value, position), so it does not see shards.

  The hash is the finalizer of MurmurHash3 (Appleby, public domain), which is
  one-to-one: two values of one position never collide.
  """
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  bits = jnp.dtype(x.dtype).itemsize * 8
  words = jax.lax.bitcast_convert_type(x, {
      8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint32}[bits])
  position = jnp.zeros((), jnp.uint32)
  for dim, size in enumerate(words.shape):
    position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(
        jnp.uint32, words.shape, dim)
  h = words.astype(jnp.uint32) ^ _mix(position + jnp.uint32(0x9E3779B9))
  return jnp.sum(_mix(h), dtype=jnp.uint32)


def _mix(h):
  h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
  return h ^ (h >> 16)


def _seal(content: Mapping[str, Any]) -> dict[str, str]:
  """`content` as text and its checksum: a flipped bit may still be JSON."""
  text = json.dumps(content)
  return {"text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _read_meta(manager, step) -> dict[str, Any]:
  """What `_seal` was given; ValueError if it is not that any more."""
  sealed = manager.restore(
      step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
  if _seal(content := json.loads(sealed["text"]))["sha256"] != sealed["sha256"]:
    raise ValueError("its checksum is wrong")
  return content


def _check_structure(path, leaves, named):
  """Raises CheckpointMismatch unless both have the same leaves."""
  lines = [f"  only stored: {name}" for name in sorted(set(leaves) - set(named))]
  lines += [f"  not stored: {name}" for name in sorted(set(named) - set(leaves))]
  for name in sorted(set(named) & set(leaves)):
    stored = tuple(leaves[name][0]), leaves[name][1]
    wanted = tuple(named[name].shape), str(named[name].dtype)
    if stored != wanted:
      lines.append(f"  {name}: stored {stored[1]}{list(stored[0])}, wanted "
                   f"{wanted[1]}{list(wanted[0])}")
  if lines:
    raise CheckpointMismatch(
        f"{path} is of another model or optimizer than the config:\n" +
        "\n".join(lines[:40]))


def _all_agree(ok: bool) -> bool:
  """Whether `ok` holds in all processes."""
  if jax.process_count() == 1:
    return ok
  return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))


def _open_read_only(directory, **kw):
  """An orbax manager that leaves the directory alone."""
  return ocp.CheckpointManager(
      directory, item_names=("state", "meta"),
      options=ocp.CheckpointManagerOptions(
          read_only=True, atomicity_options=ocp.options.AtomicityOptions(
              mode=ocp.options.AtomicityMode.COMMIT_FILE)), **kw)


def _absolute(directory: str) -> str:
  """orbax wants absolute paths; those with a scheme are."""
  return directory if "://" in directory else os.path.abspath(directory)


def _brief(error: Exception) -> str:
  """The first words of an error that may be pages long."""
  return f"{type(error).__name__}: {str(error).strip()[:300]}"
