"""Finds the processes of a run and connects them."""

from collections.abc import Mapping
import glob
import importlib.util
import os
import re
from typing import NamedTuple
import zlib

from absl import flags
from absl import logging
import jax

from big_vision import config as config_lib

# The machines of a cluster may come up long after one another. The watchdog
# says more about a lost process than jax does, so jax's heartbeat waits longer
# than the watchdog. At the end of a run the processes wait for each other; an
# error in one of them ends all, see `command_line.exit_with_code`.
_TIMEOUTS = dict(initialization_timeout=1800, heartbeat_timeout_seconds=300,
                 shutdown_timeout_seconds=120)


def define_flags():
  """Defines the arguments of `start_processes` as command-line flags."""
  flags.DEFINE_string(
      "coordinator_address", None, "HOST:PORT of process 0; needed where the "
      "processes of a run are not detected automatically.")
  flags.DEFINE_integer("num_processes", None, "Number of processes.")
  flags.DEFINE_integer(
      "process_id", None, "Index of this process, from 0.")


class Processes(NamedTuple):
  """The processes of a run, as seen by one of them.

  Attributes:
    address: "host:port" of process 0.
    count: Number of processes.
    index: Index of this process, from 0.
    local_devices: Indices of the GPUs that this process uses; None for all.
    how: Where this is known from, for the message.
  """
  address: str | None
  count: int
  index: int
  local_devices: list[int] | None
  how: str


def start_processes(
    coordinator_address: str | None = None, num_processes: int | None = None,
    process_id: int | None = None):
  """Connects the processes of a run, if there are several.

  `find_processes` says how they are found; a Cloud TPU detects its own, and a
  run on one machine needs no arguments. Must be called before the first use of
  a device.

  Args:
    coordinator_address: "host:port" of process 0, reachable by all processes.
    num_processes: Number of processes; 1 runs this process alone, whatever the
      environment says.
    process_id: Index of this process, from 0.

  Raises:
    ConfigError: there are several processes, and the address of process 0, the
      number of processes or the index of this one is unknown.
  """
  # The libraries below print every step they take.
  logging.set_verbosity(logging.WARNING)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  given = coordinator_address, num_processes, process_id
  # On a TPU, Kubernetes' variables describe the workers of one slice only.
  on_tpu = not any(value is not None for value in given) and _has_tpu()
  found = None if on_tpu else find_processes(os.environ, *given)
  if found is not None:
    # Connecting may wait for a process that never started, so say so first.
    print(f"Process {found.index} of {found.count} ({found.how}), process 0 is "
          f"at {found.address}.", flush=True)
    _use_gloo_on_cpu()
    host, _, port = found.address.rpartition(":")
    jax.distributed.initialize(
        found.address, found.count, found.index, found.local_devices,
        cluster_detection_method="deactivate",
        # A run on one machine does not listen on the network: the coordinator
        # accepts every connection.
        coordinator_bind_address=(
            f"{host}:{port}" if host in ("127.0.0.1", "localhost") else None),
        **_TIMEOUTS)
  elif on_tpu:
    try:
      jax.distributed.initialize(**_TIMEOUTS)
    except (ValueError, OSError) as error:  # A TPU without a cluster around it.
      print(f"Running on this TPU host alone: {error}", flush=True)


def find_processes(
    environ: Mapping[str, str], address: str | None = None,
    count: int | None = None, index: int | None = None) -> Processes | None:
  """Finds the processes of a run, from arguments and environment variables.

  Arguments come first, then JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID (or JOB_COMPLETION_INDEX, which Kubernetes sets in the pods of
  an indexed job), then the variables of Open MPI and SLURM. jax detects these
  launchers too, but it uses one GPU a process even where a host runs a single
  process, needs permission to ask Kubernetes about pods, and does not know
  Open MPI 5.

  Args:
    environ: Environment variables.
    address: "host:port" of process 0.
    count: Number of processes.
    index: Index of this process, from 0.

  Returns:
    None for a process that runs alone.

  Raises:
    ConfigError: something is missing or invalid; says which flags to give.
  """
  address = address or environ.get("JAX_COORDINATOR_ADDRESS")
  if count is None and "JAX_NUM_PROCESSES" in environ:
    count = int(environ["JAX_NUM_PROCESSES"])
  if index is None:
    text = environ.get("JAX_PROCESS_ID", environ.get("JOB_COMPLETION_INDEX"))
    index = None if text is None else int(text)
  if count == 1:
    return None

  started = _started_by(environ)
  if started is None and address is None and count is None:
    if not index:
      return None
  elif started is not None:
    address = address or started.address
    count = started.count if count is None else count
    index = started.index if index is None else index
  missing = [flag for flag, value in (
      ("--coordinator_address=HOST:PORT", address), ("--num_processes", count),
      ("--process_id", index)) if value is None]
  if missing:
    raise config_lib.ConfigError(
        f"This is {'a process' if index is None else f'process {index}'} of "
        f"several, but the environment does not say {', '.join(missing)}. Give "
        "all of --coordinator_address=HOST:PORT (of process 0, any free port), "
        "--num_processes and --process_id, or --num_processes=1 to run this "
        "process alone.")
  if not 0 <= index < count or not re.fullmatch(r".+:\d+", address):
    raise config_lib.ConfigError(
        f"There is no process {index} of {count} with process 0 at {address!r};"
        " --process_id counts from 0, --coordinator_address is HOST:PORT.")
  return Processes(
      address=address, count=count, index=index,
      local_devices=started and started.local_devices,
      how=started.how if started else "from flags or JAX_* variables")


