"""Numbers out of their range are errors, whichever key holds them."""

from collections.abc import Mapping, Sequence
import functools
import json
import math
from typing import Literal

from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import input_pipeline
from big_vision import ranges
from big_vision.run import profiler
from big_vision.run import watchdog
import pytest
import tiny_config

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("allowed, good, bad", [
    (ranges.Count, [1, 10 ** 9], [0, -1, 1.0, NAN, INF, True, "1", None, [1]]),
    (ranges.CountOrZero, [0, 1], [-1, .0, False]),
    (ranges.Seed, [0, 2 ** 31 - 1], [-1, 2 ** 31, 1.5]),
    (ranges.Number, [-3, .5], [NAN, INF, -INF, True, "3", None]),
    (ranges.Positive, [1e-30, 3], [0, 0., -1, NAN, INF, True, "1"]),
    (ranges.NotNegative, [0, 0., 3], [-1e-30, NAN, INF, False]),
    (ranges.Fraction, [0, 1, .5], [-1e-9, 1 + 1e-9, True]),
    (ranges.Decay, [0, .999], [1, -.1, 2]),
    (int, [-3], [1.0, True, "1"]), (float, [1, 1.5], [NAN, True]),
    (bool, [True], [1, 0, "False", None]), (str, ["a"], [1, None]),
    (ranges.Count | None, [None, 1], [0]),
    (ranges.Count | Sequence[ranges.Count], [1, [1, 2], (3,)],
     [0, [0], [1, 0], "12"]),
    (Sequence[tuple[str, ranges.Positive]], [[], [("a", 1)], [["b", .5]]],
     [[("a", 0)], [("a",)], [(1, 1)], 3]),
    (tuple[int, ...], [(), (1, 2)], [(1.5,)]),
    (Mapping[str, ranges.Positive], [{}, {"a": 1}], [{"a": 0}, [1]]),
    (Literal[-1] | ranges.Count, [-1, 1], [0, -2]),
    (dict, [{}, 3], []), ("int", [3, "x"], [])])
def test_accepts(allowed, good, bad):
  for value in good:
    assert ranges.accepts(value, allowed), value
  for value in bad:
    assert not ranges.accepts(value, allowed), value


@pytest.mark.parametrize("allowed, text", [
    (ranges.Count, "an integer of at least 1"),
    (ranges.Integer, "an integer"),
    (ranges.Seed, "an integer in [0, 2147483648)"),
    (ranges.Positive, "a number above 0"),
    (ranges.Fraction, "a number in [0, 1]"),
    (ranges.Decay | None, "a number in [0, 1) or None"),
    (Sequence[ranges.Count], "a list, each an integer of at least 1")])
def test_ranges_are_described(allowed, text):
  assert ranges.describe(allowed) == text


def test_call_checks_what_annotations_say():
  def model(width: ranges.Count, rate: ranges.Decay | None = None, *, other=2):
    return width, rate, other
  call = functools.partial(config_lib.call, model, where="config.model")
  assert call({"width": 3, "rate": None, "other": "x"}) == (3, None, "x")
  with pytest.raises(config_lib.ConfigError) as error:
    call({"width": 3, "rate": 1})
  assert str(error.value) == (
      "config.model.rate is 1; it must be a number in [0, 1) or None.")
  with pytest.raises(config_lib.ConfigError, match="width is None; .*integer"):
    call({"width": None})


@pytest.fixture(name="start", scope="module")
def _start():
  """Reads every key of a config as a run does; equal data is opened once."""
  make_training, opened = input_pipeline.make_training, {}

  def open_once(config, **kw):
    key = repr((config.to_dict(), kw))
    if key not in opened:
      opened[key] = make_training(config, **kw)
    return opened[key]

  def start(**changes):
    values = tiny_config.get_config().to_dict()
    for key, value in changes.items():
      *parents, last = key.split(".")
      functools.reduce(dict.__getitem__, parents, values)[last] = value
    config = config_lib.Config(json.loads(json.dumps(values)))
    built = build_lib.build(config)
    options = build_lib.loop_options(config, built.info)
    build_lib.make_evaluators(config, built)
    config_lib.call(profiler.Profiler, options.profile, "config.profile",
                    workdir="")
    watchdog.from_config(config)
    config.check_all_read()

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(input_pipeline, "make_training", open_once)
    yield start


