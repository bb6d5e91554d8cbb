"""Tests the command in real processes: signals, kill -9, two hosts."""

import os
import signal
import subprocess
import sys

import pytest

from tests import processes


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("finished")
  output = processes.finish(processes.start(workdir))
  assert "training_loss" in output or "loss" in output
  assert "big_vision.tools.report" in output.splitlines()[-3] + output
  return workdir


def test_kill_9_then_the_same_command_is_bit_identical(finished, tmp_path):
  for step in (2, 6, 9):
    process = processes.start(tmp_path)
    processes.wait_for_step(process, tmp_path, step)
    process.send_signal(signal.SIGKILL)
    process.wait()
  processes.finish(processes.start(tmp_path))
  processes.assert_same(finished, tmp_path)


@pytest.mark.parametrize("number, code", [
    (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_a_signal_saves_then_exits_with_its_code(
    finished, tmp_path, number, code):
  process = processes.start(tmp_path)
  processes.wait_for_step(process, tmp_path, 1)
  process.send_signal(number)
  output = processes.finish(process, code)
  assert "the state is saved" in output
  stopped = max(row["step"] for row in processes.rows(tmp_path))
  assert (tmp_path / "checkpoints" / str(stopped)).is_dir()
  processes.finish(processes.start(tmp_path))
  processes.assert_same(finished, tmp_path)


def test_another_config_is_refused_with_the_difference(finished):
  output = processes.finish(
      processes.start(finished, "--config.lr=0.5"), code=2)
  assert "lr: 0.01 -> 0.5" in output and "Traceback" not in output


def test_an_option_that_the_model_refuses_is_one_line(tmp_path):
  output = processes.finish(
      processes.start(tmp_path, "--config.model.num_heads=3"), code=2)
  assert "ConfigError: width 16 does not divide into num_heads 3." in output
  assert "Traceback" not in output


def test_eval_only_gives_the_run_s_last_numbers(finished):
  process = subprocess.run(
      [sys.executable, "-m", "big_vision.tools.eval_only", "--workdir",
       str(finished)], cwd=processes.ROOT, text=True, capture_output=True,
      check=True,
      env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"})
  accuracy = processes.rows(finished)[-1]["test/prec@1"]
  assert f"{accuracy:.4f}" in process.stdout, process.stdout


@pytest.mark.parametrize("count, arg", [
    (2, "fsdp=True"), (2, "model=2"),
    *(pytest.param(count, arg, marks=pytest.mark.slow) for count, arg in (
        (2, "fsdp=False"), (4, "fsdp=False"), (4, "fsdp=True"),
        (4, "model=2")))])
def test_several_processes_give_the_same_run(finished, tmp_path, count, arg):
  """Runs are data parallel, fsdp, or have heads and MLPs split over "model"."""
  several = processes.start_several(
      tmp_path, count=count, config=f"tests/tiny_config.py:{arg}")
  outputs = [processes.finish(process) for process in several]
  assert f"{count} process(es)" in outputs[0]
  processes.assert_close(finished, tmp_path)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_all_processes(tmp_path):
  both = processes.start_several(
      tmp_path, "--config.lr=1e20", "--config.loss=sigmoid_xent")
  outputs = [processes.finish(process, code=3) for process in both]
  for output in outputs:
    assert "NonFiniteError: Step" in output and "Traceback" not in output
