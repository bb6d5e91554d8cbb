"""Saves the state of a run in the background, and restores it."""

from collections.abc import Mapping
import sys
import time
from typing import Any

import jax
import orbax.checkpoint as ocp

from big_vision import files
from big_vision import tree
from big_vision.run import console
from big_vision.run.checkpoints import agreement
from big_vision.run.checkpoints import digests
from big_vision.run.checkpoints import errors
from big_vision.run.checkpoints import folders
from big_vision.run.checkpoints import reading


class Checkpoints:
  """The checkpoints of one run, `directory`/<step>; a context manager.

  All processes of a run call its methods together. Decisions depend on what the
  first process sees in the directory.

  Args:
    directory: Directory of the checkpoints; made if it does not exist.
    keep_every: Period in steps of the checkpoints that are kept forever, or
      None.
    keep_last: Number of newest checkpoints to keep.
    read_only: Whether to leave the directory as it is, because its run may be
      alive elsewhere: nothing is made, removed or renamed.

  Raises:
    StorageError: The directory cannot be used.
  """

  def __init__(self, directory: str, *, keep_every: int | None = None,
               keep_last: int = 2, read_only: bool = False):
    self._directory = files.as_path(directory)
    self._keep_every, self._keep_last = keep_every, keep_last
    self._read_only = read_only
    self._saving = None  # The step whose save was started and not awaited.
    self._manager = None
    if read_only:
      return
    try:
      if jax.process_index() == 0:
        folders.clean(
            self._directory, keep_last=keep_last, keep_every=keep_every)
      agreement.barrier("cleaned")
      self._open()
    except OSError as error:
      raise errors.StorageError(
          f"{self._directory} cannot be used: {error}") from error

  def _open(self):
    """Makes the orbax manager, which is used for saving only."""
    managers = ocp.checkpoint_managers
    keep = [managers.LatestN(self._keep_last)]
    if self._keep_every:
      keep.append(managers.EveryNSteps(self._keep_every))
    self._manager = ocp.CheckpointManager(
        self._directory, options=ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(keep),
            save_root_metadata=False,
            # orbax would remove every folder that is not a committed
            # checkpoint, including copies and damaged ones that
            # `folders.clean` keeps.
            cleanup_tmp_directories=False,
            # A file marks a folder as committed, also on file systems that
            # cannot rename folders atomically.
            atomicity_options=ocp.options.AtomicityOptions(
                mode=ocp.options.AtomicityMode.COMMIT_FILE),
            async_options=ocp.AsyncOptions(
                timeout_secs=600,
                # When directories are created in the background, orbax
                # continues after a save that failed.
                create_directories_asynchronously=False,
                # Called on the first process when all of them have written
                # their files, before older steps are removed.
                post_finalization_callback=lambda: folders.commit(
                    self._directory / str(self._saving)))))

  def steps(self) -> list[int]:
    """Lists the complete steps in ascending order, by their names only."""
    return agreement.from_first(lambda: folders.list_steps(self._directory))

  def latest(self) -> int | None:
    """Returns the newest of `steps()`, or None if there are none."""
    steps = self.steps()
    return steps[-1] if steps else None

  def save(self, step: int, state, meta: Mapping[str, Any] | None = None, *,
           after_newer: bool = False):
    """Starts to save; returns as soon as the state may be changed or donated.

    Args:
      step: Name of the checkpoint; must be newer than all others.
      state: Tree of arrays, sharded or not. NumPy arrays and numbers are
        restored as jax arrays.
      meta: Anything that JSON can hold; `restore` returns it.
      after_newer: Whether `step` may be older than existing checkpoints; if
        `step` itself exists, it stays unchanged.

    Raises:
      StorageError: This or the previous save failed, a newer step exists, or
        this step exists with other values.
      TypeError, ValueError: The state has something that no checkpoint can
        store.
    """
    if self._read_only:
      raise errors.StorageError(
          f"{self._directory} was opened as read only.")
    step = int(step)
    self.wait()
    named = digests.name_arrays(state)
    # orbax refuses arrays without elements; their description suffices.
    stored = {name: leaf for name, leaf in named.items() if leaf.size}
    if not stored:
      raise ValueError(f"There is nothing to store among {sorted(named)}.")
    leaves = digests.describe(named)
    content = digests.seal({"leaves": leaves, "user": dict(meta or {})})
    if agreement.from_first(lambda: self._prepare(step, leaves, after_newer)):
      return
    self._saving = step
    try:
      if self._manager is None:
        self._open()
      # orbax caches the steps and may list one that was moved away.
      self._manager.reload()
      # Without `force`, orbax silently skips some steps and returns False.
      saved = self._manager.save(step, force=True, args=ocp.args.Composite(
          state=ocp.args.StandardSave(tree.unflatten(stored)),
          meta=ocp.args.JsonSave(content)))
      if not saved:
        raise RuntimeError("orbax refused")
    except Exception as error:
      if self._manager is not None:
        self._wait_alone()
      self._saving = self._manager = None
      raise errors.StorageError(self._clean_up_failure(step, error)) from error

  def restore(self, shapes, step: int | None = None
              ) -> tuple[int, Any, dict[str, Any]] | None:
    """Restores the newest intact checkpoint, or that of `step`.

    If the newest checkpoint is damaged, the one before it is tried, and so on.
    Damaged ones are renamed to `<step>.damaged`, but only after an older one
    was read successfully: that shows that reading works at all.

    Args:
      shapes: Tree of jax.ShapeDtypeStruct with shardings, on any mesh.
      step: Step to restore; None for the newest.

    Returns:
      (step, state, meta), or None if nothing was ever saved.

    Raises:
      CheckpointMismatch: Names, shapes or dtypes differ from `shapes`.
      CheckpointDamaged: There are checkpoints but none is intact, or `step` is
        damaged. Nothing was renamed.
      StorageError: `step` does not exist, or reading failed for a reason that
        has nothing to do with the stored data.
    """
    self.wait()
    steps = self.steps()
    if step is not None:
      if step not in steps:
        raise errors.StorageError(
            f"{self._directory} has no step {step}; it has {steps}.")
      steps = [step]
    damaged = {}
    for candidate in reversed(steps):
      try:
        state, meta = reading.load(self._directory / str(candidate), shapes)
      except errors.CheckpointDamaged as error:
        damaged[candidate] = error
        continue
      for damaged_step, error in damaged.items():
        where = "" if self._read_only else (
            f" It is set aside as {self._set_aside(damaged_step)}.")
        console.say(f"{error}{where} Taking step {candidate}.")
      return candidate, state, meta
    if step is not None:
      raise damaged[step]
    # A folder without the marker was never a checkpoint, as when the directory
    # was removed while the run was saving.
    remains = agreement.from_first(lambda: [
        name for name in folders.names(self._directory)
        if folders.is_set_aside(name)
        and (self._directory / name / folders.COMMITTED).exists()])
    # Raise: starting from scratch would silently lose the run.
    if damaged or remains:
      raise errors.CheckpointDamaged("\n".join([
          f"{self._directory} has no intact checkpoint, only damaged ones: "
          f"{sorted(damaged) + remains}. To start from scratch, remove them.",
          *map(str, damaged.values())]))
    return None

  def wait(self):
    """Waits until everything is stored; raises StorageError if that failed."""
    if self._saving is None:
      return
    step, error = self._saving, self._wait_alone()
    self._saving = None
    if agreement.maximum(error is not None):
      error = error or RuntimeError("another process failed")
      self._manager = None
      raise errors.StorageError(self._clean_up_failure(step, error)) from error
    if jax.process_index() == 0:
      (self._directory / folders.SAVING).unlink(missing_ok=True)

  def close(self):
    """Waits until everything is stored, then stops the background threads."""
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
    # The exception on its way matters more than a failed save, so that one is
    # only printed. The other processes may not have an exception, and `close`
    # would wait for them.
    elif self._manager is not None:
      step, error = self._saving, self._wait_alone()
      self._saving = None
      if error is None:
        self._manager.close()
      else:
        print(self._clean_up_failure(step, error), file=sys.stderr, flush=True)

  def _wait_alone(self) -> Exception | None:
    """Waits until this process has stored its part; returns its error."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      # The manager keeps further errors and would raise them at the next save.
      try:
        self._manager.close()
      except Exception:
        pass
      return error

  def _prepare(self, step, leaves, after_newer) -> bool:
    """Makes room for `step`; returns whether it is stored already."""
    path = self._directory / str(step)
    steps = folders.list_steps(self._directory)
    if step in steps:
      try:
        stored = reading.read_description(path)["leaves"]
        if after_newer or stored == leaves:
          return True
      except errors.CheckpointDamaged:
        pass  # It is set aside below and saved again.
      else:
        raise errors.StorageError(
            f"{path} exists and has other values. Move it away, or continue "
            "from it.")
    elif steps and step < steps[-1] and not after_newer:
      raise errors.StorageError(
          f"Step {step} cannot be saved to {self._directory}, which has the "
          f"steps {steps}: a later start would restore the newest of them, not "
          "this one. Move the newer steps away.")
    try:
      # It may have been removed since the run began.
      files.make_directory(self._directory)
      folders.remove_partial(self._directory)
      if path.exists():
        console.say(f"{path} is not a complete checkpoint; it is set aside as "
                    f"{folders.set_aside(path)}.")
      # This note must be on the disk before the first file of the step: after a
      # power cut, only the note tells a partial step from somebody's copy.
      files.write_text(self._directory / folders.SAVING, str(step))
    except OSError as error:
      raise errors.StorageError(self._clean_up_failure(step, error)) from error
    return False

  def _clean_up_failure(self, step, error) -> str:
    """Removes the partial step of a failed save; returns the error message."""
    # Other threads of orbax may still write for a while. Whatever they write
    # after the last try is not a step, and the next save removes it.
    for _ in range(5 if jax.process_index() == 0 else 0):
      try:
        folders.remove_partial(self._directory)
      except OSError:
        pass  # A thread added a file meanwhile.
      time.sleep(.1)
    return (
        f"Saving step {step} to {self._directory / str(step)} failed: "
        f"{errors.summarize(error)}. The complete steps are "
        f"{folders.list_steps(self._directory)}. Once there is space and "
        "permission to write, the same command continues from the newest.")

  def _set_aside(self, step) -> str:
    """Renames the folder of a damaged step; returns the new name."""
    return agreement.from_first(
        lambda: folders.set_aside(self._directory / str(step)))
