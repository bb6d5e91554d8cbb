"""The checkpoint with the best value of a metric: ties, and missing metrics."""

from big_vision import config as config_lib
from big_vision.evaluators import schedule
from big_vision.run import checkpoints
import numpy as np
import pytest


def _update(best, step, **values):
  best.update(step, {"x": np.full(3, step)}, values)


@pytest.mark.parametrize("mode, other", [("max", 0.4), ("min", 0.6)])
def test_of_equally_good_checkpoints_the_earlier_is_kept(tmp_path, mode, other):
  directory = str(tmp_path / "best")
  with checkpoints.Best(directory, metric="acc", mode=mode) as best:
    for step, value in ((1, other), (2, 0.5), (3, 0.5), (4, other)):
      _update(best, step, acc=value)
  with checkpoints.Best(directory, metric="acc", mode=mode) as best:
    _update(best, 5, acc=0.5)
  assert checkpoints.list_steps(directory) == [2]


def test_a_metric_that_is_expected_and_missing_is_an_error(tmp_path):
  with checkpoints.Best(str(tmp_path / "best"), metric="val/prec@l") as best:
    best.update(1, {}, {"training_loss": 2.0})
    with pytest.raises(config_lib.ConfigError, match=(
        r"'val/prec@l', which was not measured \(did you mean 'val/prec@1'\?\)"
        r". There are \['val/loss', 'val/prec@1'\]")):
      best.update(
          2, {}, {"val/prec@1": 0.5, "val/loss": 1.0}, expected=True)


def test_a_picture_cannot_be_the_best(tmp_path):
  with checkpoints.Best(str(tmp_path / "best"), metric="images") as best:
    with pytest.raises(config_lib.ConfigError, match="not a number but"):
      best.update(1, {}, {"images": np.zeros((4, 4, 3), np.uint8)})


def _scheduled(*prefixes):
  return [schedule.Scheduled(name=str(i), prefix=prefix, evaluator=object())
          for i, prefix in enumerate(prefixes)]


def test_a_metric_is_expected_when_what_measures_it_has_run():
  val, ema, test = evals = _scheduled("val/", "val/ema/", "test/")
  def is_expected(metric, *ran, has_row=False):
    return schedule.is_expected(metric, evals, ran, has_row)
  assert is_expected("val/prec@1", val)
  assert not is_expected("val/prec@1", test, has_row=True)
  assert is_expected("val/ema/prec@1", val, ema)
  assert not is_expected("val/ema/prec@1", val)
  # No evaluator has this prefix, so only training can measure it.
  assert is_expected("training_lose", has_row=True)
  assert is_expected("vall/prec@1", val, has_row=True)
  assert not is_expected("training_lose", val, ema, test)


def test_without_a_prefix_a_metric_may_be_of_training():
  evals = _scheduled("")
  assert not schedule.is_expected("training_loss", evals, evals, False)
  assert schedule.is_expected("training_loss", evals, evals, True)
  assert not schedule.is_expected("training_loss", evals, [], True)
