"""Tests conventions of the whole repository, which a fork may break first."""

import ast
import importlib
import json
import pathlib
import pkgutil
import re
import subprocess
import sys

import big_vision
from big_vision import config as config_lib
from big_vision import modules
import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "big_vision"
GOLDEN = pathlib.Path(__file__).parent / "golden" / "configs"


def _modules():
  return [module.name for module in pkgutil.walk_packages(
      big_vision.__path__, "big_vision.")]


def _files():
  return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("name", _modules())
def test_every_module_imports_and_says_what_it_is(name):
  # In a process of its own for commands: two modules that define a flag of the
  # same name never meet in practice.
  is_command = (name.startswith("big_vision.tools.")
                and not name.startswith("big_vision.tools.planning"))
  if is_command or name == "big_vision.train":
    output = subprocess.run(
        [sys.executable, "-m", name, "--help"], cwd=ROOT, text=True,
        capture_output=True, check=False)
    said = (output.stdout + output.stderr).lower()
    assert output.returncode == 0 and "usage" in said, said
  else:
    module = importlib.import_module(name)
    is_empty = not pathlib.Path(module.__file__).read_text().strip()
    assert is_empty or module.__doc__, f"{name} has no docstring."


def test_training_without_an_input_pipeline_needs_no_tensorflow():
  code = (
      "import sys; import big_vision.build, big_vision.state, "
      "big_vision.trainers.classification, big_vision.models.vit, "
      "big_vision.evaluators.harness, big_vision.evaluators.fewshot_lsr, "
      "big_vision.run.checkpoints, big_vision.run.metrics, "
      "big_vision.configs.quickstart;"
      "assert 'tensorflow' not in sys.modules, 'TensorFlow was imported'")
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def _imports(path):
  """Yields the full names of this package's modules that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      if node.module.split(".")[0] == "big_vision":
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names
                  if alias.name.split(".")[0] == "big_vision")


def _project(dotted_or_parts):
  parts = (dotted_or_parts.split(".") if isinstance(dotted_or_parts, str)
           else list(dotted_or_parts))
  if "proj" not in parts:
    return None
  place = parts.index("proj") + 1
  return parts[place] if place < len(parts) else "?"


def test_only_a_project_imports_its_own_modules():
  for path in _files():
    own = _project(path.relative_to(ROOT).with_suffix("").parts)
    for name in _imports(path):
      theirs = _project(name)
      assert theirs in (None, own), f"{path.relative_to(ROOT)} imports {name}"


def test_lower_layers_do_not_import_upper_ones():
  """Models, losses, pp and datasets know nothing about training."""
  upper = ("train", "build", "state", "task", "trainers", "evaluators", "tools",
           "run", "optim", "input_pipeline", "configs", "proj")
  for folder in ("layers", "models", "pp", "datasets"):
    for path in sorted((PACKAGE / folder).rglob("*.py")):
      for name in _imports(path):
        parts = name.split(".")
        assert len(parts) < 2 or parts[1] not in upper, (
            f"{path.relative_to(ROOT)} imports {name}")


def _dotted(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_modules_import_each_other_in_a_circle():
  """Imports inside functions count too: they only hide a circle."""
  known = {_dotted(path): path for path in _files()}
  needs = {name: {other for other in _imports(path) if other in known}
           for name, path in known.items()}
  # A package that re-exports its modules is needed by nothing inside itself.
  needs = {name: {other for other in others
                  if other != name and not name.startswith(f"{other}.")}
           for name, others in needs.items()}
  while leaves := {name for name, others in needs.items() if not others}:
    needs = {name: others - leaves for name, others in needs.items()
             if name not in leaves}
  assert not needs, f"These modules need each other: {sorted(needs)}"


def test_models_define_a_model_and_layers_do_not():
  offered = modules.list_names("model")
  for path in sorted((PACKAGE / "models").glob("*.py")):
    assert path.stem == "__init__" or path.stem in offered, path.name
  for path in sorted((PACKAGE / "layers").rglob("*.py")):
    defined = {node.name for node in ast.parse(path.read_text()).body
               if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    assert "Model" not in defined, path.name


def test_a_project_is_one_folder():
  """Nothing of a project is elsewhere, so that one `rm -r` deletes it."""
  folders = [path for path in PACKAGE.rglob("proj") if path.is_dir()]
  assert folders == [PACKAGE / "proj"]
  for path in sorted((PACKAGE / "proj").iterdir()):
    if path.is_dir() and path.name != "__pycache__":
      assert (path / "README.md").exists(), path.name
      assert list(path.glob("configs/*.py")), path.name
      mirror = ROOT / "tests" / "proj" / path.name
      assert list(mirror.glob("test_*.py")), f"{mirror} has no tests"


def test_tests_mirror_the_package():
  for path in sorted((ROOT / "tests").rglob("test_*.py")):
    folder = path.parent.relative_to(ROOT / "tests")
    assert (PACKAGE / folder).is_dir(), path.relative_to(ROOT)


def _own_lines(node):
  """Returns a function's number of lines, without its docstring."""
  lines = node.end_lineno - node.lineno + 1
  first = node.body[0]
  if ast.get_docstring(node, clean=False) is not None:
    lines -= first.end_lineno - first.lineno + 1
  return lines