def _started_by(environ: Mapping[str, str]) -> Processes | None:
  """Reads the variables that Open MPI or SLURM set in a process they start."""
  if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
    return _started_by_open_mpi(environ)
  # The variables of a step, which srun makes. Those of the job are also set in
  # a shell from salloc and in a batch script, each of which runs once.
  if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
    return _started_by_slurm(environ)
  if int(environ.get("SLURM_NTASKS", 1)) > 1:
    print(f"SLURM has given {environ['SLURM_NTASKS']} tasks, and this process "
          "was not started by srun: it runs alone.", flush=True)
  return None


def _started_by_open_mpi(environ: Mapping[str, str]) -> Processes:
  size = int(environ["OMPI_COMM_WORLD_SIZE"])
  local_size = int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
  # Open MPI 4 says where mpirun runs, and starts process 0 there. Version 5
  # does not, so only a run on a single host has a known address.
  where = re.search(
      r"tcp6?://\[?([^,:\]]+)", environ.get("OMPI_MCA_orte_hnp_uri", ""))
  host = where.group(1) if where else None
  if local_size == size:
    host = "127.0.0.1"
  job = environ.get("OMPI_MCA_orte_hnp_uri", environ.get("PMIX_NAMESPACE", ""))
  local_index = int(environ.get("OMPI_COMM_WORLD_LOCAL_RANK", 0))
  return Processes(
      address=host and _with_port(host, job), count=size,
      index=int(environ["OMPI_COMM_WORLD_RANK"]),
      local_devices=_local_devices(environ, local_index, local_size),
      how="started by Open MPI")


def _started_by_slurm(environ: Mapping[str, str]) -> Processes:
  # The first node of "node1", "node1,node2" or "node[01-04,7],other".
  first = re.match(r"([^,\[]+)(?:\[(\w+))?", environ["SLURM_STEP_NODELIST"])
  job = f"{environ['SLURM_JOB_ID']}.{environ.get('SLURM_STEP_ID')}"
  # Tasks of each node in turn, written as "4" or "2(x3),1".
  tasks = [int(count) for count, times in re.findall(
      r"(\d+)(?:\(x(\d+)\))?", environ["SLURM_STEP_TASKS_PER_NODE"])
           for _ in range(int(times or 1))]
  return Processes(
      address=_with_port("".join(filter(None, first.groups())), job),
      count=int(environ["SLURM_STEP_NUM_TASKS"]),
      index=int(environ["SLURM_PROCID"]),
      local_devices=_local_devices(
          environ, int(environ["SLURM_LOCALID"]),
          tasks[int(environ["SLURM_NODEID"])]),
      how="started by SLURM")


def _with_port(host: str, job: str) -> str:
  """Adds a port: the same in all processes of a job, and most likely free."""
  return f"{host}:{61440 + zlib.crc32(job.encode()) % 4096}"


def _local_devices(
    environ: Mapping[str, str], local_index: int, local_count: int
) -> list[int] | None:
  """Returns the GPU of one of several processes on a host; None for all."""
  visible = environ.get("CUDA_VISIBLE_DEVICES")
  if local_count == 1:
    return None
  # The launcher has already given each process a GPU of its own.
  if visible is not None and "," not in visible:
    return None
  return [local_index]


def _use_gloo_on_cpu():
  """Lets CPU processes exchange arrays, which jax cannot without gloo."""
  jax.config.update("jax_cpu_collectives_implementation", "gloo")


def _has_tpu() -> bool:
  """Returns whether this is a TPU VM, without starting the TPU runtime."""
  devices = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
  return bool(devices) and importlib.util.find_spec("libtpu") is not None
