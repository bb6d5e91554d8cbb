"""The config that a run stores in its workdir, and checks when it resumes."""

import json
import os

from big_vision import config as config_lib


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
