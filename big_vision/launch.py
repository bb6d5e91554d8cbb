"""Starting and stopping: processes, clusters, signals, exit codes."""

import contextlib
import glob
import importlib.util
import os
import signal
import sys
import tempfile
import traceback

from absl import logging
import jax
from jax.experimental import multihost_utils

from big_vision import config as config_lib

# What the shell sees when a run ends; documented in the README.
EXIT_DONE = 0
EXIT_ERROR = 1
EXIT_CONFIG = 2
EXIT_NON_FINITE = 3
EXIT_STORAGE = 5
EXIT_DATA = 6
EXIT_INTERRUPTED = 130
EXIT_PREEMPTED = 143


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


def start_processes(
    coordinator_address: str | None = None, num_processes: int | None = None,
    process_id: int | None = None):
  """Connects the processes of a run, if there are several.

  Explicit arguments come first, then what the environment tells: Open MPI,
  SLURM, and Cloud TPU are detected by jax itself. One machine needs nothing.
  Must run before the first use of a device.

  Args:
    coordinator_address: "host:port" of process 0, reachable by all.
    num_processes: how many processes there are.
    process_id: which one this is, from 0.

  Raises:
    ConfigError: some but not all of the three are given.
  """
  # The libraries below tell every step of what they do.
  logging.set_verbosity(logging.WARNING)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  given = (coordinator_address, num_processes, process_id)
  if any(value is not None for value in given):
    if any(value is None for value in given):
      raise config_lib.ConfigError(
          "Give all of --coordinator_address=HOST:PORT, --num_processes and "
          f"--process_id, or none; got {given}.")
    _use_gloo_on_cpu()
    jax.distributed.initialize(
        coordinator_address, num_processes, process_id,
        shutdown_timeout_seconds=30)
  elif (int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1 or
        int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1):
    _use_gloo_on_cpu()
    jax.distributed.initialize(shutdown_timeout_seconds=30)
  elif _has_tpu():
    try:
      jax.distributed.initialize(shutdown_timeout_seconds=30)
    except ValueError as error:  # A TPU without a cluster around it.
      print(f"Running on this TPU host alone: {error}", flush=True)


def check_workdir(workdir: str):
  """Makes `workdir`; raises ConfigError if it cannot be written to."""
  try:
    os.makedirs(workdir, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except OSError as error:
    raise config_lib.ConfigError(
        f"--workdir {workdir} cannot be written to: {error}.") from error


def _use_gloo_on_cpu():
  """CPU processes talk through gloo; without it their arrays stay apart."""
  jax.config.update("jax_cpu_collectives_implementation", "gloo")


def _has_tpu() -> bool:
  """Whether this is a TPU VM, without starting the TPU runtime."""
  devices = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
  return bool(devices) and importlib.util.find_spec("libtpu") is not None


class Interrupts:
  """Turns SIGTERM and Ctrl-C into a question the loop asks every step.

  With several processes, jax's coordination service makes all of them stop
  after the same step. A second signal ends a single process at once.
  """

  def __init__(self):
    self._signal = None
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

  def exit_code(self, step: int) -> int | None:
    """The exit code if the run is to stop after `step`; all agree."""
    if self._several:
      reached = multihost_utils.reached_preemption_sync_point(step)
      return EXIT_PREEMPTED if reached else None
    return {None: None, signal.SIGTERM: EXIT_PREEMPTED,
            signal.SIGINT: EXIT_INTERRUPTED}[self._signal]


@contextlib.contextmanager
def exit_codes(table: dict[type[Exception], int]):
  """Ends the process with the code of the exception's class.

  Messages of expected errors are for people: they are printed without a
  traceback. Everything else gets its traceback and `EXIT_ERROR`.
  """
  try:
    yield
  except Interrupted as error:
    say(str(error))
    sys.exit(error.exit_code)
  except Exception as error:  # pylint: disable=broad-exception-caught
    code = next((code for kind, code in table.items()
                 if isinstance(error, kind)), None)
    if code is None:
      traceback.print_exc()
      code = EXIT_ERROR
    else:
      print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    sys.exit(code)
