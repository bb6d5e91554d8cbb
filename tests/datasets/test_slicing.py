"""Tests of datasets/slicing.py."""

from big_vision import config as config_lib
from big_vision.datasets import slicing
import pytest


@pytest.mark.parametrize("start, stop, want", [
    (None, None, (0, 10)), (2, 5, (2, 5)), (-3, None, (7, 10)),
    (0.3, 0.75, (3, 7)), (None, 1, (0, 1)), (None, 1.0, (0, 10)),
    (0.5, -1, (5, 9)), (8, 99, (8, 10))])
def test_bounds_count_examples_or_fractions(start, stop, want):
  assert slicing.slice_bounds(start, stop, 10, "data") == want


@pytest.mark.parametrize("start, stop, message", [
    (5, 5, "data has 10 examples, none of them in start=5, stop=5"),
    (10, None, "none of them"), (1.5, None, r"start is 1.5.*\[0, 1\]"),
    (None, -0.1, "stop is -0.1"), (True, None, "start is True"),
    (None, "5", "stop is '5'.*must be a number")])
def test_invalid_bounds_are_named(start, stop, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    slicing.slice_bounds(start, stop, 10, "data")
