"""Makes optimizers from configs: the chain, schedules, and added optimizers."""

from big_vision.optim.adafactor import momentum_hp
from big_vision.optim.adafactor import scale_by_adafactor
from big_vision.optim.chain import make
from big_vision.optim.chain import trainable_mask
from big_vision.optim.schedules import create_schedule

__all__ = ["create_schedule", "make", "momentum_hp", "scale_by_adafactor",
           "trainable_mask"]
