"""Makes deliberate mistakes one by one and expects a test to fail each time.

Run by `bash run.sh pytest -m mutation`; `-k optim` runs those of one list. The
lists are in `tests/mutations`, one module for each part of the package. The
tests that run by default check the lists only: that each mistake still applies
to the code as it is, and names a test.
"""

import ast
import functools
import importlib
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
MISTAKES = [
    pytest.param(mutation, id=f"{path.stem}-{i}")
    for path in sorted((ROOT / "tests/mutations").glob("*.py"))
    if path.stem != "mutation"
    for i, mutation in enumerate(
        importlib.import_module(f"mutations.{path.stem}").MUTATIONS)]


def _functions(path):
  """Returns the names of a test module's functions."""
  return {node.name for node in ast.walk(ast.parse(path.read_text()))
          if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("mutation", MISTAKES)
def test_a_mistake_applies_and_names_a_test(mutation):
  text = (ROOT / mutation.file).read_text(encoding="utf-8")
  assert text.count(mutation.old) == 1, f"in {mutation.file}: {mutation.old}"
  assert mutation.old != mutation.new
  path, name = mutation.test.split("::")
  assert name.split("[")[0] in _functions(ROOT / path), mutation.test


@pytest.fixture(scope="session")
def copied_tree(tmp_path_factory):
  """A copy of the package and its tests, which mistakes are made in."""
  copy = tmp_path_factory.mktemp("tree") / "repository"
  skipped = shutil.ignore_patterns(".git", ".venv", "__pycache__", "workdirs")
  shutil.copytree(ROOT, copy, ignore=skipped)
  return copy


def _run(test, tree):
  """Runs one test in a tree; returns pytest's exit code and its output."""
  environment = {**os.environ, "PYTHONPATH": str(tree),
                 "PYTHONDONTWRITEBYTECODE": "1"}
  environment.pop("PYTEST_XDIST_WORKER", None)
  result = subprocess.run(
      [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
       "-p", "no:xdist", "-m", "", test],
      cwd=tree, env=environment, capture_output=True, text=True, check=False,
      timeout=300)
  return result.returncode, result.stdout + result.stderr


@pytest.fixture(scope="session")
def run_without_mistakes(copied_tree):
  """Runs a test in the unchanged tree, once however often it is asked for."""
  return functools.cache(lambda test: _run(test, copied_tree))


@pytest.mark.mutation
@pytest.mark.parametrize("mutation", MISTAKES)
def test_a_mistake_is_noticed(mutation, copied_tree, run_without_mistakes):
  code, output = run_without_mistakes(mutation.test)
  assert code == 0, f"fails without the mistake:\n{output}"
  path = copied_tree / mutation.file
  right = path.read_text(encoding="utf-8")
  path.write_text(right.replace(mutation.old, mutation.new), encoding="utf-8")
  try:
    code, output = _run(mutation.test, copied_tree)
  finally:
    path.write_text(right, encoding="utf-8")
  # 1 means that tests ran and failed; a mistake that is not Python is 2.
  assert code == 1, f"pytest ended with {code}:\n{output}"
