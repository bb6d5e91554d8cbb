"""The class that images are drawn of is checked."""

from big_vision import config as config_lib
from big_vision.tools import sample
import pytest

BATCH = {"image": None, "label": None}


@pytest.mark.parametrize("label", [0, 3, 9])
@pytest.mark.parametrize("config", [
    {"model": {"num_classes": 10}}, {"num_classes": 10}, {}])
def test_classes_are_accepted(label, config):
  sample._check_label(label, config_lib.Config(config), BATCH)


@pytest.mark.parametrize("label, config, message", [
    (-1, {"model": {"num_classes": 10}}, "-1 is not a class.* from 0 to 9"),
    (10, {"model": {"num_classes": 10}}, "10 is not a class.* from 0 to 9"),
    (99, {"num_classes": 10}, "99 is not a class.* from 0 to 9"),
    (-1, {}, "-1 is not a class; classes are not negative"),
    (3, {"model": {"num_classes": 0}}, "3 has no effect: .*without classes")])
def test_labels_that_are_not_classes_are_named(label, config, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    sample._check_label(label, config_lib.Config(config), BATCH)


def test_a_run_without_labels_is_named():
  with pytest.raises(config_lib.ConfigError, match="have no label.*'image'"):
    sample._check_label(3, config_lib.Config({}), {"image": None})
