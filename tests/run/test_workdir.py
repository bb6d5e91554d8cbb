"""The directory of a run: whether it can be written, its lock, its classes."""

import json
import os

from big_vision import config as config_lib
from big_vision.run import workdir as workdir_lib
import pytest


def test_a_workdir_that_cannot_be_made_is_an_invalid_command_line(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(config_lib.ConfigError, match="cannot be written"):
    workdir_lib.make(str(tmp_path / "file" / "workdir"))
  workdir_lib.make(str(tmp_path / "a" / "b"))
  assert os.listdir(tmp_path / "a" / "b") == []


def test_a_locked_workdir_refuses_a_second_run(tmp_path):
  """test_faults.py does this with real processes."""
  with workdir_lib.lock(str(tmp_path)):
    with pytest.raises(config_lib.ConfigError, match=(
        f"in use by another run, process {os.getpid()} on ")):
      with workdir_lib.lock(str(tmp_path)):
        pass
  with workdir_lib.lock(str(tmp_path)):
    pass


def test_an_object_store_is_not_locked():
  with workdir_lib.lock("gs://bucket/run"):
    pass
  assert not os.path.exists("gs:")


def test_names_of_classes_are_kept_and_may_not_change(tmp_path):
  """A label that means another class than in training is a silent mistake."""
  workdir_lib.keep_class_names(str(tmp_path), None)
  assert not os.listdir(tmp_path)
  for _ in range(2):
    workdir_lib.keep_class_names(str(tmp_path), ["cat", "d\u00f6g"])
    assert os.listdir(tmp_path) == ["class_names.json"]
    stored = (tmp_path / "class_names.json").read_text()
    assert json.loads(stored) == ["cat", "d\u00f6g"]
  for names, message in (
      (["d\u00f6g", "cat"], "class 0 was 'cat' and is 'd\u00f6g'"),
      (["ant", "cat", "d\u00f6g"], "class 0 was 'cat' and is 'ant', ..."),
      (["cat", "d\u00f6g", "owl"], "class 2 was None and is 'owl'. .*remove")):
    with pytest.raises(config_lib.ConfigError, match=message):
      workdir_lib.keep_class_names(str(tmp_path), names)
  workdir_lib.keep_class_names(str(tmp_path), None)
  (tmp_path / "class_names.json").write_text("[")
  with pytest.raises(config_lib.ConfigError, match="not a list.*Remove it"):
    workdir_lib.keep_class_names(str(tmp_path), ["cat"])
