"""Tests of datasets/tfds/prepared.py."""

import os
import shutil

from big_vision import config as config_lib
from big_vision.datasets import registry
from big_vision.datasets.tfds import prepared
import pytest
from tests.datasets.tfds import tiny_dataset


def test_an_unprepared_dataset_is_answered_with_a_command(
    data_dirs, monkeypatch, tmp_path):
  data_dir = data_dirs["tfrecord"]
  monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
  with pytest.raises(config_lib.ConfigError) as error:
    registry.open_source("tinny", split="train")
  assert "'tinny' is not prepared in " + data_dir in str(error.value)
  assert "(did you mean 'tiny'?)" in str(error.value)
  assert "There are: ['tiny:1.2.0']" in str(error.value)
  assert ("\n  python -m big_vision.tools.prepare_dataset tinny --data_dir "
          f"{data_dir}") in str(error.value)
  with pytest.raises(config_lib.ConfigError, match="'tiny:2.0.0' is not prep"):
    registry.open_source("tiny:2.0.0", split="train")
  with pytest.raises(config_lib.ConfigError, match=r"There are: \[\]"):
    registry.open_source(
        "tiny", split="train", data_dir=str(tmp_path / "no dir"))
  with pytest.raises(config_lib.ConfigError, match="is not the name"):
    registry.open_source("a:b:c", split="train")


def test_the_newest_version_and_the_default_config_are_found(tmp_path):
  data_dir = str(tmp_path)
  for name, version in [("a", "1.2.0"), ("a", "1.10.0"), ("a", "1.9.0"),
                        ("b/big", "1.0.0"), ("b/small", "1.0.0")]:
    tiny_dataset.write_dataset(data_dir, "array_record", name, version)
  os.makedirs(tmp_path / "a" / "incomplete.X_2.0.0")
  shutil.copy(tmp_path / "a" / "1.9.0" / "dataset_info.json",
              tmp_path / "a" / "incomplete.X_2.0.0")

  def find(name):
    found = prepared.find_prepared(name, data_dir)
    return os.path.relpath(found.directory, data_dir)

  assert find("a") == "a/1.10.0"
  assert find("a:1.2.0") == "a/1.2.0"
  assert find("a:1.9.*") == "a/1.9.0"
  assert find("b/small") == "b/small/1.0.0"
  assert find("b/big:1.0.0") == "b/big/1.0.0"
  with pytest.raises(config_lib.ConfigError,
                     match=r"choose one of \['b/big', 'b/small'\]"):
    find("b")
  (tmp_path / "b" / ".config").mkdir()
  (tmp_path / "b" / ".config" / "metadata.json").write_text(
      '{"default_config_name": "small"}')
  assert find("b") == "b/small/1.0.0"
  assert len(registry.open_source("b", split="test", data_dir=data_dir)) == 7
