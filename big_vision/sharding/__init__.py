"""Decides how arrays are split over devices, and places them.

A mesh (`mesh.py`) arranges the devices along named axes. Two settings of the
config say what is split over these axes:

- `sharding_strategy` splits what is stored: parameters, optimizer state and
  averages, chosen by regexes on their names (`strategy.py`);
- `sharding_rules` splits what is computed: activations and batches, chosen by
  the logical names that models give to their axes (`rules.py`).

`sharding_preset` names common choices of both (`rules.py`). `placement.py`
moves arrays to where these settings put them.
"""

from big_vision.sharding.mesh import DEFAULT_MESH, make_mesh, use
from big_vision.sharding.placement import (
    batch_sharding, check_divides, num_shards, put, replicated)
from big_vision.sharding.rules import (
    PRESETS, default_rules, make_rules, preset_rules, preset_strategy)
from big_vision.sharding.strategy import DEFAULT_STRATEGY, infer

__all__ = [
    "DEFAULT_MESH", "DEFAULT_STRATEGY", "PRESETS", "batch_sharding",
    "check_divides", "default_rules", "infer", "make_mesh", "make_rules",
    "num_shards", "preset_rules", "preset_strategy", "put", "replicated",
    "use"]
