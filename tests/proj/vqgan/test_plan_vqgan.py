"""Tests that a plan of stage 1 includes the discriminator."""

import math

from big_vision import config as config_lib
from big_vision.hardware import chips
from big_vision.hardware import flops as flops_lib
from big_vision.hardware import targets
from big_vision.tools.planning import plans
from big_vision.tools.planning import reports
import jax
import pytest

from tests.proj.vqgan import runs


@pytest.fixture(name="hardware", scope="module")
def _hardware():
  """The compiler is that of the devices, as for a TPU slice."""
  return targets.describe_devices(8, "cpu")._replace(
      chip=chips.by_name("h100"))


@pytest.fixture(name="plan", scope="module")
def _plan(hardware):
  return plans.make_plan(config_lib.Config({
      **runs.STAGE1, "seed": 0, "total_steps": 10,
      "input": dict(data=dict(name="bv:digits", split="train"), batch_size=8,
                    pp="value_range(-1, 1, 0, 16)|keep('image')"),
      "gan": {**runs.GAN, "start_steps": 4}}), hardware)


def _count(plan, adversarial_now):
  """Counts the FLOPs of the task's own update, outside of the training loop."""
  built = plan.built
  def update(state, batch, rng):
    return built.task.update({**state, "frozen": {}}, batch, rng,
                             adversarial_now=adversarial_now)
  return flops_lib.count(jax.make_jaxpr(update)(
      built.shapes, dict(built.info.batch_spec), jax.random.key(0)))


def test_both_phases_are_planned(plan):
  assert [(phase.first_step, phase.num_steps, phase.static)
          for phase in plan.phases] == [
              (0, 4, {"adversarial_now": False}),
              (4, 6, {"adversarial_now": True})]


def test_flops_of_each_phase_are_those_of_its_update(plan):
  before, after = plan.phases
  assert before.flops == _count(plan, adversarial_now=False)
  assert after.flops == _count(plan, adversarial_now=True)
  assert after.flops > before.flops > 0


def test_run_takes_each_phase_for_its_steps(plan, hardware):
  before, after = (plans.step_seconds(p, hardware) for p in plan.phases)
  low, high = plans.run_seconds(plan, hardware)
  assert math.isclose(
      high, 4 * sum(before.values()) + 6 * sum(after.values()), rel_tol=1e-12)
  assert math.isclose(
      low, 4 * max(before.values()) + 6 * max(after.values()), rel_tol=1e-12)


def test_the_worst_phase_decides_whether_a_run_fits(plan, hardware):
  before, after = (phase.program.peak_bytes for phase in plan.phases)
  assert before < after == plan.peak_bytes
  chip = hardware.chip._replace(memory=(before + after) / 2)
  with pytest.raises(plans.DoesNotFitError,
                     match="steps 5 to 10, adversarial_now=True"):
    plans.check_fits(plan, hardware._replace(chip=chip))


def test_the_table_shows_the_phase_with_the_longest_step(plan, hardware):
  """FLOPs are raised to what a table of GFLOPs can show."""
  phases = tuple(phase._replace(flops=phase.flops * 1e6)
                 for phase in plan.phases)
  row = reports.table_row("f4", plan._replace(phases=phases), hardware)
  assert f"| {phases[1].flops / 8 / 1e9:,.1f} |" in row
  assert f"| {phases[0].flops / 8 / 1e9:,.1f} |" not in row


def test_the_report_shows_both_phases_and_the_sum(plan, hardware):
  text = "\n".join(reports.report(plan, hardware, price=2.0))
  assert "The step in steps 1 to 4, adversarial_now=False" in text
  assert "The step in steps 5 to 10, adversarial_now=True" in text
  assert text.count("Step time in ") == 2 and text.count("To the end") == 1
