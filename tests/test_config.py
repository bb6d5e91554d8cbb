"""Tests that unread or unknown keys and values of the wrong type are errors."""

import json

from big_vision import config as config_lib
from big_vision import durations
from big_vision.configs import common
from big_vision.run import workdir as workdir_lib
import ml_collections
import pytest


def test_unread_keys_are_named_with_the_nearest_key_that_was_read():
  config = config_lib.Config({
      "lr": 1.0, "grad_clip": 2.0, "input": {
          "batch_size": 8, "batch_sizes": 8, "chache": True}})
  assert config.lr == 1.0
  assert config.get("grad_clip_norm") is None
  assert config.input.get("cache_raw", False) is False
  assert config.input["batch_size"] == 8
  with pytest.raises(config_lib.ConfigError) as error:
    config.check_all_read()
  message = str(error.value)
  assert "config.input.batch_sizes (did you mean 'batch_size'?)" in message
  assert "config.grad_clip (did you mean 'grad_clip_norm'?)" in message
  assert "config.input.chache (did you mean 'cache_raw'?)" in message
  assert "config.lr" not in message


def test_reading_everything_passes_and_whole_dicts_count_as_read():
  config = config_lib.Config({"model": {"width": 3, "depth": 2}, "lr": 1.0})
  assert dict(**config.model) == {"width": 3, "depth": 2}
  assert config["lr"] == 1.0
  config.check_all_read()


def test_storing_does_not_count_as_reading():
  config = config_lib.Config({"a": {"b": 1}})
  config_lib.to_json(config)
  assert config.unread() == [("config.a", [])]


def test_the_error_for_a_missing_key_lists_the_keys_there_are():
  config = config_lib.Config({"model_nmae": "vit"})
  with pytest.raises(config_lib.ConfigError, match="model_name.*'model_nmae'"):
    _ = config.model_name


def test_call_names_unknown_missing_and_taken_arguments():
  def model(num_classes, *, width, depth=2):
    return num_classes, width, depth
  kw = dict(where="config.model", num_classes=10)
  assert config_lib.call(model, {"width": 3}, **kw) == (10, 3, 2)
  with pytest.raises(config_lib.ConfigError,
                     match=r"config.model.dept does not.*'depth'"):
    config_lib.call(model, {"width": 3, "dept": 1}, **kw)
  with pytest.raises(config_lib.ConfigError, match=r"lacks \['width'\]"):
    config_lib.call(model, {}, **kw)
  with pytest.raises(config_lib.ConfigError, match="set by the program"):
    config_lib.call(model, {"width": 3, "num_classes": 2}, **kw)


def test_parse_arg_takes_types_from_defaults():
  arg = common.parse_arg(
      "lr=1,runlocal,size=(2, 3),name=7,free=0.5", lr=0.1, runlocal=False,
      size=(1, 1), name="x", free=None, other=5)
  assert arg.to_dict() == dict(
      lr=1.0, runlocal=True, size=(2, 3), name="7", free=0.5, other=5)
  assert type(arg.lr) is float
  assert common.parse_arg(None, a=1).a == 1


@pytest.mark.parametrize("text, message", [
    ("batch=3", "no argument 'batch'.*'batch_size'"),
    ("batch_size=big", "batch_size=big is not of type int"),
    ("batch_size=2.5", "batch_size=2.5 is not of type int"),
    ("crop=3", "crop=3 is not of type bool")])
def test_arguments_that_cannot_be_parsed_are_named(text, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    common.parse_arg(text, batch_size=8, crop=False)


@pytest.mark.parametrize("keys, steps", [
    ({"total_steps": 7}, 7), ({"total_epochs": 2.5}, 25),
    ({"total_examples": 96}, 10), ({"total_percent": 0.26}, 52),
    ({"total_steps": 0}, 0), ({"total_examples": 1}, 1),
    ({"total_examples": 3e9}, 300_000_000),
    ({}, 99), ({"total_steps": None}, 99)])
def test_durations_in_any_unit_become_steps(keys, steps):
  assert durations.get_steps(
      "total", keys, batch_size=10, data_size=100, total_steps=200,
      default=99) == steps


@pytest.mark.parametrize("keys, message", [
    ({"log_steps": 1, "log_epochs": 1}, "keep one of"),
    ({"log_epochs": 1}, "size of the data or of the batch is not known"),
    ({"log_percent": 5}, r"config.log_percent is 5; .* a number in \[0, 1\]"),
    ({"log_steps": -1}, "config.log_steps is -1; .* a number of at least 0"),
    ({"log_examples": 3e10}, "3,000,000,000 steps; .* most 2,147,483,647"),
    ({"log_steps": "7"}, "must be a number")])
def test_invalid_durations_are_named(keys, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    durations.get_steps("log", keys, batch_size=10, total_steps=100)


def test_a_changed_config_is_refused_with_the_difference(tmp_path):
  config = config_lib.resolve(ml_collections.ConfigDict(
      dict(lr=0.1, mesh=[("data", -1)], api_key="s3cret",
           wandb=dict(hub_token="s3cret"), none=None)))
  assert config.mesh == [["data", -1]]
  workdir_lib.store_config(str(tmp_path), config)
  stored = json.loads((tmp_path / "config.json").read_text())
  assert stored["api_key"] == stored["wandb"]["hub_token"] == "<hidden>"
  assert stored["lr"] == 0.1
  workdir_lib.check_config(str(tmp_path), config)

  changed = config_lib.Config({**config.to_dict(), "lr": 0.2, "wd": 1.0})
  with pytest.raises(config_lib.ConfigError) as error:
    workdir_lib.check_config(str(tmp_path), changed)
  assert "lr: 0.1 -> 0.2" in str(error.value)
  assert "wd: absent -> 1.0" in str(error.value)
  assert "mesh" not in str(error.value)
  workdir_lib.check_config(str(tmp_path), changed, allow_change=True)


def test_values_that_cannot_be_stored_are_named():
  with pytest.raises(config_lib.ConfigError,
                     match=r"config.input.fn is a func"):
    config_lib.to_json(config_lib.Config({"input": {"fn": lambda x: x}}))
