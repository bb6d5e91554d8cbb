"""Tests of chips.py."""

from big_vision import config as config_lib
from big_vision.hardware import chips
import pytest


@pytest.mark.parametrize("kind, name", [
    ("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5e", "v5e"),
    ("TPU v5", "v5p"), ("TPU v5p", "v5p"), ("TPU v6 lite", "v6e"),
    ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"),
    ("NVIDIA A100-SXM4-80GB", "a100")])
def test_devices_are_known_by_what_jax_calls_them(kind, name):
  assert chips.of_device(kind) is chips.by_name(name)


def test_what_is_not_known_is_none_or_an_error_with_the_names():
  assert chips.of_device("cpu") is None
  with pytest.raises(config_lib.ConfigError, match="'v5e'"):
    chips.by_name("v5")
