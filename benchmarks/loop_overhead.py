"""Measures the time that the training loop adds to a step.

  python -m benchmarks.loop_overhead [--steps 400] [--rounds 5]

A bare loop (the same compiled step on the same batches, nothing else) takes
turns with `train.train` of the same config. The difference per step is also
given as a share of a step of 100 ms. Only the time from the loop's second step
to its last counts, without set-up, evaluation and the final checkpoint.
"""

import argparse
import statistics
import tempfile
import time

from benchmarks import bare
from benchmarks import timing
from big_vision import config as config_lib
from big_vision.run import progress
from big_vision import train
from big_vision.configs import quickstart


def _config(steps):
  config = quickstart.get_config()
  with config.unlocked():
    del config.evals, config.total_epochs, config.log_training_epochs
    del config.ckpt_epochs
    config.total_steps = steps
    config.log_training_steps = 50
  return config_lib.resolve(config)


def run_bare(steps) -> float:
  """Returns the seconds per step of the compiled update alone."""
  with bare.started(_config(steps)) as (_, state, update, batches):
    state, _, ok = update(state, {}, next(batches), ())
    bool(ok)
    start = time.perf_counter()
    for _ in range(steps - 1):
      state, _, ok = update(state, {}, next(batches), ())
    bool(ok)
    return (time.perf_counter() - start) / (steps - 1)


def run_loop(steps) -> float:
  """Returns the seconds per step within `train.train`."""
  times = []

  class Clocked(progress.Chrono):
    """Records when each step ends."""

    def tick(self, step, flops):
      super().tick(step, flops)
      times.append(time.perf_counter())

  original, progress.Chrono = progress.Chrono, Clocked
  try:
    with tempfile.TemporaryDirectory() as workdir:
      train.train(_config(steps), workdir)
  finally:
    progress.Chrono = original
  return (times[-1] - times[0]) / (len(times) - 1)


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--steps", type=int, default=400)
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  seconds = {"loop": [], "bare": []}
  for _ in range(args.rounds):
    seconds["bare"].append(run_bare(args.steps))
    seconds["loop"].append(run_loop(args.steps))
  timing.report(seconds)
  extra = [l - b for l, b in zip(seconds["loop"], seconds["bare"])]
  print(f"the loop adds {statistics.median(extra) * 1e3:.3f} ms a step (of "
        f"pairs: min {min(extra) * 1e3:.3f}, max {max(extra) * 1e3:.3f}), "
        f"{statistics.median(extra) * 1e3:.2f} % of a step of 100 ms")


if __name__ == "__main__":
  main()
