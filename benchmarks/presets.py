"""Reports what each sharding preset keeps on a chip, by the TPU compiler.

  python -m benchmarks.presets [ViT-B/16 ViT-L/16 UT-B/16 Mixer-B/16 BiT-50]

Needs `pip install big_vision[plan]`, but no TPU. Each model's training step (as
in its ImageNet config, but with a batch of 1,024 and activations in bfloat16)
is compiled for a v5e:4x4 slice. Its 16 chips of 15.75 GiB form a mesh of 16 x
"data", or, for tp and fsdp_tp, 4 x "data", 4 x "model".

Parameters and optimizer state are the bytes of their shards; gradients are
float32 and sharded like parameters. Activations are the peak of the compiled
step's temporary memory, beside state and batch: what the backward pass needs,
gathered parameters, and the gradients that exist by then.
"""

import argparse
from typing import Any

import jax
import ml_collections

from big_vision import config as config_lib
from big_vision import sharding
from big_vision.configs import bit_i1k
from big_vision.configs import mlp_mixer_i1k
from big_vision.configs import vit_i1k
from big_vision.datasets.tfds import declared
from big_vision.hardware import targets
from big_vision.tools.planning import plans
from big_vision.tools.planning import remedies
from big_vision.tools.planning import sizes

TOPOLOGY = "v5e:4x4"
BATCH_SIZE = 1024


def _universal_transformer(arg: str) -> ml_collections.ConfigDict:
  """Returns ViT's config with one block of its size, applied 12 times."""
  config = vit_i1k.get_config(arg)
  config.model_name = "universal_transformer"
  config.model = dict(
      width=768, num_heads=12, max_steps=12, norm="pre", posemb="sincos2d",
      attention="fused")
  config.aux_losses = dict(ponder_cost=0.01)
  return config


MODELS = {
    "ViT-B/16": (vit_i1k.get_config, "variant=B/16"),
    "ViT-L/16": (vit_i1k.get_config, "variant=L/16"),
    "UT-B/16": (_universal_transformer, "variant=B/16"),
    "Mixer-B/16": (mlp_mixer_i1k.get_config, "variant=B/16"),
    "BiT-50": (bit_i1k.get_config, "depth=50"),
}


def make_config(model: str, preset: str) -> Any:
  """Returns the config of a model's training on ImageNet with a preset."""
  get_config, arg = MODELS[model]
  config = get_config(f"{arg},batch_size={BATCH_SIZE}")
  mesh = [("data", 4), ("model", 4)] if "tp" in preset else [("data", 16)]
  return remedies.with_values(config, {
      "model.dtype_mm": "bfloat16", "evals": {}, "mesh": mesh,
      "sharding_strategy": None, "sharding_preset": preset})


def row(
    model: str, preset: str, hardware: targets.Hardware) -> tuple[str, str]:
  """Returns a row of Markdown and, if it is empty, the reason for that."""
  head = f"| {model} | {preset} |"
  try:
    planned = plans.make_plan(
        config_lib.resolve(make_config(model, preset)), hardware)
  except plans.DoesNotFitError as error:
    return f"{head} does not fit | | | | | |", str(error)
  except config_lib.ConfigError as error:
    return f"{head} does not apply | | | | | |", str(error)
  program = planned.phases[-1].program  # These runs have one phase.
  entries = {name: on_device for name, _, on_device in
             sizes.entry_bytes(planned.built)}
  columns = [entries["params"], entries["params"], entries["opt"],
             program.peak_bytes - program.argument_bytes, program.peak_bytes]
  links = sum(c.bytes_on_links for c in program.collectives)
  return " ".join([head, *(f"{x / 2**20:,.0f} |" for x in columns),
                   f"{links / 1e9:.2f} |"]), ""


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("models", nargs="*", default=list(MODELS),
                      help=f"any of {list(MODELS)}")
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  hardware = targets.describe_topology(TOPOLOGY)
  print("| model | preset | parameters, MiB | gradients, MiB | optimizer, MiB "
        "| activations, MiB | peak, MiB | GB over the links |\n"
        "|---|---|---|---|---|---|---|---|")
  reasons = {}
  with declared.declared_if_missing():
    for model in args.models:
      for preset in sharding.PRESETS:
        text, reasons[model, preset] = row(model, preset, hardware)
        print(text, flush=True)
  print()
  for (model, preset), reason in reasons.items():
    if reason:
      print(f"{model}, {preset}: {reason}")


if __name__ == "__main__":
  main()
