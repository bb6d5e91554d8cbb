"""Tests of tools/plan.py: as a command, and against what really runs."""

import os
import re
import subprocess
import sys

from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import sharding
from big_vision import state as state_lib
from big_vision.configs import vit_s16_i1k
from big_vision.datasets.tfds import declared
from big_vision.datasets.tfds import prepared
from big_vision.hardware import hlo
from big_vision.tools import plan as plan_lib
import jax
import numpy as np
import pytest
import tiny_config


def _run(*args, **env):
  """The command in a process of its own, where devices are not made yet."""
  return subprocess.run(
      [sys.executable, "-m", "big_vision.tools.plan", *args],
      env={**os.environ, "XLA_FLAGS": "", "TFDS_DATA_DIR": "/nowhere", **env},
      text=True, capture_output=True, check=False)


def _resolve(arg=None):
  return config_lib.resolve(tiny_config.get_config(arg))


@pytest.fixture(name="plan", scope="module")
def _plan():
  return plan_lib.make_plan(
      _resolve("fsdp=True"), plan_lib.describe_devices(8, "h100"))


def test_the_plan_of_a_run_is_the_run(plan):
  """Bytes on a device, against a state that was really made."""
  built = build_lib.build(_resolve("fsdp=True"))
  with sharding.use(built.mesh, built.rules):
    state = state_lib.make(built.task, built.info, built.rng_init,
                           built.shapes, built.shardings)
  device = jax.devices()[0]
  for name, total, on_device in plan_lib.entry_bytes(plan.built):
    leaves = jax.tree.leaves(state[name])
    assert total == sum(leaf.nbytes for leaf in leaves)
    assert on_device == sum(
        shard.data.nbytes for leaf in leaves
        for shard in leaf.addressable_shards if shard.device == device)


def test_the_report_says_what_is_where_and_why(plan):
  hardware = plan_lib.describe_devices(8, "h100")
  text = "\n".join(plan_lib.report(plan, hardware, price=2.0))
  assert f"{plan.built.info.total_steps:,} steps" in text
  assert re.search(r"split as \('data',\), by '\.\*' \"?.?fsdp", text)
  assert "all-gather" in text and "all-reduce" in text
  assert "compiled for CPU" in text  # And hence no peak memory.
  assert "peak memory  " in text and "chip-hours" in text
  assert "at 2 an hour" in text


def test_arithmetic_is_three_times_the_forward_pass(plan):
  """The gradient of a product is two more; but images need no gradient."""
  built = plan.built
  def forward(state, batch):
    return built.task.predict_fns["predict"](state, batch)[0]
  flops = hlo.count_flops(
      jax.make_jaxpr(forward)(built.shapes, dict(built.info.batch_spec)))
  of_patches = 2 * 16 * (2 * 2) * (4 * 4 * 1) * 16  # b, n, inputs, width.
  assert plan.flops == 3 * flops - of_patches


def test_step_time_is_bounded_by_what_the_chip_can_do(plan):
  hardware = plan_lib.describe_devices(8, "h100")
  seconds = plan_lib.step_seconds(plan, hardware)
  assert set(seconds) == {"arithmetic", "links"}
  assert np.isclose(seconds["arithmetic"], plan.flops / 8 / 989e12)
  assert not plan_lib.step_seconds(plan, plan_lib.describe_devices(8, "cpu"))


def test_as_a_command_on_eight_chips_that_are_not_there(tmp_path):
  del tmp_path
  done = _run("--config", "tests/tiny_config.py", "--devices", "8",
              "--chip", "h100", "--price", "3")
  assert done.returncode == 0, done.stderr
  assert "8 devices" in done.stdout and "all-reduce" in done.stdout


@pytest.mark.parametrize("flag, words", [
    ("--config.input.batch_size=12", ["batch_size is 12", "[8, 16]"]),
    ("--config.model.widht=3", ["widht", 'mean "width"']),
    ("--config.lr=fast", ["config.lr", "fast"]),
    ("--chip=h1000", ["h1000", "h100"]),
    ("--topology=v5e:4x4", ["--topology"]),
    ("--devics=3", ["devics", "devices"])])
