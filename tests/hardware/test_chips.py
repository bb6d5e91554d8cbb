"""Tests of chips.py."""

from big_vision import config as config_lib
from big_vision.hardware import chips
import pytest


@pytest.mark.parametrize("kind, name", [
    ("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5e", "v5e"),
    ("TPU v5", "v5p"), ("TPU v5p", "v5p"), ("TPU v6 lite", "v6e"),
    ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"),
    ("NVIDIA A100-SXM4-80GB", "a100")])
def test_of_device_matches_the_device_kind(kind, name):
  assert chips.of_device(kind) is chips.by_name(name)


def test_of_device_returns_none_and_by_name_raises_for_unknown_chips():
  assert chips.of_device("cpu") is None
  with pytest.raises(config_lib.ConfigError, match="'v5e'"):
    chips.by_name("v5")
