"""Causes real faults: signals, hangs, lost processes, bad records.

Other faults are tested elsewhere: kill -9 and signals between steps in
test_train_processes.py, full disks, flipped bits and kill -9 while saving in
test_checkpoint_faults.py, NaN in test_train.py.
"""

import random
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest

from tests import processes

CONFIG = "tests/fault_config.py"
# Seconds that "at once" may take on a busy machine.
SOON = 110
HUNG = 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """Returns the workdir of a run with two evaluators and no fault."""
  workdir = tmp_path_factory.mktemp("finished")
  processes.finish(processes.start(workdir, config=f"{CONFIG}:evals=2"))
  return workdir


def _end_all(both):
  for process in both:
    if process.poll() is None:
      process.kill()


# -- SIGTERM -----------------------------------------------------------------


class Slow:
  """Makes evaluations slow, as long as its file exists."""

  def __init__(self, folder):
    self.path = folder / "wait"
    self._reached = self.path.with_suffix(".reached")
    self._reached.unlink(missing_ok=True)
    self.path.touch()
    self.env = {"FAULT_EVAL": str(self.path)}

  def wait(self, *run):
    processes.wait_until(self._reached.exists, *run, what="An evaluation")


def test_sigterm_while_evaluating(finished, tmp_path):
  """The run does not wait for the evaluator, which runs after resuming."""
  workdir, config = tmp_path / "workdir", f"{CONFIG}:evals=2"
  slow = Slow(tmp_path)
  # At step 0 nothing is trained yet, at step 4 there is something to lose.
  first = processes.start(workdir, config=config, **slow.env)
  slow.wait(first)
  first.send_signal(signal.SIGTERM)
  assert "after step 0; the state is saved" in processes.finish(
      first, 143, SOON)

  slow.path.unlink()
  second = processes.start(workdir, config=config, **slow.env)
  processes.wait_for_step(second, workdir, 1)
  slow = Slow(tmp_path)
  slow.wait(second)
  second.send_signal(signal.SIGTERM)
  output = processes.finish(second, 143, SOON)
  assert re.search("Stopped on request after step [456]; the state", output)
  assert "step 3/6" in output
  processes.finish(processes.start(workdir, config=config))
  processes.assert_same(finished, workdir)


def test_sigterm_to_one_of_two_while_evaluating(finished, tmp_path):
  """Both processes stop at the same batch; one process alone resumes."""
  workdir, config = tmp_path / "workdir", f"{CONFIG}:evals=2"
  slow = Slow(tmp_path)
  both = processes.start_several(
      workdir, config=config, env=(slow.env, slow.env))
  slow.wait(*both)
  both[1].send_signal(signal.SIGTERM)
  for process in both:
    processes.finish(process, 143, SOON)
  slow.path.unlink()  # The evaluator would still be running.
  assert "after step 0; the state is saved" in processes.output(both[0])
  processes.finish(processes.start(workdir, config=config))
  ours, theirs = processes.rows(workdir), processes.rows(finished)
  assert [row.keys() for row in ours] == [row.keys() for row in theirs]
  for key in ("training_loss", "test1/loss"):
    np.testing.assert_allclose(ours[-1][key], theirs[-1][key], rtol=1e-5)


@pytest.mark.slow
def test_sigterm_to_both_of_two_between_evaluations(tmp_path):
  """SLURM sends signals so; orbax too asks jax's service when to stop."""
  both = processes.start_several(
      tmp_path, config=f"{CONFIG}:evals=2,steps=4000")
  try:
    processes.wait_for_step(both[0], tmp_path, 9)
    for process in both:
      process.send_signal(signal.SIGTERM)
    for process in both:
      processes.finish(process, 143, SOON)
  finally:
    _end_all(both)
  stopped = processes.rows(tmp_path)[-1]["step"]
  assert (f"after step {stopped}; the state is saved"
          in processes.output(both[0]))
  assert (tmp_path / "checkpoints" / str(stopped)).is_dir()


