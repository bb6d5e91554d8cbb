"""How time, operations and memory are counted, and lines for people."""

import os
import pathlib
import re

from big_vision.run import progress
import jax
import jax.numpy as jnp
import numpy as np
import pytest


def test_chrono_in_closed_form():
  now = [100.]
  chrono = progress.Chrono(
      first_step=10, total_steps=20, batch_size=8, num_devices=4,
      device_kind="cpu", data_size=40, saved={"uptime": 50.},
      time_fn=lambda: now[0])
  now[0] += 7  # Compiling.
  chrono.tick(11, flops=3e12)
  first = chrono.measure(11)
  assert "img/sec" not in first and first["z/secs/first_step"] == 7
  for step, flops in (12, 6e12), (13, 2e12):
    now[0] += 2
    chrono.tick(step, flops)
  with chrono.paused("eval/test"):
    now[0] += 30
  values = chrono.measure(13, waited=1.)
  assert values == {
      "uptime": 50 + 7 + 4 + 30, "examples_seen": 104, "epoch": 2.6,
      "progress": .65, "core_hours": 91 * 4 / 3600, "img/sec": 2 * 8 / 4,
      "img/sec/core": 1., "data_stall": .25, "eta": 7 * 2.,
      "tflops/sec/core": (6 + 2) / 4 / 4,
      "z/secs/eval/test": 30}
  now[0] += 3
  chrono.tick(14, flops=3e12)
  values = chrono.measure(14, waited=1.)
  assert "z/secs/eval/test" not in values
  assert values["tflops/sec/core"] == 3 / 3 / 4
  assert chrono.state() == {"uptime": 94.}


def test_data_stall_is_the_share_of_each_interval():
  """Waiting for the first batch, however long, is not part of any interval."""
  now = [0.]
  chrono = progress.Chrono(
      first_step=10, total_steps=20, batch_size=8, num_devices=4,
      device_kind="cpu", data_size=40, time_fn=lambda: now[0])
  now[0] += 9
  chrono.tick(11, waited=6.)
  stalls = []
  for step, waited in ((12, 6.5), (13, 6.5), (14, 8.)):
    now[0] += 2
    chrono.tick(step, waited=waited)
    stalls.append(chrono.measure(step, waited)["data_stall"])
  assert stalls == [.25, 0, .75]


def test_mfu_is_the_fraction_of_what_the_chips_could_do():
  now = [0.]
  chrono = progress.Chrono(
      first_step=0, total_steps=20, batch_size=8, num_devices=4,
      device_kind="TPU v5 lite", data_size=40, time_fn=lambda: now[0])
  chrono.tick(1, flops=4 * 197e12)
  now[0] += 5
  chrono.tick(2, flops=4 * 197e12)
  assert chrono.measure(2)["mfu"] == pytest.approx(1 / 5)


def test_flops_are_counted_once_for_each_static():
  """Tracing is slow, so it happens once; XLA is not asked."""
  traced = []

  def step(state, frozen, batch, static):
    traced.append(static)
    for _ in range(dict(static)["times"]):
      state = state @ batch
    return state + frozen

  count = progress.FlopCounter(jax.jit(step, static_argnums=3))
  arrays = jnp.ones((2, 3)), jnp.ones(()), jnp.ones((3, 3))
  for times in (1, 2, 1, 2):
    assert count(*arrays, (("times", times),)) == times * 2 * (2 * 3 * 3)
  assert len(traced) == 2


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no Linux")
def test_memory_is_the_peak_that_the_system_reports():
  held = np.ones(2 ** 26)  # Half a GiB, touched.
  del held  # The peak stays.
  status = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
  kilobytes = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
  assert progress.memory()["host_gib"] == pytest.approx(
      kilobytes / 2 ** 20, rel=.02)


@pytest.mark.parametrize("seconds, text", [
    (3.4, "3s"), (125, "2m05s"), (3720, "1h02m"),
    (3 * 86400 + 4 * 3600, "3d04h")])
def test_durations_are_short_words(seconds, text):
  assert progress.format_seconds(seconds) == text


def test_lines_for_the_console():
  line = progress.format_progress(150, 1200, {
      "training_loss": .2312, "training_prec@1": .934, "img/sec": 1204.4,
      "eta": 65})
  assert line == ("step  150/1200   12%  loss 0.2312  accuracy 93.4%  "
                  "1,204 img/s  ETA 1m05s")
  assert progress.format_evals(7, {"a": .5, "b/c": 2}) == (
      "after step 7: a 0.5000  b/c 2.0000")
