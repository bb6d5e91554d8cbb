"""Starts commands in real processes, for tests that signal and kill them."""

import atexit
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

from big_vision.run import checkpoints
import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
# Metrics that depend on the clock or the machine are not compared.
TIMES = ("img/sec", "uptime", "core_hours", "eta", "data_", "z/", "y/",
         "tflops", "mfu", "host_gib", "device_gib")
# Variables of launchers must not leak in from where the tests run.
_LAUNCHERS = ("OMPI_", "PMIX_", "SLURM_", "JAX_COORDINATOR", "JAX_NUM_PRO",
              "JAX_PROCESS", "JOB_COMPLETION_INDEX")


def start(workdir, *flags, config="tests/tiny_config.py", umask=-1, cwd=ROOT,
          **env):
  """Starts a training run; `output` returns what it has printed so far."""
  command = [sys.executable, "-m", "big_vision.train", "--config", config,
             "--workdir", str(workdir), *flags]
  return start_command(command, umask=umask, cwd=cwd, env=environ(**env))


def environ(**env):
  """Returns environment variables for a command that runs on one CPU device."""
  around = {name: value for name, value in os.environ.items()
            if not name.startswith(_LAUNCHERS)}
  return {**around, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu",
          "TF_CPP_MIN_LOG_LEVEL": "2", **env}


def start_command(command, cwd=ROOT, **kw):
  """Starts any command. Its output is a file, as stacks could fill a pipe."""
  with tempfile.NamedTemporaryFile(delete=False) as log:
    process = subprocess.Popen(
        command, cwd=cwd, stdout=log, stderr=subprocess.STDOUT, **kw)
  process.log = pathlib.Path(log.name)
  atexit.register(process.log.unlink, missing_ok=True)
  return process


def output(process):
  """Returns what a process has printed so far."""
  return process.log.read_text(errors="replace")


def start_several(
    workdir, *flags, count=2, config="tests/tiny_config.py", env=None):
  """Starts the processes of a run, on one device each, over loopback."""
  address = f"127.0.0.1:{free_port()}"
  env = env or [{}] * count
  return [
      start(workdir, f"--coordinator_address={address}",
            f"--num_processes={count}", f"--process_id={i}", *flags,
            config=config, **env[i])
      for i in range(count)]


def finish(process, code=0, timeout=240):
  """Waits for a process and returns what it printed.

  Args:
    process: Process from `start`.
    code: Expected exit code, or a tuple of those allowed.
    timeout: Limit in seconds.
  """
  try:
    process.wait(timeout=timeout)
  except subprocess.TimeoutExpired:
    process.kill()
    raise AssertionError(
        f"Still running after {timeout} s: {output(process)}") from None
  codes = code if isinstance(code, tuple) else (code,)
  assert process.returncode in codes, f"{process.returncode}\n{output(process)}"
  return output(process)


def rows(workdir):
  """Returns the rows of a run, without values that depend on the clock."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return [{k: v for k, v in json.loads(line).items() if not k.startswith(TIMES)}
          for line in lines]


def wait_until(condition, *processes, timeout=180, what="It"):
  """Waits for `condition()`; fails if a process ends before."""
  until = time.monotonic() + timeout
  while not condition():
    for process in processes:
      assert process.poll() is None, output(process)
    assert time.monotonic() < until, "\n".join(
        [f"{what} did not happen.", *map(output, processes)])
    time.sleep(0.005)


def wait_for_step(process, workdir, step):
  """Waits until the metrics of `step` are written."""
  path = pathlib.Path(workdir) / "metrics.jsonl"

  def is_there():
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return whole and whole[-1]["step"] >= step
  wait_until(is_there, process, what=f"Step {step}")


def wait_for_text(process, text, timeout=180):
  """Waits until a process has printed `text`."""
  wait_until(lambda: text in output(process), process, timeout=timeout,
             what=f"Printing {text!r}")


def arrays(workdir):
  """Returns every array of the last checkpoint, by name."""
  return checkpoints.read_arrays(os.path.join(workdir, "checkpoints"))


def assert_same(expected_workdir, workdir):
  """Asserts that two runs have the same metrics and state, to the bit."""
  expected, got = arrays(expected_workdir), arrays(workdir)
  assert set(expected) == set(got)
  for name, value in expected.items():
    np.testing.assert_array_equal(value, got[name], err_msg=name)
  assert rows(workdir) == rows(expected_workdir)


def assert_close(expected_workdir, workdir):
  """Asserts losses equal to 1e-5, equal accuracies, and no step twice."""
  for theirs, ours in zip(rows(expected_workdir), rows(workdir), strict=True):
    assert set(ours) == set(theirs)
    for key, value in ours.items():
      if "/prec@" in key:  # Only of evaluators: training mixes labels.
        assert value == theirs[key], key
      np.testing.assert_allclose(
          value, theirs[key], rtol=1e-5, atol=1e-5, err_msg=key)


def free_port():
  """Returns a port on which nothing listens now."""
  with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    return sock.getsockname()[1]
