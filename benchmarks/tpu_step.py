"""Reports the memory traffic of a ViT's training step, by the TPU compiler.

  python -m benchmarks.tpu_step [S/16 S/16-f32 B/16 B/16-fsdp L/16]

Needs `pip install big_vision[plan]`, but no TPU. Each step (ViT with gap,
sincos2d and rep_size, Adam with a bfloat16 first moment, softmax loss, norms)
is compiled for one slice, with attention "dense" and "fused". Bytes accessed
and peak memory are those of one chip. Ratios are to the step of
google-research's big_vision, compiled in the same way (jax 0.10.2, libtpu
0.0.42.1).
"""

import argparse
import time
from typing import NamedTuple

import jax

from big_vision.hardware import program as program_lib
from big_vision.hardware import targets
from big_vision import config as config_lib
from big_vision import sharding
from big_vision import state as state_lib
from big_vision.configs import vit_s16_i1k
from big_vision.task import Info
from big_vision.trainers import classification


class Case(NamedTuple):
  """A training step, with GB accessed and peak GB of the reference's step."""
  variant: str
  topology: str
  batch_size: int
  dtype: str
  strategy: str
  accessed: float
  peak: float


CASES = {
    "S/16": Case("S/16", "v5e:2x4", 1024, "bfloat16", "replicate", 63.5, 3.70),
    "S/16-f32": Case("S/16", "v5e:2x4", 1024, "float32", "replicate", 87.3,
                     5.96),
    "B/16": Case("B/16", "v5e:4x4", 1024, "bfloat16", "replicate", 57.4, 4.36),
    "B/16-fsdp": Case("B/16", "v5e:4x4", 1024, "bfloat16", "fsdp", 68.7, 5.07),
    "L/16": Case("L/16", "v5p:4x4x4", 4096, "bfloat16", "fsdp", 133., 10.7),
}


def compile_step(case: Case, attention: str) -> program_lib.Program:
  """Compiles the step of a case."""
  config = vit_s16_i1k.get_config()
  with config.unlocked():
    config.model = dict(
        variant=case.variant, rep_size=True, pool_type="gap",
        posemb="sincos2d", dtype_mm=case.dtype, attention=attention)
    config.grad_clip_norm = None
    del config.mixup
  config = config_lib.resolve(config)
  b = case.batch_size
  mesh = sharding.make_mesh(
      devices=targets.describe_topology(case.topology).devices)
  rules = sharding.make_rules(mesh, None)
  spec = {"image": jax.ShapeDtypeStruct((b, 224, 224, 3), "float32"),
          "labels": jax.ShapeDtypeStruct((b, 1000), "float32")}
  info = Info(total_steps=100_000, batch_size=b, data_size=1_281_167,
              batch_spec=spec, mesh=mesh)
  rng = jax.random.key(0)
  with sharding.use(mesh, rules):
    task = classification.make_task(config, info)
    shapes = state_lib.infer_shapes(task, info, rng)
    shardings = sharding.infer(shapes, [(".*", case.strategy)], mesh, rules)
    update = state_lib.make_update(task, rng, shardings, mesh)
    batch = state_lib.with_shardings(
        dict(info.batch_spec), jax.tree.map(
            lambda _: sharding.batch_sharding(mesh, rules),
            dict(info.batch_spec)))
    return program_lib.Program(update.lower(
        state_lib.with_shardings(shapes, shardings), {}, batch, ()).compile())


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("cases", nargs="*", default=list(CASES),
                      help=f"any of {list(CASES)}")
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  print("| step | attention | GB accessed | of the reference's | GB at the "
        "peak | of the reference's | collectives |\n|---|---|---|---|---|---|"
        "---|")
  for name in args.cases:
    case = CASES[name]
    for attention in ("dense", "fused"):
      start = time.perf_counter()
      program = compile_step(case, attention)
      accessed, peak = program.bytes_accessed / 1e9, program.peak_bytes / 1e9
      counts = {}
      for c in program.collectives:
        counts[c.kind] = counts.get(c.kind, 0) + c.count
      print(f"| {name}, batch {case.batch_size}, {case.dtype}, "
            f"{case.strategy}, {case.topology} | {attention} | "
            f"{accessed:.1f} | {accessed / case.accessed:.2f} | {peak:.2f} | "
            f"{peak / case.peak:.2f} | {counts} |", flush=True)
      del program
      print(f"<!-- compiled in {time.perf_counter() - start:.0f} s -->",
            flush=True)


if __name__ == "__main__":
  main()
