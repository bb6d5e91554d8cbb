"""What accelerators can do, by their makers' data sheets.

Read when a run is planned (`tools/plan.py`) and when its MFU is measured.
"""

import re
from typing import NamedTuple

from big_vision import config as config_lib


class Chip(NamedTuple):
  """One accelerator, as JAX counts devices.

  Attributes:
    flops: dense bfloat16 operations per second.
    memory: bytes a program can use.
    bandwidth: bytes per second to that memory.
    links: bytes per second to other chips, one direction, all links together.
    kinds: regex of what JAX calls it (`device.device_kind`).
  """
  flops: float
  memory: float
  bandwidth: float
  links: float
  kinds: str


# Cloud TPU's system architecture pages and Nvidia's data sheets (SXM boards).
# Of a TPU's memory a part is the runtime's: 15.75 of 16 GiB are left of a v5e.
CHIPS = {
    "v4": Chip(275e12, 30.75 * 2 ** 30, 1.228e12, 300e9, r"TPU v4"),
    "v5e": Chip(197e12, 15.75 * 2 ** 30, 0.819e12, 200e9,
                r"TPU v5 ?(lite|e)"),
    "v5p": Chip(459e12, 95.0e9, 2.765e12, 600e9, r"TPU v5p?"),
    "v6e": Chip(918e12, 31.25 * 2 ** 30, 1.638e12, 400e9,
                r"TPU v6 ?(lite|e)"),
    "a100": Chip(312e12, 80e9, 2.039e12, 300e9, r".*A100.*80GB.*"),
    "h100": Chip(989e12, 80e9, 3.35e12, 450e9, r".*H100.*"),
    "h200": Chip(989e12, 141e9, 4.8e12, 450e9, r".*H200.*"),
}


def by_name(name: str) -> Chip:
  """The chip of that name; ConfigError lists the names."""
  if name not in CHIPS:
    raise config_lib.ConfigError(
        f"Unknown chip {name!r}{config_lib.nearest(name, CHIPS)}; use one of "
        f"{sorted(CHIPS)}.")
  return CHIPS[name]


def of_device(device_kind: str) -> Chip | None:
  """The chip that JAX calls so, or None if it is not known here."""
  return next((chip for chip in CHIPS.values()
               if re.fullmatch(chip.kinds, device_kind)), None)
