"""Starts every benchmark with --help, and tests how times are measured."""

import pathlib
import subprocess
import sys

from benchmarks import timing
import pytest

ROOT = pathlib.Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")
               if "__main__" in path.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_help_names_the_command(name):
  done = subprocess.run(
      [sys.executable, "-m", f"benchmarks.{name}", "--help"], cwd=ROOT,
      text=True, capture_output=True, check=True)
  assert f"python -m benchmarks.{name}" in done.stdout


def test_candidates_take_turns():
  calls = []
  seconds = timing.alternate(
      {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3,
      warmup=2)
  assert calls == ["a", "b"] * 5
  assert {name: len(values) for name, values in seconds.items()} == {
      "a": 3, "b": 3}


def test_report_prints_medians_and_ratios(capsys):
  timing.report({"a": [2., 1., 9.], "b": [4., 4., 4.]})
  out = capsys.readouterr().out
  assert "median          2 s, min 1, max 9, n 3" in out
  assert "a / b = 0.500" in out
  timing.report({"a": [2., 1., 9.]}, work=10, unit="images/s")
  assert "median          5 images/s" in capsys.readouterr().out