def test_what_the_command_line_gets_wrong_is_said(flag, words):
  done = _run("--config", "tests/tiny_config.py", "--devices=8", flag)
  assert done.returncode == 2, done.stderr
  assert "Traceback" not in done.stderr
  assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize("values, words", [
    ({"mesh": [("data", 3), ("model", -1)]}, "there are 8 devices"),
    ({"sharding_rules": [("act_batch", "dta")]}, "mean 'data'"),
    ({"sharding_strategy": [("parms/.*", "fsdp")]},
     "not the first match of any leaf"),
    ({"log_trainig_steps": 3}, "log_training_"),
    ({"warmup_steps": 3}, "config.warmup_steps"),
])
def test_what_would_stop_the_launch_stops_the_plan(values, words):
  config = plan_lib.changed(tiny_config.get_config(), values)
  with pytest.raises(config_lib.ConfigError, match=re.escape(words)):
    plan_lib.make_plan(
        config_lib.resolve(config), plan_lib.describe_devices(8, "cpu"))


def test_data_that_is_elsewhere_is_replaced_by_its_declaration():
  config = vit_s16_i1k.get_config("runlocal=True")
  with config.unlocked():
    config.input.data.data_dir = "/nowhere"
    for evaluator in config.evals.values():
      evaluator.data.data_dir = "/nowhere"
  config = config_lib.resolve(config)
  with pytest.raises(prepared.NotPreparedError):
    build_lib.build(config)
  with declared.declared_if_missing() as missing:
    built = build_lib.build(config)
  assert missing == {"imagenet2012"}
  # 99 % of 1,281,167, as TFDS rounds.
  assert built.info.data_size == 1_268_355
  assert built.info.batch_spec["image"].shape == (8, 224, 224, 3)
  # Outside of it, nothing is made up.
  with pytest.raises(prepared.NotPreparedError):
    build_lib.build(config)


def test_every_remedy_is_a_config_that_builds():
  config = tiny_config.get_config()
  for _, values in plan_lib.remedies(config):
    changed = plan_lib.changed(config, values)
    assert config_lib.to_json(config_lib.resolve(changed)) != (
        config_lib.to_json(config_lib.resolve(config)))
    build_lib.build(config_lib.resolve(changed))


def test_headers_say_how_to_plan():
  args = plan_lib.header_command("big_vision/configs/vit_s16_i1k.py")
  assert "--topology" in " ".join(args)
  with pytest.raises(config_lib.ConfigError, match="tools.plan"):
    plan_lib.header_command("tests/tiny_config.py")


# Of ViT-S/16 with a batch of 4,096 on v5e:16x16; jax 0.10.2, libtpu 0.0.42.1.
FLAGSHIP = dict(peak_bytes=776_900_096, bytes_on_links=176_288_465)


@pytest.mark.slow
def test_the_flagship_on_256_chips_is_what_it_was():
  """By the TPU's own compiler: `EXTRAS=plan bash run.sh pytest -m slow`.

  Its figures have no spread. 5 % are for its other versions; what is better by
  more than that is to be committed too.
  """
  with declared.declared_if_missing():
    hardware = plan_lib.describe_topology("v5e:16x16")
    plan = plan_lib.make_plan(
        config_lib.resolve(vit_s16_i1k.get_config("batch_size=4096")),
        hardware)
  assert len(hardware.devices) == 256 and hardware.num_hosts == 64
  # Gradients, and nothing else.
  collectives = plan.program.collectives
  assert {c.kind for c in collectives} == {"all-reduce"}
  assert plan.program.peak_bytes == pytest.approx(
      FLAGSHIP["peak_bytes"], rel=.05)
  assert sum(c.bytes_on_links for c in collectives) == pytest.approx(
      FLAGSHIP["bytes_on_links"], rel=.05)


def test_remedies_are_not_what_the_config_does_already():
  config = vit_s16_i1k.get_config()
  before = [words for words, _ in plan_lib.remedies(config)]
  with config.unlocked():
    config.sharding_preset = "fsdp"
  after = [words for words, _ in plan_lib.remedies(config)]
  assert after == [words for words in before
                   if words not in ("sharding_preset='fsdp'", "both of these")]


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_refused_with_what_would_fit():
  done = _run(
      "--config", "big_vision/configs/vit_i1k.py:variant=S/16",
      "--topology", "v5e:2x2", "--config.input.batch_size=4096")
  assert done.returncode == 2, done.stderr
  assert "does not fit" in done.stderr
  assert re.search(r": yes, [\d.]+ GiB", done.stdout), done.stdout


@pytest.mark.slow
def test_a_mesh_that_the_links_of_a_slice_do_not_allow_is_refused():
  devices = plan_lib.describe_topology("v5p:8x8x16").devices
  assert sharding.make_mesh([("data", 128), ("more", 8)], devices).size == 1024
  with pytest.raises(config_lib.ConfigError, match="'more': 4.*are linked"):
    sharding.make_mesh([("data", 256), ("more", 4)], devices)
