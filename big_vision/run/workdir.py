"""The directory of a run: its config, and the lock that keeps others out."""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import os
import socket
import tempfile
import time

from big_vision import config as config_lib
from big_vision.run import peers


def make(workdir: str):
  """Makes the directory, if need be; raises ConfigError if it is read-only."""
  try:
    os.makedirs(workdir, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except OSError as error:
    raise config_lib.ConfigError(
        f"--workdir {workdir} cannot be written to: {error}.") from error


@contextlib.contextmanager
def lock(workdir: str) -> Iterator[None]:
  """Locks `workdir` for this run: two runs would mix their checkpoints.

  The first process holds the lock, which ends with the process, however that
  ends. Object stores (gs://) have no locks and are not locked.

  Args:
    workdir: Directory that exists, or the address of an object store.

  Raises:
    ConfigError: another run holds the lock; says which.
  """
  # Not `jax.process_index()`, which starts the devices.
  index, _ = peers.this_process()
  if index > 0 or "://" in workdir:
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
    except OSError as error:  # Some network file systems.
      print(f"{path} cannot be locked ({error}): nothing else keeps a second "
            "run out of this workdir.", flush=True)
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
    ConfigError: `workdir` holds a run whose config differs; lists every
      difference.
  """
  stored = load_config(workdir)
  if stored is None or allow_change:
    return
  lines = config_lib.difference(stored.to_dict(), config.to_dict())
  if lines:
    raise config_lib.ConfigError(
        f"{workdir} holds a run of another config. It differs in\n  " +
        "\n  ".join(lines) + "\nUse another --workdir, or continue that run "
        "with this config by --allow_config_change.")


def store_config(workdir: str, config: config_lib.Config):
  """Writes `config` to `workdir`/config.json, atomically."""
  path = os.path.join(workdir, "config.json")
  with open(f"{path}.tmp", "w", encoding="utf-8") as file:
    file.write(config_lib.to_json(config) + "\n")
  os.replace(f"{path}.tmp", path)


def load_config(workdir: str) -> config_lib.Config | None:
  """Reads the config that a run stored in `workdir`; None if there is none.

  Raises:
    ConfigError: the stored file is not JSON.
  """
  path = os.path.join(workdir, "config.json")
  if not os.path.exists(path):
    return None
  with open(path, encoding="utf-8") as file:
    try:
      return config_lib.Config(json.load(file))
    except json.JSONDecodeError as error:
      raise config_lib.ConfigError(f"{path} is not JSON: {error}.") from error
