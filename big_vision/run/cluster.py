"""Connects the processes of a run."""

from collections.abc import Iterator
import contextlib
import dataclasses
import glob
import importlib.util
import os
import socket
import threading
import time

from absl import flags
import jax

from big_vision import config as config_lib
from big_vision.run import launchers

# The machines of a cluster may come up long after one another. The watchdog
# says more about a lost process than jax does, so jax's heartbeat waits longer
# than the watchdog. At the end of a run the processes wait for each other; an
# error in one of them ends all, see `command_line.exit_with_code`.
_TIMEOUTS = dict(initialization_timeout=1800, heartbeat_timeout_seconds=300,
                 shutdown_timeout_seconds=120)
# Seconds between lines that say that a process waits for others.
_SAY_EVERY_S = 60


def define_flags():
  """Defines the arguments of `start_processes` as command-line flags."""
  flags.DEFINE_string(
      "coordinator_address", None, "HOST:PORT of process 0; needed where the "
      "processes of a run are not detected automatically.")
  flags.DEFINE_integer("num_processes", None, "Number of processes.")
  flags.DEFINE_integer(
      "process_id", None, "Index of this process, from 0.")


def start_processes(
    coordinator_address: str | None = None, num_processes: int | None = None,
    process_id: int | None = None):
  """Connects the processes of a run, if there are several.

  `launchers.find_processes` says how they are found; a Cloud TPU detects its
  own, and a run on one machine needs no arguments. Call it before the first use
  of a device.

  Args:
    coordinator_address: "host:port" of process 0, reachable by all processes.
    num_processes: Number of processes; 1 runs this process alone, whatever the
      environment says.
    process_id: Index of this process, from 0.

  Raises:
    ConfigError: There are several processes, and the address of process 0, the
      number of processes or the index of this one is unknown; or this is
      process 0, and another program uses the port.
  """
  if not _has_tpu():
    _do_not_look_for_tpu()
  given = coordinator_address, num_processes, process_id
  # On a TPU, Kubernetes' variables describe the workers of one slice only.
  on_tpu = not any(value is not None for value in given) and _has_tpu()
  found = None if on_tpu else launchers.find_processes(os.environ, *given)
  if found is not None:
    # Connecting may wait for a process that never started, so say so first.
    print(f"Process {found.index} of {found.count} ({found.how}), process 0 is "
          f"at {found.address}.", flush=True)
    _use_gloo_on_cpu()
    if found.index == 0:
      _check_port(found.address)
    with _waiting_for(
        f"process 0 at {found.address}" if found.index else "the others"):
      jax.distributed.initialize(
          found.address, found.count, found.index, found.local_devices,
          cluster_detection_method="deactivate",
          # A run on one machine does not listen on the network: the coordinator
          # accepts every connection.
          coordinator_bind_address=(
              found.address if _is_local(found.address) else None),
          **_TIMEOUTS)
  elif on_tpu:
    try:
      jax.distributed.initialize(**_TIMEOUTS)
    except (ValueError, OSError) as error:  # A TPU without a cluster around it.
      print(f"Running on this TPU host alone: {error}", flush=True)


def _is_local(address: str) -> bool:
  return address.rpartition(":")[0] in ("127.0.0.1", "localhost")


def _check_port(address: str):
  """Raises ConfigError if process 0 cannot listen at `address`.

  jax would end the process with a segmentation fault.
  """
  port = int(address.rpartition(":")[2])
  # The port of all interfaces, unless jax listens on one.
  families = [(socket.AF_INET, "127.0.0.1" if _is_local(address) else "")]
  if not _is_local(address) and socket.has_dualstack_ipv6():
    families.append((socket.AF_INET6, ""))
  for family, host in families:
    with socket.socket(family) as trial:
      # Like jax, ignore connections of a run that has just ended.
      trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      try:
        trial.bind((host, port))
      except OSError as error:
        raise config_lib.ConfigError(
            f"Process 0 cannot listen at {address}: {error.strerror}. Give all "
            "processes another --coordinator_address=HOST:PORT, with a port "
            "that no other program uses.") from error


@contextlib.contextmanager
def _waiting_for(name: str) -> Iterator[None]:
  """Prints every minute that this process still waits."""
  done = threading.Event()
  start = time.monotonic()

  def say():
    while not done.wait(_SAY_EVERY_S):
      print(f"Still waiting for {name}, after "
            f"{time.monotonic() - start:.0f} s.", flush=True)
  threading.Thread(target=say, daemon=True).start()
  try:
    yield
  finally:
    done.set()


def _use_gloo_on_cpu():
  """Lets CPU processes exchange arrays, which jax cannot without gloo."""
  jax.config.update("jax_cpu_collectives_implementation", "gloo")


def _has_tpu() -> bool:
  """Returns whether this is a TPU VM, without starting the TPU runtime."""
  devices = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
  return bool(devices) and importlib.util.find_spec("libtpu") is not None


def _do_not_look_for_tpu():
  """Keeps jax from loading libtpu, which prints errors if there is no TPU.

  `tools.plan` needs it for its compiler, so it is installed on other machines.
  """
  def fail():
    raise RuntimeError("This machine has no TPU.")
  # jax has no public way to do this; if this one disappears, the errors return.
  with contextlib.suppress(ImportError, AttributeError, KeyError, TypeError):
    from jax._src import xla_bridge  # pylint: disable=g-import-not-at-top
    if not jax.config.jax_platforms:
      factories = xla_bridge._backend_factories  # pylint: disable=protected-access
      # The name stays: Pallas can only be imported where jax knows "tpu".
      factories["tpu"] = dataclasses.replace(
          factories["tpu"], factory=fail, fail_quietly=True)
