"""Checkpoints: orbax behind a wrapper that trusts nothing.

A step is what its folder proves: committed by orbax, described by our own
`meta` item, every leaf equal to a digest taken before it was written. orbax
alone restores flipped bits silently, takes any folder called "7" for a step,
goes on counting steps whose saving failed, and cleans up by removing whatever
is not a committed checkpoint; each of these has a test.

Paths may be of any file system that `etils.epath` knows, `gs://` for one.
"""

from collections.abc import Callable, Mapping
import contextlib
import hashlib
import itertools
import json
import os
import re
import sys
import time
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from big_vision import tree

_COMMITTED = "commit_success.txt"
_META = "meta/metadata"
# Names the step that is being saved: its folder, if it was never committed, is
# ours to remove. Other folders without a commit may be somebody's copy.
_SAVING = "saving.txt"
# Errors that say nothing of what is stored: memory, permissions, network.
_PASSING_ERRORS = (MemoryError, PermissionError, TimeoutError, ImportError)
_PASSING_CODES = re.compile(  # With which errors of XLA and tensorstore begin.
    "RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|"
    "UNAUTHENTICATED|CANCELLED|ABORTED")


class StorageError(RuntimeError):
  """A checkpoint could not be written or read; names path and cause."""


class CheckpointDamaged(StorageError):
  """What is stored is not what was saved."""


class CheckpointMismatch(StorageError):
  """The checkpoint is whole, but of another structure than asked for."""


