"""Five architectures on Fashion-MNIST, trained with as much arithmetic each.

  python -m benchmarks.fashion_mnist [--epochs 2] [--workdir workdirs/models]

One after the other; a table at the end. Killed, it continues where it was.
"""

import argparse
import os
import statistics

from benchmarks import runs
from big_vision.configs import fashion_mnist_models


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--epochs", type=float, default=2.0)
  parser.add_argument("--workdir", default="workdirs/models")
  args = parser.parse_args()
  lines = ["| model | test accuracy | parameters | MFLOP an image, training | "
           "steps | images/s |", "|---|---|---|---|---|---|"]
  for name, (_, mflop, _) in fashion_mnist_models.MODELS.items():
    rows = runs.train(
        f"{fashion_mnist_models.__file__}:model={name},epochs={args.epochs}",
        os.path.join(args.workdir, name))
    speed = statistics.median(
        row["img/sec"] for row in rows if "img/sec" in row)
    lines.append(
        f"| {name} | {rows[-1]['test/prec@1']:.2%} "
        f"| {rows[0]['num_params']:,.0f} | {mflop} | {rows[-1]['step']:,} "
        f"| {speed:,.0f} |")
  print("\n".join(lines))


if __name__ == "__main__":
  main()
