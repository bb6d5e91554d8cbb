"""Measures the time from the start of the process to the end of its first step.

  python -m benchmarks.startup [--rounds 3] [--width 64 --depth 4]

Starts the quickstart, or a larger model on its data, in new processes: without
a compilation cache, and with the programs that an earlier run left in
`config.compilation_cache`. The peer is a process that only imports the same
modules.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks import timing

_CONFIG = """
from big_vision.configs import common
from big_vision.configs import quickstart

def get_config(arg=None):
  arg = common.parse_arg(arg, width=64, depth=4, cache=None)
  config = quickstart.get_config()
  config.model.update(width=arg.width, depth=arg.depth, mlp_dim=4 * arg.width)
  config.compilation_cache = arg.cache
  return config
"""


def _run(*command):
  """Returns the seconds until the first line with "step", or until the end."""
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
  parser.add_argument("--width", type=int, default=64)
  parser.add_argument("--depth", type=int, default=4)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    config = pathlib.Path(folder, "config.py")
    config.write_text(_CONFIG)

    def first_step(**kw):
      arg = ",".join(f"{k}={v}" for k, v in dict(
          width=args.width, depth=args.depth, **kw).items())
      with tempfile.TemporaryDirectory(dir=folder) as workdir:
        return _run("-m", "big_vision.train", "--config", f"{config}:{arg}",
                    "--workdir", workdir)

    cache = os.path.join(folder, "cache")
    first_step(cache=cache)
    seconds = {"first step": [], "first step, compiled before": [],
               "imports": []}
    for _ in range(args.rounds):
      seconds["first step"].append(first_step())
      seconds["first step, compiled before"].append(first_step(cache=cache))
      seconds["imports"].append(
          _run("-c", "import big_vision.train, tensorflow"))
  timing.report(seconds)


if __name__ == "__main__":
  main()
