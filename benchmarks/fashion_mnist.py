"""Five architectures on Fashion-MNIST, trained with as much arithmetic each.

  python -m benchmarks.fashion_mnist [--epochs 2] [--workdir workdirs/models]

One after the other, then steps of all of them in turn for their speed; a table
at the end. Killed, it continues where it was.
"""

import argparse
import contextlib
import os
import statistics

from benchmarks import bare
from benchmarks import runs
from benchmarks import timing
from big_vision import config as config_lib
from big_vision.configs import fashion_mnist_models


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--epochs", type=float, default=2.0)
  parser.add_argument("--workdir", default="workdirs/models")
  parser.add_argument("--rounds", type=int, default=10)
  args = parser.parse_args()
  models = fashion_mnist_models.MODELS
  rows = {}
  for name in models:
    rows[name] = runs.train(
        f"{fashion_mnist_models.__file__}:model={name},epochs={args.epochs}",
        os.path.join(args.workdir, name))
  speeds = measure_speed(models, args.rounds)
  print("| model | test accuracy | parameters | MFLOP an image, training | "
        "steps | images/s, training |\n|---|---|---|---|---|---|")
  for name, (_, mflop, _) in models.items():
    first, last = rows[name][0], rows[name][-1]
    print(f"| {name} | {last['test/prec@1']:.2%} | {first['num_params']:,.0f} "
          f"| {mflop} | {last['step']:,} | {speeds[name]} |")


def measure_speed(models, rounds) -> dict[str, str]:
  """Images/s of each, with its range, all of them taking turns."""
  with contextlib.ExitStack() as stack:

    def make_step(name):
      config = config_lib.resolve(
          fashion_mnist_models.get_config(f"model={name}"))
      _, state, update, batches = stack.enter_context(bare.started(config))
      batch, frozen = next(batches), {}

      def step():
        nonlocal state
        state, _, ok = update(state, frozen, batch, ())
        bool(ok)
      return step, config.input.batch_size

    steps = {name: make_step(name) for name in models}
    seconds = timing.alternate(
        {name: step for name, (step, _) in steps.items()}, rounds)
  texts = {}
  for name, (_, batch_size) in steps.items():
    speed = sorted(batch_size / s for s in seconds[name])
    texts[name] = (f"{statistics.median(speed):,.0f} "
                   f"({speed[0]:,.0f} to {speed[-1]:,.0f})")
  return texts


if __name__ == "__main__":
  main()
