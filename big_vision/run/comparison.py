"""Compares what the processes of a run were started with.

Processes with different configs, code or packages would train together without
an error, since the shapes of their arrays agree; nobody could repeat the run.
"""

from collections.abc import Mapping
import functools
import hashlib
import importlib
from importlib import metadata
import json
import os
import pathlib
import platform
from typing import Any

import jax

from big_vision import config as config_lib
from big_vision import modules
from big_vision.run import peers

_KEY = "big_vision/started_with/"
# All processes are connected by now, and have about the same work to do.
_TIMEOUT_MS = 1800 * 1000
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy",
             "tensorflow", "ml_collections")
# Settings of jax that change numerical results.
_SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision",
             "jax_default_prng_impl", "jax_threefry_partitionable")


def check_same(config: config_lib.Config, data_size: int):
  """Waits for all processes; raises unless all were started with the same.

  Process 0 publishes what it has, and the others compare. None of them returns
  before all have agreed; an error in one ends all, see
  `command_line.exit_with_code`.

  Args:
    config: Resolved config of the run.
    data_size: Number of training examples that this process has found.

  Raises:
    ConfigError: Process 0 has another config, number of processes, data size,
      code, version of a package or setting of jax; the error shows every
      difference.
  """
  client, index, count = peers.service()
  if client is None:
    return
  ours = {"config": config.to_dict(), **_describe(data_size, count)}
  if index == 0:
    client.key_value_set(f"{_KEY}0", json.dumps(ours))
  theirs = json.loads(client.blocking_key_value_get(f"{_KEY}0", _TIMEOUT_MS))
  if lines := config_lib.difference(theirs, ours):
    raise config_lib.ConfigError(
        f"Process {index} was started differently from process 0:\n  " +
        "\n  ".join(lines) + "\nStart all processes of a run with the same "
        "command, code, data and packages.")
  client.wait_at_barrier(f"{_KEY}compared", _TIMEOUT_MS)


def _describe(data_size, count) -> dict[str, Any]:
  """Returns everything but the config that must be the same everywhere."""
  return {
      "--num_processes": count,
      "number of training examples": data_size,
      "code": {name: _digest_package(name) for name in modules.packages()},
      "version": {"python": platform.python_version(), **_versions()},
      "setting": {name: str(getattr(jax.config, name)) for name in _SETTINGS},
  }


def _versions() -> Mapping[str, str]:
  versions = {}
  for name in _PACKAGES:
    try:
      versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      versions[name] = "not installed"
  return versions


@functools.cache
def _digest_package(name: str) -> str:
  """Returns a digest of all Python files of an imported package."""
  module = importlib.import_module(name)
  digest = hashlib.sha256()
  for root in map(pathlib.Path, module.__path__):
    for path in sorted(root.rglob("*.py")):
      digest.update(os.fsencode(path.relative_to(root)) + b"\0")
      digest.update(path.read_bytes() + b"\0")
  return digest.hexdigest()[:16]
