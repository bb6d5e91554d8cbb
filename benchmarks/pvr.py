"""Chains of pointers: a Transformer against a Universal Transformer.

  python -m benchmarks.pvr [--seeds 3] [--workdir workdirs/pvr]

Trains both models of `proj/pvr/configs/compositional.py` for each seed, one
after the other, and the second for half as many steps again at a higher price
of each of its steps in depth; tables of accuracy and of mean steps by hops at
the end, the mean over seeds and, in brackets, the least and the greatest.
Killed, it continues where it was.
"""

import argparse
import os

from benchmarks import runs
from big_vision.proj.pvr.configs import compositional
import numpy as np

PONDER = 0.05


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--workdir", default="workdirs/pvr")
  parser.add_argument("--total_steps", type=int, default=4_000)
  args = parser.parse_args()

  def path(name, seed):
    return os.path.join(args.workdir, f"{name}_{seed}")

  def train(name, seed, **arg):
    """The last measurements of a run of the config with these arguments."""
    arg = ",".join(f"{k}={v}" for k, v in dict(arg, seed=seed).items())
    return runs.train(f"{compositional.__file__}:{arg}", path(name, seed))[-1]

  rows = {
      name: [train(name, seed, model=name, total_steps=args.total_steps)
             for seed in range(args.seeds)]
      for name in compositional.MODELS}
  rows["ut_saving"] = [
      train("ut_saving", seed, model="ut", ponder=PONDER,
            total_steps=args.total_steps * 3 // 2, resume=path("ut", seed))
      for seed in range(args.seeds)]

  hops = range(1, compositional.TEST_HOPS + 1)
  print(f"| | {' | '.join(map(str, hops))} |\n|---|{'---|' * len(hops)}")
  for name, last in rows.items():
    for metric, what, style in (("prec@1", "accuracy", ".1%"),
                                ("num_steps", "steps", ".2f")):
      if f"test/{metric}/1" not in last[0]:
        continue
      cells = []
      for h in hops:
        values = [row[f"test/{metric}/{h}"] for row in last]
        cells.append(f"{np.mean(values):{style}} ({min(values):{style}} to "
                     f"{max(values):{style}})")
      print(f"| {name}, {what} | {' | '.join(cells)} |")


if __name__ == "__main__":
  main()