class Checkpoints:
  """The checkpoints of one run, `directory`/<step>; a context manager.

  All processes of a run call its methods together; what the first of them sees
  of the directory counts.

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
    self._keep_every, self._keep_last = keep_every, keep_last
    self._read_only = read_only
    self._saving = None  # The step whose saving was started, until waited for.
    self._manager = None
    if read_only:
      return
    try:
      if jax.process_index() == 0:
        self._clean()
      _barrier("cleaned")
      self._open()
    except OSError as error:
      raise StorageError(
          f"{self._directory} cannot be used: {error}") from error

  def _open(self):
    """Makes the orbax manager, which is only used to save."""
    managers = ocp.checkpoint_managers
    keep = [managers.LatestN(self._keep_last)]
    if self._keep_every:
      keep.append(managers.EveryNSteps(self._keep_every))
    self._manager = ocp.CheckpointManager(
        self._directory, options=ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(keep),
            save_root_metadata=False,
            # It would remove every folder that is not a committed checkpoint,
            # copies and damaged ones too. See `_clean`.
            cleanup_tmp_directories=False,
            # A step is one when its commit marker is there, also for orbax.
            atomicity_options=ocp.options.AtomicityOptions(
                mode=ocp.options.AtomicityMode.COMMIT_FILE),
            # In the background, it goes on after a saving that failed.
            async_options=ocp.AsyncOptions(
                timeout_secs=600, create_directories_asynchronously=False)))

  def steps(self) -> list[int]:
    """Steps that are committed and described, ascending; reads names only."""
    return _from_first(lambda: list_steps(self._directory))

  def latest(self) -> int | None:
    """The newest of `steps()`, None if there is none."""
    steps = self.steps()
    return steps[-1] if steps else None

  def save(self, step: int, state, meta: Mapping[str, Any] | None = None, *,
           after_newer: bool = False):
    """Starts to save; returns when the state may be changed or donated.

    Args:
      step: its name; newer than all others.
      state: a tree of arrays, sharded or not. NumPy arrays and numbers come
        back as jax arrays.
      meta: whatever JSON holds; comes back from `restore`.
      after_newer: it need not be newer, and one that is there stays as it is.

    Raises:
      StorageError: this or the previous saving failed; there is a newer step,
        or this one with other values.
      TypeError, ValueError: the state cannot be stored, whatever the disk.
    """
    if self._read_only:
      raise StorageError(f"{self._directory} was opened to be read only.")
    step = int(step)
    self.wait()
    named = _name_arrays(state)
    # orbax refuses arrays of no elements; what is known of them says all.
    stored = {name: leaf for name, leaf in named.items() if leaf.size}
    if not stored:
      raise ValueError(f"There is nothing to store among {sorted(named)}.")
    leaves = _describe(named)
    content = _seal({"leaves": leaves, "user": dict(meta or {})})
    if _from_first(lambda: self._prepare(step, leaves, after_newer)):
      return
    self._saving = step
    try:
      if self._manager is None:
        self._open()
      # Its list may name what `_prepare` or somebody else moved away.
      self._manager.reload()
      # Not forced, it answers False to some steps and saves nothing.
      saved = self._manager.save(step, force=True, args=ocp.args.Composite(
          state=ocp.args.StandardSave(tree.unflatten(stored)),
          meta=ocp.args.JsonSave(content)))
      if not saved:
        raise RuntimeError("orbax refused")
    except Exception as error:
      if self._manager is not None:
        self._wait_alone()
      self._saving = self._manager = None
      raise StorageError(self._failure(step, error)) from error

  def restore(self, shapes, step: int | None = None
              ) -> tuple[int, Any, dict[str, Any]] | None:
    """The newest checkpoint that is whole, or that of `step`.

    If the newest is damaged, the one before it is taken. Only when that one
    was read, which shows that reading works, the damaged are renamed to
    `<step>.damaged`.

    Args:
      shapes: a tree of jax.ShapeDtypeStruct with shardings; on any mesh, not
        only the one it was saved from.
      step: which; None for the newest.

    Returns:
      (step, state, meta); None if nothing was ever saved.

    Raises:
      CheckpointMismatch: names, shapes or dtypes differ from `shapes`.
      CheckpointDamaged: there are checkpoints and none is whole, or `step` is
        not. Nothing was renamed.
      StorageError: `step` is not there, or reading failed for a reason that
        has nothing to do with what is stored.
    """
    self.wait()
    steps = self.steps()
    if step is not None:
      if step not in steps:
        raise StorageError(
            f"{self._directory} has no step {step}; it has {steps}.")
      steps = [step]
    problems = {}
    for candidate in reversed(steps):
      try:
        state, meta = _load(self._directory / str(candidate), shapes)
      except CheckpointDamaged as error:
        problems[candidate] = error
        continue
      for damaged, error in problems.items():
        where = "" if self._read_only else (
            f" It is set aside as {self._set_aside(damaged)}.")
        _say(f"{error}{where} Taking step {candidate}.")
      return candidate, state, meta
    if step is not None:
      raise problems[step]
    names = _from_first(lambda: _names(self._directory))
    remains = [name for name in names if _is_remains(name)]
    if problems or remains:
      raise CheckpointDamaged("\n".join([
          f"{self._directory} has no whole checkpoint, and had some: "
          f"{sorted(problems) + remains}. To start from scratch, remove them.",
          *map(str, problems.values())]))
    return None

  def wait(self):
    """Waits until all is stored; raises StorageError if it could not be."""
    if self._saving is None:
      return
    step, error = self._saving, self._wait_alone()
    if _maximum(error is not None):
      error = error or RuntimeError("another process failed")
      self._manager = None
      raise StorageError(self._failure(step, error)) from error
    if jax.process_index() == 0:
      (self._directory / _SAVING).unlink(missing_ok=True)

  def close(self):
    """`wait`, then gives back threads."""
    try:
      self.wait()
    finally:
      if self._manager is not None:
        self._manager.close()

  def __enter__(self):
    return self

  def __exit__(self, exception_type, *unused):
    if exception_type is None:
      self.close()
    # The exception that is on its way matters more than one of these, and the
    # other processes may not have it.
    elif self._manager is not None:
      step = self._saving
      if (error := self._wait_alone()) is None:
        self._manager.close()
      else:
        print(self._failure(step, error), file=sys.stderr, flush=True)

  def _wait_alone(self) -> Exception | None:
    """Waits until this process has stored its part; what went wrong."""
    self._saving = None
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      # More of the same stays in it, and would surface at the next saving.
      try:
        self._manager.close()
      except Exception:
        pass
      return error

  def _prepare(self, step, leaves, after_newer) -> bool:
    """Makes room for `step`; whether it is stored already."""
    path, steps = self._directory / str(step), list_steps(self._directory)
    if step in steps:
      try:
        if after_newer or _read_meta(path)["leaves"] == leaves:
          return True
      except CheckpointDamaged:
        pass
      else:
        raise StorageError(
            f"{path} is there and has other values. Move it away, or continue "
            "from it.")
    elif steps and step < steps[-1] and not after_newer:
      raise StorageError(
          f"Step {step} cannot be saved to {self._directory}, which has the "
          f"steps {steps}: the newest would not be the one saved last. Move "
          "the newer away.")
    try:
      self._remove_half()
      if path.exists():
        _say(f"{path} is no whole checkpoint; it is set aside as "
             f"{_move_aside(path)}.")
      (self._directory / _SAVING).write_text(str(step))
    except OSError as error:
      raise StorageError(self._failure(step, error)) from error
    return False

  def _failure(self, step, error) -> str:
    """Removes the half of a step whose saving failed; says what happened."""
    # Other threads of orbax may still write. What comes after the last look
    # is no step, and goes before the next saving.
    for _ in range(5 if jax.process_index() == 0 else 0):
      try:
        self._remove_half()
      except OSError:
        pass  # It is not empty any more.
      time.sleep(.1)
    return (
        f"Saving step {step} to {self._directory / str(step)} failed: "
        f"{_brief(error)}. Complete are the steps "
        f"{list_steps(self._directory)}. When there is room and permission to "
        "write, the same command continues from these.")

  def _set_aside(self, step) -> str:
    """Renames the folder of `step`, which is damaged; returns the new name."""
    return _from_first(lambda: _move_aside(self._directory / str(step)))

  def _remove_half(self):
    """Removes what a killed or failed saving left of its step."""
    note = self._directory / _SAVING
    if note.exists() and (name := note.read_text()).isdigit() and (
        int(name) not in list_steps(self._directory)):
      (self._directory / name).rmtree(missing_ok=True)

  def _clean(self):
    """Moves out of the way what only looks like a step.

    What this class left of one, killed while it saved or removed, goes. Others
    are set aside: they may be the only copy.
    """
    self._directory.mkdir(parents=True, exist_ok=True)
    self._remove_half()
    (self._directory / _SAVING).unlink(missing_ok=True)
    steps = list_steps(self._directory)
    for name in _names(self._directory):
      path = self._directory / name
      if not re.fullmatch(r"\d+", name) or name in map(str, steps):
        continue
      was_old = (sum(step > int(name) for step in steps) >= self._keep_last and
                 not (self._keep_every and int(name) % self._keep_every == 0))
      if was_old or not _has_files(path):
        path.rmtree()
      else:
        _say(f"{path} is no whole checkpoint; it is set aside as "
             f"{_move_aside(path)}.")


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
      for step in self._checkpoints.steps():
        self._best = max(
            self._best, self._sign * read_meta(directory, step)["best"])

  def update(self, step: int, state, values: Mapping[str, float]):
    """Saves `state` if `values` has the metric, better than before."""
    if self._metric not in values:
      return
    if self._sign * values[self._metric] > self._best:
      self._best = self._sign * values[self._metric]
      # A continued run repeats steps, and may find the best among those.
      self._checkpoints.save(
          step, state, {"best": values[self._metric]}, after_newer=True)

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    if self._checkpoints is not None:
      self._checkpoints.__exit__(*exception)


def list_steps(directory: str) -> list[int]:
  """Steps in `directory` that are committed and described, ascending."""
  directory = _absolute(directory)
  return sorted(
      int(name) for name in _names(directory)
      if re.fullmatch(r"0|[1-9]\d*", name) and all(
          (directory / name / item).exists()
          for item in (_COMMITTED, _META, "state")))


def read_meta(directory: str, step: int | None = None) -> dict[str, Any]:
  """What `save` was given as `meta`.

  Args:
    directory: of `Checkpoints`, or that of one step.
    step: which; None for the newest.

  Raises:
    StorageError: there is no such checkpoint.
    CheckpointDamaged: it cannot be read.
  """
  return _read_meta(_find(directory, step))["user"]


def read_arrays(
    directory: str, step: int | None = None, prefix: str = ""
) -> dict[str, np.ndarray]:
  """The arrays of a checkpoint whose names start with `prefix`, by name.

  For warm starts and for looking: needs no mesh and no structure.

  Args:
    directory: of `Checkpoints`, or that of one step.
    step: which; None for the newest.
    prefix: for instance "params/"; others are not read.

  Raises:
    StorageError: there is no such checkpoint.
    CheckpointDamaged: the values are not those that were saved.
  """
  path = _find(directory, step)
  leaves = _read_meta(path)["leaves"]
  device = jax.local_devices()[0]
  where = jax.sharding.SingleDeviceSharding(device)
  # In the place of the mesh of a run, if this is called while it is built.
  with jax.set_mesh(jax.sharding.Mesh([device], "alone")):
    arrays = _read_arrays(path, {
        name: jax.ShapeDtypeStruct(
            tuple(shape), jnp.dtype(dtype), sharding=where)
        for name, (shape, dtype, _) in leaves.items()
        if name.startswith(prefix)})
    if (error := _find_damage(path, leaves, arrays)) is not None:
      raise error
  return {name: np.asarray(leaf) for name, leaf in arrays.items()}


def restore_partial(
    directory: str, shapes, prefix: str = "params", step: int | None = None):
  """One subtree of a checkpoint, nothing else of it is read.

  To start from another run. All processes call it together; nothing is set
  aside, and no other step is tried.

  Args:
    directory: of `Checkpoints`, or that of one step.
    shapes: what is stored below `prefix`, a tree of jax.ShapeDtypeStruct with
      shardings.
    prefix: name of the subtree, "params" or "ema/params"; "" is the state.
    step: which; None for the newest.

  Returns:
    A tree like `shapes`, of arrays in these shardings.

  Raises:
    StorageError: there is no such checkpoint.
    CheckpointMismatch: names, shapes or dtypes differ from `shapes`.
    CheckpointDamaged: the values are not those that were saved.
  """
  path = epath.Path(_from_first(lambda: str(_find(directory, step))))
  return _load(path, shapes, prefix)[0]


def _find(directory, step) -> epath.Path:
  """The folder of a step; raises StorageError if there is none."""
  directory = _absolute(directory)
  if step is None and directory.name.isdigit() and (
      directory / _COMMITTED).exists():
    directory, step = directory.parent, int(directory.name)
  steps = list_steps(directory)
  step = steps[-1] if step is None and steps else step
  if step not in steps:
    raise StorageError(
        f"{directory} has no " + ("checkpoint" if step is None else
                                  f"step {step}; it has {steps}") + ".")
  return directory / str(step)


def _load(path, shapes, prefix=""):
  """(what is stored below `prefix`, meta) of one step, or all processes raise.

  Raises:
    CheckpointMismatch, CheckpointDamaged: see `Checkpoints.restore`.
    StorageError: the reason for which it cannot be read may pass.
  """
  stored = _from_first(lambda: _read_meta(path))
  named = {"/".join(filter(None, (prefix, name))): shape
           for name, shape in tree.flatten_with_names(shapes)}
  leaves = {name: leaf for name, leaf in stored["leaves"].items()
            if f"{name}/".startswith(f"{prefix}/" if prefix else "")}
  _check_structure(path, leaves, named)
  _check_shardings(named)
  restored = error = None
  try:
    restored = _read_arrays(path, named)
  except StorageError as e:
    error = e
  _raise_together(path, error)
  # This is together too: the devices add up what each has of an array.
  _raise_together(path, _find_damage(path, leaves, restored))
  return (jax.tree.unflatten(jax.tree.structure(shapes), restored.values()),
          stored["user"])


def _raise_together(path, error: StorageError | None):
  """Raises on all processes if there is an error on one.

  What may pass counts more than damage: all may have seen the same.
  """
  kinds = [None, CheckpointDamaged, StorageError]
  own = kinds.index(error and type(error))
  worst = _maximum(own)
  if error is not None and jax.process_index() > 0:
    print(error, file=sys.stderr, flush=True)
  if worst > own:
    error = kinds[worst](
        f"{path} could not be read by another process, which printed why.")
  if error is not None:
    raise error


def _read_meta(path) -> dict[str, Any]:
  """The meta item of a step: "leaves" as `_describe` made them, and "user"."""
  file = path / _META
  with _reading(f"{file}, which says what is stored, cannot be read"):
    sealed = json.loads(file.read_text())
    if _checksum(sealed["text"]) != sealed["sha256"]:
      raise ValueError("its checksum is wrong")
    return json.loads(sealed["text"])


def _read_arrays(path, named) -> dict[str, jax.Array]:
  """Arrays of a step by name, in the shapes and shardings of `named`.

  Talks to no other process: one that fails must not keep others waiting. The
  caller has to check the digests.
  """
  read = {name: shape for name, shape in named.items() if shape.size}
  with _reading(f"The arrays of {path} cannot be read"):
    arrays = {}
    if read:
      nested = tree.unflatten(read)
      arrays = dict(tree.flatten_with_names(
          ocp.PyTreeCheckpointHandler().restore(
              path / "state", args=ocp.args.PyTreeRestore(
                  item=nested, partial_restore=True,
                  restore_args=ocp.checkpoint_utils.construct_restore_args(
                      nested)))))
    # What orbax does not find comes back as it was asked for.
    if missing := [name for name in read
                   if not isinstance(arrays.get(name), jax.Array)]:
      raise ValueError(f"{missing[:10]} are missing")
  return {
      name: arrays[name] if name in read else jax.make_array_from_callback(
          shape.shape, shape.sharding,
          lambda index, shape=shape: np.zeros(shape.shape, shape.dtype)[index])
      for name, shape in named.items()}


def _find_damage(path, leaves, arrays) -> CheckpointDamaged | None:
  """The error to raise if values are not those that were saved."""
  found = _describe(arrays)
  if wrong := [name for name in arrays if found[name] != leaves[name]]:
    return CheckpointDamaged(
        f"{path} is damaged: the stored values of {wrong[:10]} are not those "
        "that were saved.")
  return None


@contextlib.contextmanager
def _reading(what: str):
  """Turns whatever reading raises into CheckpointDamaged or StorageError."""
  try:
    yield
  except Exception as error:
    if isinstance(error, _PASSING_ERRORS) or _PASSING_CODES.match(str(error)):
      raise StorageError(
          f"{what} now: {_brief(error)}. The checkpoint may be whole; it stays "
          "where it is.") from error
    raise CheckpointDamaged(f"{what}: {_brief(error)}.") from error


def _check_structure(path, leaves, named):
  """Raises CheckpointMismatch unless both have the same leaves."""
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
    raise CheckpointMismatch(
        f"{path} is of another model or optimizer than the config. Use the "
        "config it was saved with, or another workdir.\n" + "\n".join(lines))


def _check_shardings(named):
  """Raises ValueError where orbax would, which must not look like damage."""
  for name, shape in named.items():
    if shape.sharding is None:
      raise ValueError(f"The shape of {name} comes without a sharding.")
    try:
      shape.sharding.shard_shape(tuple(shape.shape))
    except ValueError as error:
      raise ValueError(f"{name} cannot be sharded so: {error}") from error


def _name_arrays(state) -> dict[str, jax.Array]:
  """The leaves of `state` by name, as jax arrays on all processes."""
  flat = tree.flatten_with_names(state)
  named = {name: _as_array(name, leaf) for name, leaf in flat}
  # orbax joins names by dots, so these too must tell leaves apart.
  if len({name.replace("/", ".") for name in named}) < len(flat):
    names = sorted(name.replace("/", ".") for name, _ in flat)
    twice = sorted({a for a, b in zip(names, names[1:]) if a == b})
    raise ValueError(f"Several leaves of the state are called {twice}.")
  return named


def _as_array(name, leaf) -> jax.Array:
  """`leaf` as it is stored.

  NumPy leaves would be restored without any check of their shape.
  """
  several = jax.process_count() > 1
  if isinstance(leaf, jax.Array):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
      raise TypeError(f"{name} has the dtype {leaf.dtype}, which cannot be "
                      "stored; store jax.random.key_data() of it.")
    if not (several and leaf.is_fully_addressable):
      return leaf
  given = np.asarray(leaf)
  try:
    array = jnp.asarray(given)
  except TypeError as error:
    raise TypeError(f"{name} cannot be stored: {error}") from error
  if given.dtype.kind in "iu" and np.any(np.asarray(array) != given):
    raise ValueError(f"{name} does not fit into {array.dtype}: {leaf!r}.")
  if not several:
    return array
  # Each process has it; orbax wants to know that it is the same.
  everywhere = jax.sharding.NamedSharding(
      jax.sharding.Mesh(np.asarray(jax.devices()), ("all",)),
      jax.sharding.PartitionSpec())
  return jax.make_array_from_callback(
      array.shape, everywhere, lambda index: np.asarray(array)[index])


def _describe(named) -> dict[str, list]:
  """{name: [shape, dtype, digest]}.

  One leaf after the other: on CPU, programs in flight together overtake each
  other, and devices or processes would wait for each other in different ones.
  """
  return {name: [list(x.shape), str(x.dtype), int(_digest(x))]
          for name, x in named.items()}


@jax.jit  # Of one leaf, as many share a shape: less to compile.
def _digest(x):
  """uint32: any flipped bit or swapped pair of values changes it.

  A sum of hashes of (value, position), so it does not see shards. The hash is
  the finalizer of MurmurHash3 (Appleby, public domain), which is one-to-one:
  two values of one position never collide.
  """
  if jnp.iscomplexobj(x):
    x = jnp.stack([x.real, x.imag], -1)
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  # 64 bits become two words, along a new last dimension.
  words = jax.lax.bitcast_convert_type(x, {
      1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32
  }[jnp.dtype(x.dtype).itemsize])
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
  return {"text": text, "sha256": _checksum(text)}


def _checksum(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def _from_first(fn: Callable[[], Any]):
  """`fn()` of the first process, on all of them; JSON.

  A StorageError or OSError of it is raised by all, as a StorageError.
  """
  answer = problem = None
  if jax.process_index() == 0:
    try:
      answer = fn()
    except (StorageError, OSError) as error:  # The others wait for an answer.
      if jax.process_count() == 1 and isinstance(error, StorageError):
        raise
      problem = [isinstance(error, CheckpointDamaged), str(error)]
  if jax.process_count() > 1:
    sent = json.dumps([answer, problem]).encode()
    # Padded, so that few sizes are compiled.
    size = int(multihost_utils.broadcast_one_to_all(
        np.int32(-(-len(sent) // 4096) * 4096)))
    received = multihost_utils.broadcast_one_to_all(
        np.frombuffer(sent[:size].ljust(size), np.uint8))
    answer, problem = json.loads(np.asarray(received).tobytes())
  if problem:
    raise (CheckpointDamaged if problem[0] else StorageError)(problem[1])
  return answer


def _maximum(value: int) -> int:
  """The largest `value` of all processes."""
  if jax.process_count() == 1:
    return value
  return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def _barrier(name: str):
  """Waits for all processes."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"checkpoint {name}")


