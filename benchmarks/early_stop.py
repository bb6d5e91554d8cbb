"""Measures what a trained Universal Transformer saves by stopping early.

  python -m benchmarks.early_stop --workdir workdirs/pvr_ut [--rounds 5]

Evaluates a finished run on the data of its first evaluator, with several batch
sizes: once with the loop that stops when all tokens of a batch have halted, and
once with the scan that always takes all steps. The slowest token of a batch
decides when the loop stops.
"""

import argparse

from benchmarks import timing
from big_vision import config as config_lib
from big_vision.run import pretrained
from big_vision import input_pipeline
from big_vision import sharding
from big_vision.models import universal_transformer
import jax
import numpy as np

_NUM_EXAMPLES = 512


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()

  config, variables = pretrained.read(
      args.workdir, ["params", "features"], "--workdir")
  if config.model.get("halting", "act") != "act":
    parser.error(f"The model of {args.workdir} never halts.")
  model = config_lib.call(
      universal_transformer.Model, config.model, "config.model",
      num_classes=config.num_classes)
  loop, scan = (jax.jit(model.clone(eval_loop=eval_loop).apply)
                for eval_loop in ("while", "scan"))
  evaluator = next(iter(config.evals.values()))
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  keys = config.get("model_inputs", ("image",))

  for batch_size in (1, 16, 128):
    batches = [
        [np.asarray(batch[key]) for key in keys] for batch, _ in zip(
            input_pipeline.make_evaluation(
                evaluator.data, evaluator.pp_fn, batch_size,
                sharding=sharding.batch_sharding(
                    mesh, sharding.make_rules(mesh, None))),
            range(_NUM_EXAMPLES // batch_size))]
    mean, executed = (
        np.mean([loop(variables, *inputs)[1]["measurements"][name]
                 for inputs in batches])
        for name in ("mean_steps", "executed_steps"))
    print(f"\nbatches of {batch_size}: mean steps {mean:.2f} of "
          f"{model.max_steps}, executed {executed:.2f}, a ratio of "
          f"{executed / model.max_steps:.3f}")

    def evaluate(fn):
      for inputs in batches:
        jax.block_until_ready(fn(variables, *inputs)[0])
    timing.report(timing.alternate({
        "stops early": lambda: evaluate(loop),
        "all steps": lambda: evaluate(scan)}, args.rounds))


if __name__ == "__main__":
  main()
