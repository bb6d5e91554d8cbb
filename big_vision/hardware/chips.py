"""Peak rates and memory of accelerators, from their makers' data sheets.

Plans (`tools/plan.py`) and measurements of MFU use them.
"""

import re
from typing import NamedTuple

from big_vision import config as config_lib


class Chip(NamedTuple):
  """Data sheet of one accelerator, as JAX counts devices.

  Attributes:
    flops: Dense bfloat16 operations per second.
    memory: Bytes that a program can use.
    bandwidth: Bytes per second between the chip and its memory.
    links: Bytes per second to other chips, one direction, all links together.
    kinds: Regular expression that matches its `jax.Device.device_kind`.
  """
  flops: float
  memory: float
  bandwidth: float
  links: float
  kinds: str


# Sources: Cloud TPU's system architecture pages, Nvidia's data sheets (SXM).
# The TPU runtime keeps a part of the memory: programs can use 15.75 of the
# 16 GiB of a v5e.
CHIPS = {
    "v4": Chip(
        flops=275e12, memory=30.75 * 2 ** 30, bandwidth=1.228e12, links=300e9,
        kinds=r"TPU v4"),
    "v5e": Chip(
        flops=197e12, memory=15.75 * 2 ** 30, bandwidth=0.819e12, links=200e9,
        kinds=r"TPU v5 ?(lite|e)"),
    "v5p": Chip(
        flops=459e12, memory=95.0e9, bandwidth=2.765e12, links=600e9,
        kinds=r"TPU v5p?"),
    "v6e": Chip(
        flops=918e12, memory=31.25 * 2 ** 30, bandwidth=1.638e12, links=400e9,
        kinds=r"TPU v6 ?(lite|e)"),
    "a100": Chip(
        flops=312e12, memory=80e9, bandwidth=2.039e12, links=300e9,
        kinds=r".*A100.*80GB.*"),
    "h100": Chip(
        flops=989e12, memory=80e9, bandwidth=3.35e12, links=450e9,
        kinds=r".*H100.*"),
    "h200": Chip(
        flops=989e12, memory=141e9, bandwidth=4.8e12, links=450e9,
        kinds=r".*H200.*"),
}


def by_name(name: str) -> Chip:
  """Returns the data sheet of a chip.

  Raises:
    ConfigError: The name is unknown.
  """
  if name not in CHIPS:
    raise config_lib.ConfigError(
        f"Unknown chip {name!r}{config_lib.nearest(name, CHIPS)}; use one of "
        f"{sorted(CHIPS)}.")
  return CHIPS[name]


def of_device(device_kind: str) -> Chip | None:
  """Returns the data sheet of a `jax.Device.device_kind`; None if unknown."""
  return next((chip for chip in CHIPS.values()
               if re.fullmatch(chip.kinds, device_kind)), None)
