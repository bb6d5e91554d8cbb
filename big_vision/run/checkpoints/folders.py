"""Tells which folders of a run's checkpoints are steps, and clears the others.

A step is a folder `directory`/<step> that orbax committed and that our own
`meta` item describes. Everything else is somebody's copy, what a killed save
left behind, or a damaged step that was set aside as `<step>.damaged`.
"""

import itertools
import re

from etils import epath

from big_vision import files
from big_vision.run import console
from big_vision.run.checkpoints import errors

COMMITTED = "commit_success.txt"
META = "meta/metadata"
# Holds the number of the step that is being saved. If that step was never
# committed, its folder is ours to remove; any other folder without a commit
# marker may be somebody's copy, and stays.
SAVING = "saving.txt"


def names(directory: epath.Path) -> list[str]:
  """Returns the sorted names in `directory`, [] if it does not exist."""
  if not directory.is_dir():
    return []
  return sorted(path.name for path in directory.iterdir())


def list_steps(directory: str) -> list[int]:
  """Lists the steps that are committed and described, in ascending order.

  Only looks at names, so a step that it lists may still be damaged.
  """
  directory = files.as_path(directory)
  return sorted(
      int(name) for name in names(directory)
      if re.fullmatch(r"0|[1-9]\d*", name) and all(
          (directory / name / item).exists()
          for item in (COMMITTED, META, "state")))


def find(directory: str, step: int | None) -> epath.Path:
  """Finds the folder of a step.

  Args:
    directory: Directory of a run's checkpoints, or the folder of one step.
    step: Step to find; None for the newest, or for the one whose folder
      `directory` is.

  Raises:
    StorageError: There is no such step; the error lists those that exist.
  """
  directory = files.as_path(directory)
  if step is None and directory.name.isdigit() and (
      directory / COMMITTED).exists():
    directory, step = directory.parent, int(directory.name)
  steps = list_steps(directory)
  step = steps[-1] if step is None and steps else step
  if step not in steps:
    raise errors.StorageError(
        f"{directory} has no " + ("checkpoint" if step is None else
                                  f"step {step}; it has {steps}") + ".")
  return directory / str(step)


def clean(
    directory: epath.Path, *, keep_last: int, keep_every: int | None = None):
  """Clears away folders that are named like steps but are incomplete.

  Folders that a killed save or a killed removal left behind are removed, and so
  are empty ones. All others are set aside, because they may be the only copy of
  something.

  Args:
    directory: Directory of a run's checkpoints; made if it does not exist.
    keep_last: See `Checkpoints`.
    keep_every: See `Checkpoints`.
  """
  files.make_directory(directory)
  remove_partial(directory)
  (directory / SAVING).unlink(missing_ok=True)
  steps = list_steps(directory)
  for name in names(directory):
    path = directory / name
    if not re.fullmatch(r"\d+", name) or name in map(str, steps):
      continue
    # Retention would have removed this step, so its removal was killed.
    is_old = (sum(step > int(name) for step in steps) >= keep_last and
              not (keep_every and int(name) % keep_every == 0))
    if is_old or not _has_files(path):
      path.rmtree()
    else:
      console.say(f"{path} is not a complete checkpoint; it is set aside as "
                  f"{set_aside(path)}.")


def commit(path: epath.Path):
  """Marks a step as complete, once everything it consists of is on the disk.

  orbax writes the same marker, but syncs only the arrays, and removes older
  steps at once: a power cut would leave a marker that vouches for empty files.

  Args:
    path: Folder of the step, with all its files.
  """
  files.sync_tree(path)
  files.write_text(path / COMMITTED, "")


def remove_partial(directory: epath.Path):
  """Removes what a killed or failed save left of its step."""
  note = directory / SAVING
  if note.exists() and (name := note.read_text()).isdigit() and (
      int(name) not in list_steps(directory)):
    (directory / name).rmtree(missing_ok=True)


def set_aside(path: epath.Path) -> str:
  """Renames a folder to `path`.damaged, or .damaged.1, ...; returns the name.
  """
  endings = itertools.chain([""], (f".{i}" for i in itertools.count(1)))
  target = next(
      target for ending in endings
      if not (target := epath.Path(f"{path}.damaged{ending}")).exists())
  path.rename(target)
  return target.name


def is_set_aside(name: str) -> bool:
  """Returns whether a name is one that `set_aside` gives to a step."""
  return bool(re.fullmatch(r"\d+\.damaged(\.\d+)?", name))


def _has_files(path: epath.Path) -> bool:
  return not path.is_dir() or any(map(_has_files, path.iterdir()))
