"""The command itself, in real processes: signals, kill -9, two hosts."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from big_vision import checkpoint
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
TIMES = ("img/sec", "uptime", "core_hours", "eta", "data_", "z/", "y/")


def _start(workdir, *flags, config="tests/tiny_config.py", **env):
  command = [sys.executable, "-m", "big_vision.train", "--config", config,
             "--workdir", str(workdir), *flags]
  return subprocess.Popen(
      command, cwd=ROOT, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, env={
          **os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu",
          "TF_CPP_MIN_LOG_LEVEL": "2", **env})


def _finish(process, code=0, timeout=240):
  output, _ = process.communicate(timeout=timeout)
  assert process.returncode == code, output
  return output


def _rows(workdir):
  path = pathlib.Path(workdir) / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return [{k: v for k, v in json.loads(line).items() if not k.startswith(TIMES)}
          for line in lines]


def _wait_for_step(process, workdir, step):
  path = pathlib.Path(workdir) / "metrics.jsonl"
  until = time.monotonic() + 180
  while time.monotonic() < until:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    if whole and whole[-1]["step"] >= step:
      return
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.005)
  raise AssertionError(f"Step {step} was not reached.")


def _arrays(workdir):
  return checkpoint.read_arrays(os.path.join(workdir, "checkpoints"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("finished")
  output = _finish(_start(workdir))
  assert "training_loss" in output or "loss" in output
  assert "big_vision.tools.report" in output.splitlines()[-3] + output
  return workdir


def _same(finished, workdir):
  expected, got = _arrays(finished), _arrays(workdir)
  assert set(expected) == set(got)
  for name, value in expected.items():
    np.testing.assert_array_equal(value, got[name], err_msg=name)
  assert _rows(workdir) == _rows(finished)


def test_kill_9_then_the_same_command_is_bit_identical(finished, tmp_path):
  for step in (2, 6, 9):
    process = _start(tmp_path)
    _wait_for_step(process, tmp_path, step)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  _finish(_start(tmp_path))
  _same(finished, tmp_path)


@pytest.mark.parametrize("number, code", [
    (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_then_exits_with_its_code(
    finished, tmp_path, number, code):
  process = _start(tmp_path)
  _wait_for_step(process, tmp_path, 1)
  process.send_signal(number)
  output = _finish(process, code)
  assert "the state is saved" in output
  stopped = max(row["step"] for row in _rows(tmp_path))
  assert (tmp_path / "checkpoints" / str(stopped)).is_dir()
  _finish(_start(tmp_path))
  _same(finished, tmp_path)


def test_another_config_is_refused_with_the_difference(finished):
  output = _finish(_start(finished, "--config.lr=0.5"), code=2)
  assert "lr: 0.01 -> 0.5" in output and "Traceback" not in output


def test_eval_only_gives_the_run_s_last_numbers(finished):
  process = subprocess.run(
      [sys.executable, "-m", "big_vision.tools.eval_only", "--workdir",
       str(finished)], cwd=ROOT, text=True, capture_output=True, check=True,
      env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"})
  accuracy = _rows(finished)[-1]["test/prec@1"]
  assert f"{accuracy:.4f}" in process.stdout, process.stdout


def _free_port():
  with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    return sock.getsockname()[1]


@pytest.mark.parametrize("fsdp", [False, True])
def test_two_processes_give_the_same_run(finished, tmp_path, fsdp):
  port = _free_port()
  config = f"tests/tiny_config.py:fsdp={fsdp}"
  processes = [
      _start(tmp_path, f"--coordinator_address=127.0.0.1:{port}",
             "--num_processes=2", f"--process_id={i}", config=config)
      for i in range(2)]
  outputs = [_finish(process) for process in processes]
  assert "2 process(es)" in outputs[0]
  for ours, theirs in zip(_rows(tmp_path), _rows(finished), strict=True):
    assert set(ours) == set(theirs)
    for key, value in ours.items():
      np.testing.assert_allclose(
          value, theirs[key], rtol=1e-5, atol=1e-5, err_msg=key)
    for key in ("test/prec@1", "test/ema/prec@1"):
      assert ours.get(key) == theirs.get(key)
