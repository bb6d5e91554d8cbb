"""Finds the processes of a run: from flags, or from a launcher's variables."""

from collections.abc import Mapping
import re
from typing import NamedTuple
import zlib

from big_vision import config as config_lib


class Processes(NamedTuple):
  """The processes of a run, as seen by one of them.

  Attributes:
    address: "host:port" of process 0.
    count: Number of processes.
    index: Index of this process, from 0.
    local_devices: Indices of the GPUs that this process uses; None for all.
    how: Source of this information, for the message.
  """
  address: str | None
  count: int
  index: int
  local_devices: list[int] | None
  how: str


def find_processes(
    environ: Mapping[str, str], address: str | None = None,
    count: int | None = None, index: int | None = None) -> Processes | None:
  """Finds the processes of a run, from arguments and environment variables.

  Arguments come first, then JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID (or JOB_COMPLETION_INDEX, which Kubernetes sets in the pods of
  an indexed job), then the variables of Open MPI and SLURM. jax detects these
  launchers too, but it uses one GPU per process even if a host runs a single
  process, needs permission to ask Kubernetes about pods, and does not know Open
  MPI 5.

  Args:
    environ: Environment variables.
    address: "host:port" of process 0.
    count: Number of processes.
    index: Index of this process, from 0.

  Returns:
    None for a process that runs alone.

  Raises:
    ConfigError: Something is missing or invalid; the error says which flags to
      give.
  """
  address = address or environ.get("JAX_COORDINATOR_ADDRESS")
  if count is None:
    count = _number(environ, "JAX_NUM_PROCESSES")
  for name in "JAX_PROCESS_ID", "JOB_COMPLETION_INDEX":
    index = _number(environ, name) if index is None else index
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
  found = re.fullmatch(r".+:(\d{1,5})", address)
  if not 0 <= index < count or not found or not 0 < int(found[1]) < 65536:
    raise config_lib.ConfigError(
        f"There is no process {index} of {count} with process 0 at {address!r};"
        " --process_id counts from 0, --coordinator_address is HOST:PORT.")
  return Processes(
      address=address, count=count, index=index,
      local_devices=started and started.local_devices,
      how=started.how if started else "from flags or JAX_* variables")


def _number(environ: Mapping[str, str], name: str) -> int | None:
  """Returns the number that a variable holds; None if it is not set."""
  try:
    return int(environ[name]) if name in environ else None
  except ValueError as error:
    raise config_lib.ConfigError(
        f"The variable {name} is {environ[name]!r}; it must be a number."
    ) from error


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