@pytest.mark.slow
def test_sigterm_while_compiling(tmp_path):
  """The compiler cannot be stopped, so the step is finished and saved."""
  process = processes.start(
      tmp_path, config=f"{CONFIG}:depth=4,watchdog={{'grace_s': 200}}",
      JAX_LOG_COMPILES="1", JAX_ENABLE_COMPILATION_CACHE="0")
  processes.wait_for_text(process, "Compiling jit(step_fn)")
  process.send_signal(signal.SIGTERM)
  output = processes.finish(process, 143, 2 * SOON)
  assert "after step 1; the state is saved" in output
  assert (tmp_path / "checkpoints" / "1").is_dir()


@pytest.mark.slow
def test_sigterm_while_saving(finished, tmp_path):
  """The checkpoint in progress is finished, and then the last step is saved."""
  config = f"{CONFIG}:evals=2"
  process = processes.start(tmp_path, config=config)
  processes.wait_until(
      (tmp_path / "checkpoints" / "saving.txt").exists, process,
      what="Saving")
  process.send_signal(signal.SIGTERM)
  assert "the state is saved" in processes.finish(process, 143, SOON)
  processes.finish(processes.start(tmp_path, config=config))
  processes.assert_same(finished, tmp_path)


# -- the console -------------------------------------------------------------


@pytest.mark.parametrize("redirection", [
    "2>&- | head -n 1",
    pytest.param(">&-", marks=pytest.mark.slow),
    pytest.param("> /dev/full 2>&1", marks=pytest.mark.slow)])
def test_a_run_that_cannot_print(finished, tmp_path, redirection):
  """Each of them ended the run, in the middle and without saving."""
  script = ('set -o pipefail; "$0" -m big_vision.train --config "$1" '
            f'--workdir "$2" {redirection}')
  process = processes.start_command(
      ["bash", "-c", script, sys.executable, f"{CONFIG}:evals=2",
       str(tmp_path)], env=processes.environ())
  processes.finish(process)
  processes.assert_same(finished, tmp_path)


