"""Evaluating a finished run; test_train_processes.py runs the command."""

import types

from big_vision import build
from big_vision import config as config_lib
from big_vision.run import workdir as workdir_lib
from big_vision.tools import eval_only
import pytest


def test_data_with_other_classes_is_not_evaluated(tmp_path, monkeypatch):
  """The labels that the model has learned would mean other classes."""
  workdir_lib.keep_class_names(str(tmp_path), ["cat", "dog"])
  built = types.SimpleNamespace(
      data=types.SimpleNamespace(class_names=["ant", "cat"]))
  monkeypatch.setattr(build, "build", lambda config: built)
  with pytest.raises(config_lib.ConfigError, match=(
      "holds a run with other classes: class 0 was 'cat' and is 'ant', ...")):
    eval_only.evaluate(config_lib.Config({}), str(tmp_path))