_NOT_COUNTS = (0, -1, 2.5, NAN, True, "3")
_NOT_POSITIVE = (0, -1, NAN, INF, True, "3")
_NEGATIVE = (-1, NAN, INF, True, "3")
_NOT_DECAYS = (-.1, 1, 2, NAN, True, "x")
# {key: values out of its range}.
BAD = {
    "seed": (-1, 2 ** 31, 2 ** 32 + 3, 1.5, NAN, True, "3"),
    "total_steps": (-1, 2 ** 31, NAN, INF, True, "3"),
    "num_classes": _NOT_COUNTS,
    "lr": _NOT_POSITIVE,
    "wd": _NEGATIVE,
    "grad_clip_norm": _NEGATIVE,
    "grad_accum_steps": _NOT_COUNTS,
    "ema_decay": _NOT_DECAYS,
    "init_head_bias": (NAN, INF, True, "3"),
    "max_rollbacks": (-1, 1.5, NAN, True, "3"),
    "batch_size_eval": _NOT_COUNTS,
    "log_training_steps": (0, *_NEGATIVE),
    "ckpt_steps": _NEGATIVE,
    "keep_ckpt_steps": (0, *_NEGATIVE),
    "lr_mults": ([(".*", 0)], [(".*", -1)], [(".*", NAN)], [(".*", "3")], 3),
    "wd_mults": ([(".*", -1)], [(".*", NAN)], [(".*", True)], 3),
    "mixup.p": _NOT_POSITIVE,
    "cutmix": (dict(p=0), dict(p=-1), dict(p=NAN), dict(p="3")),
    "input.batch_size": _NOT_COUNTS,
    "input.skip_errors": (1, "False"),
    "input.cache_raw": (1, "False"),
    "model.width": _NOT_COUNTS,
    "model.depth": _NOT_COUNTS,
    "model.num_heads": _NOT_COUNTS,
    "model.mlp_dim": _NOT_COUNTS,
    "model.patch_size": ((0, 4), (4., 4.), "4", -4),
    "model.dropout": _NOT_DECAYS,
    "model.stoch_depth": _NOT_DECAYS,
    "model.scan": (1, "False"),
    "optax": (dict(b1=1), dict(b2=-.1), dict(b1=NAN), dict(eps=-1e-8),
              dict(eps="x"), dict(b1=True), dict(nesterov="False")),
    "schedule.warmup_steps": (-1, NAN, INF, True, "3", 12),
    "schedule.mult": _NOT_POSITIVE,
    "schedule.end": _NEGATIVE,
    "schedule.scale_with_batchsize": (1, "False"),
    "evals.test.log_steps": _NEGATIVE,
    "evals.test.batch_size": _NOT_COUNTS,
    "evals.test.skip_first": (1, "False"),
    "watchdog": (dict(step_s=-1), dict(step_s=NAN), dict(grace_s=INF),
                 dict(peer_s=True), dict(eval_s="3"), 3),
    "profile": (dict(first_step=0), dict(first_step=-3), dict(first_step=1.5),
                dict(first_step=1, num_steps=0), dict(first_step=True)),
    "mesh": ([("data", 0)], [("data", -2)], [("data", 8.)], [("data", True)],
             [("data", "8")], [("data",)]),
    "sharding_strategy": (
        [(".*", "fsdp(min_size_to_shard_mb=-1)")], [(".*", "fsdp('data', -1)")],
        [(".*", "fsdp('data', '4')")], [(".*", "shard_dim('data', 1.5)")]),
}


@pytest.mark.parametrize("key, value", [
    pytest.param(key, value, id=f"{key}={value}")
    for key, values in BAD.items() for value in values])
def test_a_value_out_of_its_range_is_named_with_the_range(start, key, value):
  with pytest.raises(config_lib.ConfigError) as error:
    start(**{key: value})
  message = str(error.value)
  assert f"config.{key}" in message or "warm-up takes 12" in message
  shown = value
  while isinstance(shown, (dict, list, tuple)) and shown:
    shown = list(shown.values() if isinstance(shown, dict) else shown)[-1]
  if key not in ("sharding_strategy", "mesh"):
    assert str(shown).strip("'") in message
  assert "must be" in message or "in seconds" in message


def test_limits_of_the_ranges_are_allowed(start):
  start(**{
      "seed": 2 ** 31 - 1, "wd": 0, "grad_clip_norm": 0, "ema_decay": 0,
      "max_rollbacks": 0, "ckpt_steps": 0, "model.dropout": 0,
      "evals.test.log_steps": 0, "optax": dict(b1=0, eps=0),
      "schedule.end": 0, "schedule.warmup_steps": 0, "lr": 1,
      "watchdog": dict(step_s=0, data_s=None), "profile": dict(first_step=1)})