def test_functions_are_short_or_say_why_not():
  """At most 80 lines; a comment above that begins "Long" states a reason."""
  for path in _files():
    text = path.read_text()
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.FunctionDef) and _own_lines(node) > 80:
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        above = []
        while lines[first - 2].lstrip().startswith("#"):
          above.append(lines[first - 2].lstrip())
          first -= 1
        assert any(line.startswith("# Long") for line in above), (
            f"{path.relative_to(ROOT)}: {node.name} has {_own_lines(node)} "
            "lines")


def _prose_files():
  """Returns all files that people read: code, tests, pages."""
  output = subprocess.run(
      ["git", "ls-files", "--cached", "--others", "--exclude-standard",
       "*.py", "*.md"], cwd=ROOT, text=True, capture_output=True, check=True)
  paths = [ROOT / name for name in output.stdout.split("\n") if name]
  return [path for path in paths if path.exists()]


def test_no_file_refers_to_a_document_outside_of_the_repository():
  # The pattern is put together here so that it does not find itself.
  outside = re.compile("|".join((
      "sys" + r"tems\.md", "(lear" + "ning|effi" + "cient|sequ" + "ences|reli"
      + r"ability)\.md", "sys" + "tems [A-Z][0-9]",
      "(mist" + "ake|tr" + "ap) [A-Z]{1,3}[0-9]",
      "def te" + "st_[a-z]{1,2}[0-9]+_", "shared/" + "reference")))
  found = [
      f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
      for path in _prose_files()
      for number, line in enumerate(path.read_text().split("\n"), 1)
      if outside.search(line)]
  assert not found, "\n".join(found)


def test_arguments_are_described_by_what_they_are():
  """A description is a noun phrase: "Number of ...", not "of the run"."""
  fragment = re.compile(
      r"^ +\**[a-z_]\w*(, \**[a-z_]\w*)*: "
      r"([Oo]f|[Ww]hich|[Ww]hat|[Bb]y which|[Uu]nder which|[Ww]hose) ")
  found = [
      f"{path.relative_to(ROOT)}: {node.name}: {line.strip()}"
      for path in _files()
      for node in ast.walk(ast.parse(path.read_text()))
      if isinstance(node, (ast.FunctionDef, ast.ClassDef))
      for line in (ast.get_docstring(node, clean=False) or "").split("\n")
      if fragment.match(line)]
  assert not found, "\n".join(found)


def test_the_readme_is_short():
  assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_links_between_pages_lead_somewhere():
  for path in _prose_files():
    if path.suffix == ".md":
      for link in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if not link.startswith(("http://", "https://")):
          assert (path.parent / link).exists(), (
              f"{path.relative_to(ROOT)} links to {link}")


def test_no_file_is_called_utils():
  assert not [path for path in _files() if path.stem in ("utils", "util")]


def test_style():
  output = subprocess.run(
      [sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, text=True,
      capture_output=True, check=False)
  assert output.returncode == 0, output.stdout + output.stderr


def _configs():
  paths = [*PACKAGE.glob("configs/*.py"), *PACKAGE.glob("proj/*/configs/*.py")]
  return [path for path in sorted(paths)
          if path.stem not in ("__init__", "common", "common_i1k")]


def _golden(path):
  parts = path.relative_to(PACKAGE).parts
  parts = [part for part in parts if part != "configs"]
  return GOLDEN.joinpath(*parts).with_suffix(".json")


def _values(path):
  name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
  return config_lib.resolve(importlib.import_module(name).get_config())


@pytest.mark.parametrize("path", _configs(), ids=lambda path: path.stem)
def test_every_config_equals_its_golden_file(path):
  """A change of a config must be a difference that somebody can read.

  After an intended change, `python tests/test_repository.py` rewrites the
  files.
  """
  stored = json.loads(_golden(path).read_text())
  assert not config_lib.difference(
      stored, json.loads(config_lib.to_json(_values(path))))


@pytest.mark.parametrize("path", _configs(), ids=lambda path: path.stem)
def test_every_config_says_how_to_run_it(path):
  head = ast.get_docstring(ast.parse(path.read_text()))
  assert "COMMAND" in head and "EXPECTED" in head
  assert f"--config {path.relative_to(ROOT)}" in head
  assert "PLACEHOLDER" not in head


if __name__ == "__main__":
  for config_path in _configs():
    golden_path = _golden(config_path)
    golden_path.parent.mkdir(parents=True, exist_ok=True)
    golden_path.write_text(config_lib.to_json(_values(config_path)) + "\n")
