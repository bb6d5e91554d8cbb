"""The number of groups of a GroupNorm in the autoencoder and discriminator."""

import math


def num_groups(channels: int) -> int:
  """Returns 32, as published, or fewer where groups would be below 4 channels.

  A group of one channel would lose the channel's mean, and with it the
  brightness of an even patch; published models have groups of 4 and more. There
  are fewer groups too if 32 does not divide the channels.
  """
  return math.gcd(channels, min(32, max(1, channels // 4)))
