"""Starting and stopping: processes, clusters, signals, exit codes."""

from collections.abc import Iterator, Mapping
import contextlib
import fcntl
import glob
import importlib.util
import os
import re
import signal
import socket
import sys
import tempfile
import time
import traceback
from typing import NamedTuple
import zlib

from absl import flags
from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from big_vision import config as config_lib
from big_vision.run import watchdog

# What the shell sees when a run ends; documented in the README.
EXIT_DONE = 0
EXIT_ERROR = 1
EXIT_CONFIG = 2
EXIT_NON_FINITE = 3
EXIT_HUNG = watchdog.EXIT_HUNG
EXIT_STORAGE = 5
EXIT_DATA = 6
EXIT_INTERRUPTED = 130
EXIT_PREEMPTED = 143

# Machines of a cluster may come up long after each other. jax's own watch over
# processes comes after that of `watchdog`, which says more. Those that end well
# wait for each other; those with an error end all, see `exit_codes`.
_TIMEOUTS = dict(initialization_timeout=1800, heartbeat_timeout_seconds=300,
                 shutdown_timeout_seconds=120)


class Interrupted(Exception):
  """The run was asked to stop, saved its state and stopped."""

  def __init__(self, step: int, exit_code: int):
    super().__init__(
        f"Stopped on request after step {step}; the state is saved. The same "
        "command continues.")
    self.exit_code = exit_code


def say(message: str):
  """Prints on the first process only: the console belongs to people."""
  if jax.process_index() == 0:
    print(message, flush=True)


def define_flags():
  """The arguments of `start_processes`, for programs of several processes."""
  flags.DEFINE_string(
      "coordinator_address", None, "HOST:PORT of process 0, where several "
      "processes are not detected by themselves.")
  flags.DEFINE_integer("num_processes", None, "How many processes there are.")
  flags.DEFINE_integer("process_id", None, "Which process this is, from 0.")


class Processes(NamedTuple):
  """The processes of a run as one of them sees them.

  Attributes:
    address: "host:port" of process 0.
    count: how many there are.
    index: which one this is, from 0.
    local_devices: indices of the GPUs that this one uses; None for all.
    how: what told so.
  """
  address: str
  count: int
  index: int
  local_devices: list[int] | None
  how: str


