"""Whole training runs, for benchmarks that compare what they reach."""

import json
import os
import subprocess
import sys


def train(config: str, workdir: str) -> list[dict]:
  """Trains, or continues what is in `workdir`; the rows of its metrics.

  Args:
    config: as after `--config`.
    workdir: of this run; one that is complete is not trained again.

  Raises:
    SystemExit: the run failed.
  """
  process = subprocess.run(
      [sys.executable, "-m", "big_vision.train", "--config", config,
       "--workdir", workdir], check=False)
  if process.returncode:
    raise SystemExit(f"{config} in {workdir} ended with {process.returncode}.")
  with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as file:
    return [json.loads(line) for line in file]
