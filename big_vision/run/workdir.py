"""The directory of a run: its config, and the lock that keeps others out."""

from collections.abc import Iterator, Sequence
import contextlib
import errno
import fcntl
import itertools
import json
import os
import socket
import tempfile
import time

from big_vision import config as config_lib
from big_vision import files
from big_vision.run import checkpoints
from big_vision.run import console
from big_vision.run import peers

_CONFIG, _CLASS_NAMES = "config.json", "class_names.json"


def make(workdir: str):
  """Makes the directory unless it exists; raises ConfigError if it cannot."""
  try:
    files.make_directory(workdir)
    if not files.is_remote(workdir):
      with tempfile.TemporaryFile(dir=workdir):
        pass
  except OSError as error:
    if error.errno in files.DISK_ERRORS - {errno.EROFS}:
      raise  # Another time, the same command may work.
    raise config_lib.ConfigError(
        f"--workdir {workdir} cannot be written to: {error}.") from error


@contextlib.contextmanager
def lock(workdir: str) -> Iterator[None]:
  """Locks `workdir` for this run: two runs would mix their checkpoints.

  The first process holds the lock until it ends, in whatever way. Object stores
  (gs://) have no locks and are not locked.

  Args:
    workdir: Directory that exists, or the address of an object store.

  Raises:
    ConfigError: Another run holds the lock; the error says which.
  """
  # Not `jax.process_index()`, which starts the devices.
  index, _ = peers.this_process()
  if index > 0 or files.is_remote(workdir):
    yield
    return
  path = os.path.join(workdir, "lock")
  # Mode "w" would empty the file of the run that holds the lock.
  with open(path, "a+", encoding="utf-8") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      raise config_lib.ConfigError(
          f"--workdir {workdir} is in use by another run, {file.read().strip()}"
          ". Wait for it, stop it, or use another --workdir.") from error
    except OSError as error:  # Some network file systems have no locks.
      print(f"{path} cannot be locked ({error}): a second run in this "
            "workdir would not be noticed.", flush=True)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, started "
               f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}\n")
    file.flush()
    yield


def check_config(
    workdir: str, config: config_lib.Config, allow_change: bool = False):
  """Refuses to continue a run that was started with another config.

  Args:
    workdir: Directory of the run.
    config: Config the run is to continue with.
    allow_change: Whether a different config is accepted.

  Raises:
    ConfigError: `workdir` holds a run whose config differs; the error lists
      every difference.
  """
  if allow_change:
    return
  stored = load_config(workdir)
  if stored is None:
    return
  lines = config_lib.difference(stored.to_dict(), config.to_dict())
  if lines:
    raise config_lib.ConfigError(
        f"{workdir} holds a run with another config. The differences are\n  " +
        "\n  ".join(lines) + "\nUse another --workdir, or continue that run "
        "with this config by --allow_config_change.")


def store_config(workdir: str, config: config_lib.Config):
  """Writes `config` to `workdir`/config.json, durably."""
  files.write_text(files.as_path(workdir) / _CONFIG,
                   config_lib.to_json(config) + "\n")


def keep_class_names(workdir: str, class_names: Sequence[str] | None):
  """Writes the names of the classes to `workdir`/class_names.json, or checks.

  Args:
    workdir: Directory of the run.
    class_names: Names in the order of the labels; None if they are unknown.

  Raises:
    ConfigError: The run was started with other classes, so the labels that it
      has learned mean something else; or the file is damaged.
  """
  check_class_names(workdir, class_names)
  path = files.as_path(workdir) / _CLASS_NAMES
  if class_names is not None and not path.exists():
    files.write_text(path, json.dumps(list(class_names), indent=0))


def check_class_names(workdir: str, class_names: Sequence[str] | None):
  """Raises ConfigError if the run in `workdir` has learned other classes.

  Names that are unknown, or that no run has kept, are not compared.

  Args:
    workdir: Directory of the run.
    class_names: Names in the order of the labels; None if they are unknown.
  """
  path = files.as_path(workdir) / _CLASS_NAMES
  if class_names is None or not path.exists():
    return
  try:
    stored = list(json.loads(path.read_bytes()))
  except (ValueError, TypeError) as error:
    raise config_lib.ConfigError(
        f"{path} is not a list of names in JSON: {error}. Remove it.") from (
            error)
  if stored != list(class_names):
    pairs = enumerate(itertools.zip_longest(stored, class_names))
    changed = [f"class {i} was {old!r} and is {new!r}"
               for i, (old, new) in pairs if old != new]
    raise config_lib.ConfigError(
        f"{workdir} holds a run with other classes: {changed[0]}"
        f"{', ...' if len(changed) > 1 else ''}. Use another --workdir, or "
        f"remove {path} to go on with the new ones.")


def load_config(workdir: str) -> config_lib.Config | None:
  """Reads the config that a run stored in `workdir`; None if there is none.

  Checkpoints hold it too, in case somebody has removed `config.json`.

  Raises:
    ConfigError: The stored file does not hold a config, or there are
      checkpoints and none of them has one.
  """
  path = files.as_path(workdir) / _CONFIG
  if not path.exists():
    return _load_config_of_checkpoint(workdir)
  try:
    values = json.loads(path.read_bytes())
    if not isinstance(values, dict):
      raise ValueError(f"it holds a {type(values).__name__}")
  except ValueError as error:
    raise config_lib.ConfigError(
        f"{path} is not a config in JSON: {error}. If it was damaged, remove "
        "it: checkpoints hold a copy.") from error
  return config_lib.Config(values)


def _load_config_of_checkpoint(workdir):
  """Returns the config that the newest readable checkpoint holds."""
  directory = files.as_path(workdir) / "checkpoints"
  steps = checkpoints.list_steps(directory)
  for step in reversed(steps):
    try:
      meta = checkpoints.read_meta(directory, step)
    except checkpoints.CheckpointDamaged:
      continue
    if "config" in meta:
      console.say(f"{workdir} has no {_CONFIG}; its config is read from the "
                  f"checkpoint of step {step}.")
      return config_lib.Config(meta["config"])
  if steps:
    raise config_lib.ConfigError(
        f"{workdir} has checkpoints of steps {steps} but no {_CONFIG}, so "
        "nothing says which config they belong to. Restore that file, or use "
        "another --workdir.")
  return None