def _say(message: str):
  """For people; once."""
  if jax.process_index() == 0:
    print(message, flush=True)


def _names(directory) -> list[str]:
  """What is in `directory`, sorted; nothing if it is not there."""
  if not directory.is_dir():
    return []
  return sorted(path.name for path in directory.iterdir())


def _has_files(path) -> bool:
  return not path.is_dir() or any(map(_has_files, path.iterdir()))


def _is_remains(name: str) -> bool:
  return bool(re.fullmatch(r"\d+\.damaged(\.\d+)?", name))


def _move_aside(path) -> str:
  """Renames to `path`.damaged or, if there is one, .1, .2; the new name."""
  names = itertools.chain([""], (f".{i}" for i in itertools.count(1)))
  target = next(target for name in names
                if not (target := epath.Path(f"{path}.damaged{name}")).exists())
  path.rename(target)
  return target.name


def _absolute(directory) -> epath.Path:
  """orbax wants absolute paths; those with a scheme are."""
  directory = os.fspath(directory)
  return epath.Path(
      directory if "://" in directory else os.path.abspath(directory))


def _brief(error: Exception) -> str:
  """What happened, of an error that may be pages long."""
  text = str(error).split("[tensorstore_spec")[0].strip()
  if len(text) > 600:  # Causes come last.
    text = f"{text[:300]} ... {text[-300:]}"
  return f"{type(error).__name__}: {text}"
