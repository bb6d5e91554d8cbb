"""Finds datasets that TFDS prepared, by name, config and version."""

import fnmatch
import json
import os
import re
import shlex
from typing import NamedTuple

from big_vision import config as config_lib


class NotPreparedError(config_lib.ConfigError):
  """No prepared dataset has this name."""


class Prepared(NamedTuple):
  """One dataset on disk; its `str` is the name that selects it.

  Attributes:
    name: Name of the dataset.
    config: Name of its config; empty if it has none.
    version: Version, like "1.0.0".
    directory: Directory with its files.
  """

  name: str
  config: str
  version: str
  directory: str

  def __str__(self):
    config = f"/{self.config}" if self.config else ""
    return f"{self.name}{config}:{self.version}"


def find_data_dir(data_dir: str | None = None) -> str:
  """Returns `data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
  return os.path.expanduser(
      data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def list_prepared(data_dir: str) -> list[Prepared]:
  """Lists all prepared datasets by name, the newest version last."""
  import tensorflow as tf
  found = []
  for depth in ("*/*", "*/*/*"):
    for path in tf.io.gfile.glob(
        os.path.join(data_dir, depth, "dataset_info.json")):
      directory = os.path.dirname(path)
      name, *config, version = directory.split("/")[-depth.count("*"):]
      # TFDS writes unfinished datasets to "incomplete.XXX_1.0.0".
      if re.fullmatch(r"\d+\.\d+\.\d+", version):
        found.append(Prepared(
            name=name, config="".join(config), version=version,
            directory=directory))

  def order(prepared):
    return (prepared.name, prepared.config,
            [int(i) for i in prepared.version.split(".")])
  return sorted(found, key=order)


def find_prepared(dataset: str, data_dir: str) -> Prepared:
  """Finds the newest prepared dataset that a name selects.

  Args:
    dataset: "name", "name/config", "name:1.0.0", "name/config:1.*.*". Without a
      config, the dataset's default config or its only one is selected.
    data_dir: Directory to search.

  Raises:
    NotPreparedError: No such dataset is prepared; the error says which ones
      are, and how to prepare this one.
    ConfigError: `dataset` is not a valid name, or it selects several configs.
  """
  name, config, version = parse_name(dataset)
  everything = list_prepared(data_dir)
  found = [
      p for p in everything
      if p.name == name and (not config or p.config == config)
      and fnmatch.fnmatch(p.version, version or "*")]
  if not found:
    command = shlex.join([
        "python", "-m", "big_vision.tools.prepare_dataset", dataset,
        "--data_dir", data_dir])
    near = config_lib.nearest(name, {p.name for p in everything})
    raise NotPreparedError(
        f"The dataset {dataset!r} is not prepared in {data_dir}"
        f"{near}. There are: {[str(p) for p in everything]}. To search "
        "elsewhere, set data_dir or the environment variable TFDS_DATA_DIR. To "
        f"prepare it, run:\n  {command}")
  configs = sorted({p.config for p in found})
  if len(configs) > 1:
    default = _default_config(os.path.join(data_dir, name))
    if default not in configs:
      raise config_lib.ConfigError(
          f"The dataset {dataset!r} has several configs in {data_dir}; choose "
          f"one of {[f'{name}/{config}' for config in configs]}.")
    found = [p for p in found if p.config == default]
  return found[-1]


def parse_name(dataset: str) -> tuple[str, str | None, str | None]:
  """Splits "name/config:version" into name, config and version.

  The config and the version are None where they are left out.

  Raises:
    ConfigError: `dataset` is not a valid name.
  """
  match = re.fullmatch(
      r"(?P<name>\w+)(/(?P<config>[\w\-.+]+))?(:(?P<version>[\d.*]+))?",
      dataset)
  if not match:
    raise config_lib.ConfigError(
        f"{dataset!r} is not the name of a dataset; write 'name', "
        "'name/config', 'name:1.0.0' or 'name/config:1.0.0'.")
  return match["name"], match["config"], match["version"]


def _default_config(directory: str) -> str | None:
  """Returns the default config that TFDS noted for a dataset, if any."""
  import tensorflow as tf
  path = os.path.join(directory, ".config", "metadata.json")
  if not tf.io.gfile.exists(path):
    return None
  with tf.io.gfile.GFile(path) as file:
    return json.load(file).get("default_config_name")


def stored_formats(info) -> list[str]:
  """Lists the formats in which a `tfds.core.DatasetInfo` is stored."""
  return [info.file_format.value, *(
      f.value if hasattr(f, "value") else f
      for f in info.alternative_file_formats)]
