"""Describes the hardware to plan for: a TPU slice or simulated devices."""

import math
import os
from typing import NamedTuple

import jax

from big_vision import config as config_lib
from big_vision.hardware import chips


class Hardware(NamedTuple):
  """Devices that a program is compiled for.

  Attributes:
    name: Short description, such as "v5e:16x16" or "8 x h100".
    devices: jax devices to compile for; those of a TPU slice need not exist.
    chip: Data sheet of one device, or None if there is none.
    num_hosts: Number of hosts that the devices are attached to.
    is_target: Whether programs are compiled by this hardware's own compiler, so
      that memory and traffic are those of the run.
  """
  name: str
  devices: list
  chip: chips.Chip | None
  num_hosts: int
  is_target: bool


def describe_topology(topology: str, num_slices: int = 1) -> Hardware:
  """Describes TPU slices, which need not be attached.

  Args:
    topology: Chip and shape of a slice, such as "v5e:4x4".
    num_slices: Number of such slices.

  Raises:
    ConfigError: Libtpu is not installed, or does not know the topology.
  """
  from jax.experimental import topologies
  # libtpu asks for settings that a TPU VM would provide. The chips are only
  # described, never used, so several processes may load the library at once.
  for name, value in (
      ("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost"),
      ("TPU_ACCELERATOR_TYPE", "v5litepod-1"),
      ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")):
    os.environ.setdefault(name, value)
  chip = chips.by_name(topology.partition(":")[0])
  options = dict(num_slices=num_slices) if num_slices > 1 else {}
  try:
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, **options).devices
  except Exception as error:  # The plugin's errors have no common type.
    raise config_lib.ConfigError(
        f"The topology {topology!r} is not available: {error} It needs `pip "
        "install big_vision[plan]` and a name such as v5e:4x4 or "
        "v5p:4x4x4.") from error
  return Hardware(
      name=f"{num_slices} x {topology}" if num_slices > 1 else topology,
      devices=list(devices), chip=chip,
      num_hosts=len({device.process_index for device in devices}),
      is_target=True)


def describe_devices(count: int, chip: str) -> Hardware:
  """Describes simulated CPU devices that stand for chips of another kind.

  Args:
    count: Number of devices; a host is assumed to have 8.
    chip: Name of the chip they stand for, one of `chips.CHIPS`, or "cpu".

  Raises:
    ConfigError: The chip is unknown, or jax already runs with fewer devices.
  """
  data_sheet = None if chip == "cpu" else chips.by_name(chip)
  try:
    jax.config.update("jax_num_cpu_devices", count)
  except RuntimeError:
    pass  # jax has started, as in tests; it may have enough devices.
  devices = jax.devices("cpu")[:count]
  if len(devices) < count:
    raise config_lib.ConfigError(
        f"The plan needs {count} simulated devices, but jax has only "
        f"{len(devices)}: unset XLA_FLAGS.")
  return Hardware(
      name=f"{count} x {chip}", devices=devices, chip=data_sheet,
      num_hosts=math.ceil(count / 8), is_target=chip == "cpu")
