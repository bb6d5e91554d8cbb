"""Compares the images per second of evaluation and training.

  python -m benchmarks.evaluation [--rounds 5]

Runs the quickstart's model on its data: an epoch of training steps, and the
evaluator "classification" on the same images, with the input pipelines of a
run.
"""

import argparse

from benchmarks import bare
from benchmarks import timing
from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision.configs import quickstart


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()

  config = quickstart.get_config()
  with config.unlocked():
    config.evals.test.data.split = "train"
    del config.evals.samples
  config = config_lib.resolve(config)
  with bare.started(config) as (built, state, update, batches):
    evaluator, = build_lib.make_evaluators(config, built)
    steps = built.info.data_size // built.info.batch_size

    def train():
      nonlocal state
      for _ in range(steps):
        state, _, ok = update(state, {}, next(batches), ())
      bool(ok)

    timing.report(timing.alternate(
        {"evaluate": lambda: list(evaluator.run({**state, "frozen": {}})),
         "train": train}, args.rounds),
                  built.info.data_size, "images/s")


if __name__ == "__main__":
  main()