@pytest.mark.parametrize("number, code", [
    (signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_signal_before_the_first_step(tmp_path, number, code):
  process = processes.start(tmp_path, config=CONFIG)
  processes.wait_until((tmp_path / "lock").exists, process, what="The start")
  process.send_signal(number)
  output = processes.finish(process, code, SOON)
  assert "Traceback" not in output
  assert ("before the first step; nothing is saved" in output) == (code == 130)
  assert not list(tmp_path.glob("checkpoints/*"))


@pytest.fixture(name="small_disk")
def _small_disk(tmp_path):
  """Mounts a file system of 3 MB; not every machine allows it."""
  path = tmp_path / "disk"
  path.mkdir()
  done = subprocess.run(
      ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(path)],
      check=False, capture_output=True)
  if done.returncode:
    pytest.skip(f"No file system can be mounted: {done.stderr}")
  yield path
  subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_disk_that_fills_up_and_gets_room_again(finished, small_disk):
  """Metrics are what is written between checkpoints."""
  workdir, config = small_disk / "run", f"{CONFIG}:evals=2"
  process = processes.start(workdir, config=config)
  processes.wait_for_step(process, workdir, 2)
  filler = small_disk / "filler"
  try:
    with open(filler, "wb", buffering=0) as file:
      while True:
        file.write(bytes(4096))
  except OSError:
    pass
  output = processes.finish(process, 5, SOON)
  assert "StorageError: " in output and "Traceback" not in output
  assert "the same command continues" in output
  second = processes.start(workdir, config=config)
  output = processes.finish(second, 5, SOON)
  assert "Traceback" not in output and "StorageError" in output
  filler.unlink()
  processes.finish(processes.start(workdir, config=config))
  processes.assert_same(finished, workdir)


# -- hangs -------------------------------------------------------------------


def test_a_step_that_hangs(tmp_path):
  process = processes.start(
      tmp_path, config=f"{CONFIG}:watchdog={{'step_s': 3}}", FAULT_STEP="3")
  output = processes.finish(process, HUNG, SOON)
  assert "Watchdog: Process 0, at step 4 in 'step', got nowhere" in output
  assert "config.watchdog.step_s is 3 s" in output
  assert "fault_config.py" in output and "in trap" in output  # The stacks.


@pytest.mark.slow
def test_sigterm_to_a_step_that_hangs(tmp_path):
  """The signal is caught, so the watchdog has to end the process."""
  process = processes.start(
      tmp_path, config=f"{CONFIG}:watchdog={{'step_s': 0, 'grace_s': 2}}",
      FAULT_STEP="3")
  processes.wait_for_step(process, tmp_path, 3)
  process.send_signal(signal.SIGTERM)
  output = processes.finish(process, HUNG, SOON)
  assert "was asked to stop" in output and "in trap" in output


# -- two processes -----------------------------------------------------------


# Short limits, but not shorter than a busy machine's hiccups.
_LIMITED = f"{CONFIG}:watchdog={{'data_s': 6, 'step_s': 40, 'peer_s': 8}}"


@pytest.mark.slow
def test_a_peer_that_is_alive_but_stuck(tmp_path):
  """jax never notices; the watchdog ends both, which name the culprit."""
  both = processes.start_several(
      tmp_path, config=_LIMITED, env=({}, {"FAULT_DATA": "24"}))
  outputs = [processes.finish(process, HUNG, 2 * SOON) for process in both]
  culprit = re.search(
      "Process 1, at step ([2-5]) in 'data', got nowhere", outputs[1])
  assert culprit and "config.watchdog.data_s is 6 s" in outputs[1]
  assert "process 0: at step" in outputs[1] and "<- behind" in outputs[1]
  assert "Process 1 ended with exit code 4, so process 0" in outputs[0]
  assert culprit.group() in outputs[0]
  assert all("most recent call first" in output for output in outputs)


def _send_to_one_of_two(tmp_path, lost, number):
  """Sends a signal to one of two processes in the middle of a run.

  Returns:
    The other process, which must end by itself with an error, and its output.
  """
  both = processes.start_several(tmp_path, config=f"{_LIMITED},steps=100000")
  try:
    processes.wait_for_step(both[0], tmp_path, 3)
    both[lost].send_signal(number)
    other = both[1 - lost]
    other.wait(timeout=SOON)
    return other, processes.output(other)
  finally:
    _end_all(both)


@pytest.mark.parametrize("number", [
    signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_peer_that_is_killed_or_stopped(tmp_path, number):
  other, output = _send_to_one_of_two(tmp_path, 1, number)
  assert other.returncode == HUNG, output
  assert re.search(
      r"Process 1 has given no sign of life for \d+ s.*"
      r"It last reported at step \d+ in '\w+'", output), output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_first_process_is_killed_or_stopped(tmp_path, number):
  """jax's coordination service ends with it, which may end others first."""
  other, output = _send_to_one_of_two(tmp_path, 0, number)
  assert other.returncode in (HUNG, -signal.SIGABRT), output
  if other.returncode == HUNG:
    assert "Process 0 has given no sign of life" in output


def test_a_bad_record_of_one_of_two(tmp_path):
  """Without the watchdog, the other would wait in a collective."""
  for i in range(64):
    folder = tmp_path / "data" / f"class{i % 2}"
    folder.mkdir(parents=True, exist_ok=True)
    fname = folder / f"{i:02d}.png"
    Image.fromarray(np.full((8, 8), i, np.uint8)).save(fname)
    if i == 40:
      fname.write_bytes(b"no image")
  both = processes.start_several(
      tmp_path / "workdir", config=f"{CONFIG}:steps=100",
      env=({"FAULT_FOLDER": str(tmp_path / "data")},) * 2)
  outputs = [processes.finish(process, 6, SOON) for process in both]
  hit = [output.startswith("DataError") or "\nDataError" in output
         for output in outputs]
  assert sum(hit) >= 1
  assert all("40.png" in output for output in outputs)
  if sum(hit) == 1:
    assert f"Process {hit.index(True)} ended with exit code 6" in outputs[
        hit.index(False)]


@pytest.mark.slow
def test_two_processes_skip_data_that_is_not_finite_as_one_does(tmp_path):
  """One of the 4 batches in an epoch has an image of NaN."""
  images = np.random.default_rng(0).uniform(0, 16, (64, 8, 8, 1))
  images[17, 0, 0] = np.nan
  np.savez(tmp_path / "images.npz", image=images.astype(np.float32),
           label=np.arange(64) % 10)
  config = f"{CONFIG}:rollbacks=3"
  env = {"FAULT_NPZ": str(tmp_path / "images.npz")}
  alone = processes.start(tmp_path / "one", config=config, **env)
  both = processes.start_several(
      tmp_path / "two", config=config, env=[env] * 2)
  for process in (alone, *both):
    processes.finish(process)
  assert "Rollback 1: " in processes.output(alone)
  assert "Rollback 1: " in processes.output(both[0])
  processes.assert_close(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_killed_run_resumes_on_other_devices_and_processes(tmp_path):
  """Goes from heads and MLPs split over 4 devices to fsdp on 2, then on 8."""
  config = f"{CONFIG}:steps=16,evals=1"
  whole, workdir = tmp_path / "whole", tmp_path / "workdir"
  processes.finish(processes.start(whole, config=config))
  for count, split in ((4, "model=2"), (2, "fsdp=True")):
    rows = 16 * (2 if split == "model=2" else 1) // count
    before = set(workdir.glob("checkpoints/*"))
    some = processes.start_several(
        workdir, "--allow_config_change", count=count,
        config=f"{config},{split}", env=[{"FAULT_DATA": str(5 * rows)}] * count)
    processes.wait_until(  # Data is there for five batches only.
        lambda: {path for path in workdir.glob("checkpoints/*")
                 if path.name.isdigit()} - before, *some, what="Saving")
    _end_all(some)
  processes.finish(processes.start(
      workdir, "--allow_config_change", config=f"{config},fsdp=True",
      XLA_FLAGS="--xla_force_host_platform_device_count=8"))
  processes.assert_close(whole, workdir)


# -- surroundings ------------------------------------------------------------


def test_a_second_run_in_the_same_workdir(tmp_path):
  first = processes.start(tmp_path, config=f"{CONFIG}:steps=100000")
  try:
    processes.wait_for_step(first, tmp_path, 1)
    second = processes.start(tmp_path, config=f"{CONFIG}:steps=100000")
    output = processes.finish(second, 2, SOON)
    assert f"process {first.pid} on {socket.gethostname()}" in output
    assert "in use by another run" in output and "Traceback" not in output
    assert first.poll() is None
  finally:
    first.kill()
  first.wait()
  third = processes.start(tmp_path, config=f"{CONFIG}:steps=100000")
  processes.wait_for_text(third, "Continuing after step")
  third.kill()
  third.wait()


@pytest.mark.slow
def test_surroundings_do_not_change_numbers(finished, tmp_path):
  workdir = tmp_path / "workdir"
  processes.finish(processes.start(
      workdir, config=f"{CONFIG}:evals=2", umask=0o077,
      LC_ALL="tr_TR.ISO-8859-9", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0",
      LANGUAGE="tr", TZ="Pacific/Kiritimati", PYTHONHASHSEED="123",
      HOME="/nonexistent"))
  processes.assert_same(finished, workdir)
  assert (workdir / "metrics.jsonl").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_kill_9_twenty_times_at_random_moments(finished, tmp_path):
  """The kills hit a run that starts, restores, trains, evaluates or saves."""
  config, generator = f"{CONFIG}:evals=2", random.Random(0)
  start = time.monotonic()
  processes.finish(processes.start(tmp_path / "timed", config=config))
  seconds = time.monotonic() - start
  for _ in range(20):
    process = processes.start(tmp_path / "workdir", config=config)
    time.sleep(seconds * generator.uniform(0.3, 1.1))
    process.kill()
    process.wait()
  processes.finish(processes.start(tmp_path / "workdir", config=config))
  processes.assert_same(finished, tmp_path / "workdir")