def start_processes(
    coordinator_address: str | None = None, num_processes: int | None = None,
    process_id: int | None = None):
  """Connects the processes of a run, if there are several.

  See `find_processes` for who they are. A Cloud TPU knows its own. One machine
  needs nothing. Must run before the first use of a device.

  Args:
    coordinator_address: "host:port" of process 0, reachable by all.
    num_processes: how many processes there are; 1 for this one alone, whatever
      the environment says.
    process_id: which one this is, from 0.

  Raises:
    ConfigError: there are several and it is not said where the first is.
  """
  # The libraries below tell every step of what they do.
  logging.set_verbosity(logging.WARNING)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  given = coordinator_address, num_processes, process_id
  # On a TPU, Kubernetes' variables tell of its workers, not of all slices.
  on_tpu = not any(value is not None for value in given) and _has_tpu()
  found = None if on_tpu else find_processes(os.environ, *given)
  if found is not None:
    # The first thing that can wait: for whoever did not start.
    print(f"Process {found.index} of {found.count} ({found.how}), process 0 is "
          f"at {found.address}.", flush=True)
    _use_gloo_on_cpu()
    host, _, port = found.address.rpartition(":")
    jax.distributed.initialize(
        found.address, found.count, found.index, found.local_devices,
        cluster_detection_method="deactivate",
        # Not to the network what stays on this machine: nobody has to log in.
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
  """The processes of a run, of arguments and environment variables.

  What is not given is taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID (or JOB_COMPLETION_INDEX, of which Kubernetes gives every pod
  of an indexed job another), else from what Open MPI and SLURM tell those that
  they start. jax detects these too; it is done here because jax takes one GPU
  a process also where there is one process on a host, needs the right to ask
  Kubernetes about pods, and does not know Open MPI 5.

  Args:
    environ: environment variables.
    address: "host:port" of process 0.
    count: how many processes there are.
    index: which one this is, from 0.

  Returns:
    None for a process that is alone.

  Raises:
    ConfigError: something is missing or cannot be; says what to give.
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
        f"several, and {', '.join(missing)} cannot be told from the "
        "environment: give all of --coordinator_address=HOST:PORT (of process "
        "0, any free port), --num_processes and --process_id, or "
        "--num_processes=1 for a run of this process alone.")
  if not 0 <= index < count or not re.fullmatch(r".+:\d+", address):
    raise config_lib.ConfigError(
        f"There is no process {index} of {count} with process 0 at {address!r};"
        " --process_id counts from 0, --coordinator_address is HOST:PORT.")
  return Processes(
      address, count, index, started and started.local_devices,
      started.how if started else "as told")


def _started_by(environ: Mapping[str, str]) -> Processes | None:
  """What Open MPI or SLURM tells one of several processes it started."""
  if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
    size = int(environ["OMPI_COMM_WORLD_SIZE"])
    local_size = int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
    # Open MPI 4 tells where mpirun runs, which is where it starts process 0; of
    # version 5 only a single host can be known.
    where = re.search(
        r"tcp6?://\[?([^,:\]]+)", environ.get("OMPI_MCA_orte_hnp_uri", ""))
    host = where.group(1) if where else None
    if local_size == size:
      host = "127.0.0.1"
    job = environ.get(
        "OMPI_MCA_orte_hnp_uri", environ.get("PMIX_NAMESPACE", ""))
    local_index = int(environ.get("OMPI_COMM_WORLD_LOCAL_RANK", 0))
    return Processes(
        host and _with_port(host, job), size,
        int(environ["OMPI_COMM_WORLD_RANK"]),
        _local_devices(environ, local_index, local_size), "started by Open MPI")
  # Of a step, which srun makes: the job's own variables are also there in a
  # shell that salloc gave, and in a batch script, which run once.
  if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
    # "node1", "node1,node2", "node[01-04,7],other": the first of them.
    first = re.match(r"([^,\[]+)(?:\[(\w+))?", environ["SLURM_STEP_NODELIST"])
    job = f"{environ['SLURM_JOB_ID']}.{environ.get('SLURM_STEP_ID')}"
    # "4", "2(x3),1": of the nodes in turn.
    tasks = [int(count) for count, times in re.findall(
        r"(\d+)(?:\(x(\d+)\))?", environ["SLURM_STEP_TASKS_PER_NODE"])
             for _ in range(int(times or 1))]
    return Processes(
        _with_port("".join(filter(None, first.groups())), job),
        int(environ["SLURM_STEP_NUM_TASKS"]), int(environ["SLURM_PROCID"]),
        _local_devices(environ, int(environ["SLURM_LOCALID"]),
                       tasks[int(environ["SLURM_NODEID"])]), "started by SLURM")
  if int(environ.get("SLURM_NTASKS", 1)) > 1:
    print(f"SLURM has given {environ['SLURM_NTASKS']} tasks, and this process "
          "was not started by srun: it runs alone.", flush=True)
  return None


def _with_port(host: str, job: str) -> str:
  """The same port for all processes of a job, most likely free."""
  return f"{host}:{61440 + zlib.crc32(job.encode()) % 4096}"


def _local_devices(environ, local_index: int, local_count: int):
  """GPUs of one of several processes on a host: one each; alone: all."""
  visible = environ.get("CUDA_VISIBLE_DEVICES")
  if local_count == 1:
    return None
  # The launcher has given each its own already.
  if visible is not None and "," not in visible:
    return None
  return [local_index]


def check_workdir(workdir: str):
  """Makes `workdir`; raises ConfigError if it cannot be written to."""
  try:
    os.makedirs(workdir, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except OSError as error:
    raise config_lib.ConfigError(
        f"--workdir {workdir} cannot be written to: {error}.") from error


@contextlib.contextmanager
def lock_workdir(workdir: str) -> Iterator[None]:
  """Holds `workdir` for this run: two in one would mix their checkpoints.

  The first process holds it; the lock ends with the process, however that ends.
  Storage that is no file system (gs://) knows no locks, and is not locked.

  Raises:
    ConfigError: another run holds it; says which.
  """
  if process_index() > 0 or "://" in workdir:
    yield
    return
  path = os.path.join(workdir, "lock")
  # Not "w": that would empty the file of the one who holds it.
  with open(path, "a+", encoding="utf-8") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      raise config_lib.ConfigError(
          f"--workdir {workdir} is in use by another run, {file.read().strip()}"
          ". Wait for it, stop it, or use another --workdir.") from error
    except OSError as error:  # Some network file systems.
      print(f"{path} cannot be locked ({error}): nothing else keeps a second "
            "run out of this workdir.", flush=True)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, started "
               f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}\n")
    file.flush()
    yield


def process_index() -> int:
  """Like `jax.process_index()`, but does not start the devices."""
  return watchdog.this_process()[0]


def _use_gloo_on_cpu():
  """CPU processes talk through gloo; without it their arrays stay apart."""
  jax.config.update("jax_cpu_collectives_implementation", "gloo")


def _has_tpu() -> bool:
  """Whether this is a TPU VM, without starting the TPU runtime."""
  devices = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
  return bool(devices) and importlib.util.find_spec("libtpu") is not None


class _Abandoned(BaseException):
  """What is being done is given up; no `except Exception` holds it up."""


class Interrupts:
  """Turns SIGTERM and Ctrl-C into a question the loop asks every step.

  With several processes, jax's coordination service makes all of them stop
  after the same step. A second signal ends a single process at once.
  """

  def __init__(self):
    self._signal = None
    self._exit_code = None
    self._may_abandon = False
    self._several = jax.process_count() > 1
    if self._several:
      # jax listens for SIGTERM itself, and tells the other processes.
      signal.signal(signal.SIGINT, lambda *_: os.kill(
          os.getpid(), signal.SIGTERM))
    else:
      for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, self._remember)

  def _remember(self, number, frame):
    del frame
    self._signal = number
    signal.signal(number, signal.SIG_DFL)
    if self._may_abandon:
      raise _Abandoned

  def exit_code(self, step: int) -> int | None:
    """The exit code if the run is to stop after `step`; all agree."""
    if self._several and self._exit_code is None:
      # The steps, without gaps: it stops at a number that must come, and orbax
      # tells it the numbers of steps too.
      if multihost_utils.reached_preemption_sync_point(step):
        self._exit_code = EXIT_PREEMPTED
    elif not self._several:
      self._exit_code = {
          None: None, signal.SIGTERM: EXIT_PREEMPTED,
          signal.SIGINT: EXIT_INTERRUPTED}[self._signal]
    return self._exit_code

  @contextlib.contextmanager
  def abandoning(self) -> Iterator[None]:
    """What is within is given up as soon as the run is to stop.

    In a single process that is at once; in several, where all must do the same,
    at `check`.
    """
    try:
      self._may_abandon = not self._several
      if self._signal is not None:
        raise _Abandoned
      yield
      self._may_abandon = False
    except _Abandoned:
      pass
    finally:
      self._may_abandon = False

  def check(self, step: int):
    """Within `abandoning`: leaves it if the run is to stop after `step`.

    Several processes agree, by a collective that waits for what the devices
    have to do; so not for every step or batch.
    """
    if self._several and multihost_utils.broadcast_one_to_all(
        np.asarray(watchdog.is_preempted())):
      self._exit_code = EXIT_PREEMPTED
    if self.exit_code(step):
      raise _Abandoned


@contextlib.contextmanager
def exit_codes(table: dict[type[Exception], int]):
  """Ends the process with the code of the exception's class.

  Messages of expected errors are for people: they are printed without a
  traceback. Everything else gets its traceback and `EXIT_ERROR`. With several
  processes, an error of one ends all of them.
  """
  try:
    yield
  except Interrupted as error:
    say(str(error))
    watchdog.leave()
    sys.exit(error.exit_code)
  except Exception as error:  # pylint: disable=broad-exception-caught
    code = next((code for kind, code in table.items()
                 if isinstance(error, kind)), None)
    message = f"{type(error).__name__}: {error}"
    is_expected = code is not None
    if is_expected:
      print(message, file=sys.stderr, flush=True)
    else:
      traceback.print_exc()
      code = EXIT_ERROR
    if watchdog.this_process()[1] > 1:
      watchdog.fail_together(code, message, is_expected)
    sys.exit(code)
