"""Tests of datasets/registry.py: opening sources by name."""

import subprocess
import sys

from big_vision import config as config_lib
from big_vision.datasets import registry
import pytest


@pytest.mark.parametrize("name, kwargs, message", [
    ("bv:digitz", {}, r"'bv:digitz' \(did you mean 'bv:digits'\?\); there are "
     r"\['bv:addition', 'bv:copy', 'bv:digits', 'bv:folder', 'bv:jsonl', "
     r"'bv:listops', 'bv:npz', 'bv:photographs', 'bv:reverse'\]"),
    ("bv:digits", {"splitt": "train"}, r"splitt does not exist \(did you mean "
     r"'split'\?\)\. It accepts \['split'\]"),
    ("bv:digits", {}, r"lacks \['split'\]"),
    ("cifar10", {"split": "train", "dir": "x"}, r"dir does not exist.*"
     r"\['data_dir', 'skip_decode', 'split'\]")])
def test_unknown_sources_and_arguments_are_named(name, kwargs, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    registry.open_source(name, **kwargs)


def test_importing_sources_does_not_import_tensorflow():
  code = (
      "import sys; from big_vision.datasets import arrays, core, folder, "
      "generated, jsonl, listops, memory, registry, sequences, slicing; "
      "from big_vision.datasets.tfds import declared, opening; "
      "from big_vision.tools import prepare_dataset; "
      "print([m for m in sys.modules if m.startswith('tensorflow')])")
  found = subprocess.run(
      [sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert found.stdout == "[]\n"
