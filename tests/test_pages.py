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
  env.pop("XLA_FLAGS")  # One device, as a reader has.

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
