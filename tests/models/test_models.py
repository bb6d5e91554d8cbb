"""Rules for all modules in `models/`."""

import ast
import pathlib

from big_vision import models
from big_vision import modules
import pytest

FILES = sorted(
    path for path in pathlib.Path(models.__file__).parent.glob("*.py")
    if path.stem != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_models_define_a_model_and_do_not_import_each_other(path):
  """Shared pieces belong in `layers/`."""
  assert hasattr(modules.find("model", path.stem), "Model")
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom):
      assert not node.module.startswith("big_vision.models"), ast.unparse(node)
