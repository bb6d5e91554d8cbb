"""Schedules against values computed by hand."""

from big_vision import config as config_lib
from big_vision import optim
import numpy as np
import pytest

SIZES = dict(total_steps=100, batch_size=10, data_size=50)
STEPS = [0, 5, 10, 30, 60, 90, 99, 100]


@pytest.mark.parametrize("kw, expected", [
    (dict(decay_type="cosine"), [0, .5, 1, .883, .4132, .0302, .0003, 0]),
    (dict(decay_type="linear", linear_end=1e-5),
     [0, .5, 1, .7778, .4444, .1111, .0111, 1e-5]),
    (dict(decay_type="polynomial", power=2),
     [0, .5, 1, .6049, .1975, .0123, .0001, 0]),
    (dict(decay_type="rsqrt", timescale=10, cooldown_steps=20),
     [0, .5, 1, .5774, .4082, .1667, .0159, 0]),
    (dict(decay_type="cosine", end=.5), [0, .5, 1, .9415, .7066, .5151, .5002,
                                         .5]),
    (dict(decay_type="stair", steps=[30, 90], mults=[.5, .1]),
     [0, .5, 1, .5, .5, .1, .1, .1]),
    # .1 ** ((t - 10) / 45), and the default: a tenth at the end.
    (dict(decay_type="exponential", timescale_examples=450),
     [0, .5, 1, .3594, .0774, .0167, .0105, .01]),
    (dict(decay_type="exponential", rate=.25, timescale_steps=90),
     [0, .5, 1, .7349, .4629, .2916, .2539, .25]),
    (dict(), [0, .5, 1, 1, 1, 1, 1, 1])])
@pytest.mark.parametrize("warmup", [
    dict(warmup_steps=10), dict(warmup_percent=.1), dict(warmup_epochs=2),
    dict(warmup_examples=100)])
def test_schedules_at_eight_points(kw, expected, warmup):
  fn = optim.create_schedule(**SIZES, **kw, **warmup)
  np.testing.assert_allclose(
      [float(fn(t)) for t in STEPS], expected, atol=5.1e-5)


def test_schedule_scaling_and_units():
  fn = optim.create_schedule(**SIZES, mult=2., scale_with_batchsize=True)
  np.testing.assert_allclose(fn(3), 2 * 10 / 256)
  fn = optim.create_schedule(
      **SIZES, decay_type="rsqrt", timescale_epochs=2, shift_examples=20)
  np.testing.assert_allclose(fn(8), 1 / np.sqrt(1 + (8 + 2) / 10), rtol=1e-6)


@pytest.mark.parametrize("kw, message", [
    (dict(decay_type="cosin"), "'cosin'.*'cosine'"),
    (dict(decay_type="cosine", power=2), "power does not exist"),
    (dict(decay_type="stair", steps=[3], mults=[]), "as many mults"),
    (dict(warmup_steps=5, warmup_epochs=1), "keep one of"),
    (dict(warmup_steps=100), "100 of 100 steps, so nothing.*Train longer"),
    (dict(wramup_steps=5), "wramup_steps")])
def test_schedule_errors(kw, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    optim.create_schedule(**SIZES, **kw)
