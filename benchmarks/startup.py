"""From the start of the process to the end of the quickstart's first step.

  python -m benchmarks.startup [--rounds 3]

In new processes. "imports" is a process that only imports the same modules.
"""

import argparse
import subprocess
import sys
import tempfile
import time

from benchmarks import timing


def _run(*command):
  """Seconds until the first line with "step", or else until the end."""
  start = time.perf_counter()
  process = subprocess.Popen(
      [sys.executable, *command], stdout=subprocess.PIPE, text=True)
  for line in process.stdout:
    if line.startswith("step"):
      break
  else:
    process.wait()
  seconds = time.perf_counter() - start
  process.kill()
  process.wait()
  return seconds


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  seconds = {"first step": [], "imports": []}
  for _ in range(args.rounds):
    with tempfile.TemporaryDirectory() as workdir:
      seconds["first step"].append(_run(
          "-m", "big_vision.train", "--config",
          "big_vision/configs/quickstart.py", "--workdir", workdir))
    seconds["imports"].append(_run("-c", "import big_vision.train, tensorflow"))
  timing.report(seconds)


if __name__ == "__main__":
  main()
