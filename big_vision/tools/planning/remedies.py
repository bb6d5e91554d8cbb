"""Lists changes of a config that may make its step fit into memory."""

import copy
from typing import Any

import ml_collections


def list_remedies(
    config: ml_collections.ConfigDict) -> list[tuple[str, dict[str, Any]]]:
  """Lists changes that may make a step fit, the mildest first.

  Returns:
    (description, {key: new value}); changes that have no effect on this config,
    or the same effect as an earlier one, are left out.
  """
  fsdp = {"sharding_strategy": None, "sharding_preset": "fsdp"}
  found = [("sharding_preset='fsdp'", fsdp)]
  if config.get("model_name") == "vit":
    remat = {"model.scan": True, "model.remat_policy": "nothing_saveable"}
    found += [("model.scan=True, model.remat_policy='nothing_saveable'", remat),
              ("both of these", {**fsdp, **remat})]
  for steps in (2, 4, 8):
    found.append((f"fsdp and grad_accum_steps={steps}",
                  {**fsdp, "grad_accum_steps": steps}))

  def outcome(values):
    return {key: value for key, value in with_values(config, values).items()
            if value is not None}
  seen, new = [outcome({})], []
  for description, values in found:
    if (after := outcome(values)) not in seen:
      seen.append(after)
      new.append((description, values))
  return new


def with_values(
    config: ml_collections.ConfigDict,
    values: dict[str, Any]) -> ml_collections.ConfigDict:
  """Returns a copy of a config in which some values are replaced.

  Args:
    config: Any config.
    values: {key: new value}; dots in a key lead into nested configs, which must
      exist.
  """
  config = copy.deepcopy(config)
  with config.unlocked():
    for path, value in values.items():
      *parents, key = path.split(".")
      place = config
      for parent in parents:
        place = place[parent]
      place[key] = value
  return config
