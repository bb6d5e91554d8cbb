"""Tests that a config's keys reach the parts they are meant for."""

from big_vision import build as build_lib
from big_vision import config as config_lib
import pytest
import tiny_config


def _config(**changes):
  config = tiny_config.get_config()
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  return config_lib.resolve(config)


def test_evaluators_draw_from_the_seed_of_the_run():
  config = _config(seed=7)
  evaluators = build_lib.make_evaluators(config, build_lib.build(config))
  assert [evaluator.loader.seed for evaluator in evaluators] == [7, 7]


@pytest.mark.parametrize("changes, words", [
    ({"model_load": dict(dont_load=["head/kernel"])}, "model_load.*model_init"),
    ({"keep_best": dict(mode="min")}, "keep_best.*'metric'"),
    ({"profile": dict(num_steps=3)}, "profile.*'first_step'")])
def test_options_without_effect_are_errors(changes, words):
  config = _config(**changes)
  with pytest.raises(config_lib.ConfigError, match=words):
    build_lib.loop_options(config, build_lib.build(config).info)
