"""Every Python snippet of the README and of docs/ runs as it stands.

A snippet begins with the name of its file, `# mylab/invert.py`. The snippets of
a page are written into one folder; those with a `get_config` are trained for a
few steps, sweeps are checked, all others are run.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"```python\n# (\S+\.py)\n(.*?)```", re.DOTALL)


def _snippets(page):
  return dict(SNIPPET.findall(page.read_text()))


def test_every_python_snippet_names_its_file():
  for page in PAGES:
    assert page.read_text().count("```python") == len(
        SNIPPET.findall(page.read_text())), page.name


@pytest.mark.parametrize(
    "page", [page for page in PAGES if _snippets(page)],
    ids=lambda page: page.stem)
def test_snippets_run(page, tmp_path):
  snippets = _snippets(page)
  for name, text in snippets.items():
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
  # One device, and jax looks for it, as it does for a reader.
  del env["XLA_FLAGS"], env["JAX_PLATFORMS"]

  def run(*command):
    result = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=env, text=True,
        capture_output=True, check=False)
    assert result.returncode == 0, f"{command}:\n{result.stderr}"

  # All in one process: most of the time goes into imports.
  run("-c", "import runpy\n"
      f"for name in {list(snippets)}:\n  runpy.run_path(name)")
  for name, text in snippets.items():
    workdir = f"workdirs/{pathlib.Path(name).stem}"
    if "def get_sweep" in text:
      run("-c", "from big_vision.tools import sweep\n"
          f"sweep.load_points({name!r}, {workdir!r}, [0, 1])")
    elif "def get_config" in text:
      run("-m", "big_vision.train", "--config", name, "--workdir", workdir,
          "--config.total_steps=4")


def _fault_rows():
  """Returns the cells of every row in the table of faults."""
  lines = (ROOT / "docs" / "faults.md").read_text().split("\n")
  first = next(i for i, line in enumerate(lines)
               if line.startswith("| fault |"))
  for line in lines[first + 2:]:
    if not line:
      return
    yield [cell.strip() for cell in line.strip("|").split("|")]


def _tests_of(path):
  return set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))


def test_every_fault_has_a_test_that_exists():
  """A name may be cut off by "..." at its end or its beginning."""
  rows = [*_fault_rows()]
  assert len(rows) >= 40
  for row in rows:
    assert len(row) == 4, row  # A power cut has no exit code.
    path, named = None, re.findall(r"`([^`]+)`", row[-1])
    assert named, row
    for name in named:
      file, _, test = name.rpartition("::") if "::" in name else (
          (name, "", "") if name.endswith(".py") else ("", "", name))
      if file:
        path, = [path for folder in ("", "run") if (
            path := ROOT / "tests" / folder / file).exists()]
      pattern = re.escape(test).replace(re.escape("..."), r"\w*")
      assert not test or any(
          re.fullmatch(pattern if test.startswith("test_") else
                       rf"\w*{pattern}", found)
          for found in _tests_of(path)), f"{path} has no {test}"
