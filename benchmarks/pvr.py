"""Chains of pointers: a Transformer against a Universal Transformer.

  python -m benchmarks.pvr [--seeds 3] [--workdir workdirs/pvr] [--arg ...]

Trains both models of `configs/proj/pvr/compositional.py` for each seed, one
after the other; tables of accuracy and of mean steps by hops at the end, the
mean over seeds and, in brackets, the least and the greatest. Killed, it
continues where it was.
"""

import argparse
import os

from benchmarks import runs
from big_vision.configs.proj.pvr import compositional
import numpy as np


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--workdir", default="workdirs/pvr")
  parser.add_argument("--arg", default="", help="of the config: total_steps=9")
  args = parser.parse_args()
  hops = range(1, compositional.TEST_HOPS + 1)
  lines = [f"| | {' | '.join(map(str, hops))} |",
           f"|---|{'---|' * len(hops)}"]
  for model in compositional.MODELS:
    last = [runs.train(
        f"{compositional.__file__}:model={model},seed={seed}"
        f"{args.arg and ',' + args.arg}",
        os.path.join(args.workdir, f"{model}_{seed}"))[-1]
            for seed in range(args.seeds)]
    for metric, what, style in (("prec@1", "accuracy", ".1%"),
                                ("num_steps", "steps", ".2f")):
      if f"test/{metric}/1" not in last[0]:
        continue
      cells = []
      for h in hops:
        values = [row[f"test/{metric}/{h}"] for row in last]
        cells.append(f"{np.mean(values):{style}} ({min(values):{style}} to "
                     f"{max(values):{style}})")
      lines.append(f"| {model}, {what} | {' | '.join(cells)} |")
  print("\n".join(lines))


if __name__ == "__main__":
  main()
