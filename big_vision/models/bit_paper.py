"""BiT as in its paper: ResNets that normalize before each convolution.

This is the form (ResNet "v2") of the published weights. `bit` has the plain
one; `layers/resnet.py` has the parts that both share.

Source: arXiv:1912.11370, arXiv:1603.05027; the parameter names of
google-research/big_vision.

Dimensions: b batch, h w rows and columns, c channels, k classes.
"""

from collections.abc import Sequence
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from big_vision import ranges
from big_vision.layers import checks
from big_vision.layers import resnet
from big_vision.weights import bit as bit_weights

POOL_PADDINGS = ("lowest", "zero")


def standardize_var(kernel):
  """Gives each output's weights mean 0; divides by root(variance + 1e-10).

  Args:
    kernel: float32[h, w, c, outputs].

  Returns:
    float32[h, w, c, outputs].
  """
  kernel = kernel - jnp.mean(kernel, axis=(0, 1, 2))
  var = jnp.mean(kernel ** 2, axis=(0, 1, 2))
  return kernel / jnp.sqrt(var + 1e-10)


_StdConv = functools.partial(resnet.StdConv, standardize=standardize_var)
# Published weights have scale and bias of shape [1, 1, 1, c].
_GroupNorm = functools.partial(
    resnet.GroupNorm, epsilon=1e-5, param_shape=(1, 1, 1))


class ResidualUnit(nn.Module):
  """Three convolutions beside a residual, each after GroupNorm and ReLU.

  Attributes are those of `bit.ResidualUnit`.
  """
  mid: int
  width: int
  strides: tuple[int, int] = (1, 1)
  groups: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    """[b, h, w, c] -> [b, new h, new w, width]."""
    conv = functools.partial(_StdConv, dtype=self.dtype)
    norm = functools.partial(_GroupNorm, dtype=self.dtype)
    residual = x
    x = nn.relu(norm(name="gn1")(x))
    if x.shape[-1] != self.width or self.strides != (1, 1):
      # Unlike in `bit`, the input is normalized already.
      residual = conv(self.width, strides=self.strides, name="conv_proj")(x)
    x = conv(self.mid, name="conv1")(x)
    x = nn.relu(norm(name="gn2")(x))
    # One pixel on each side: with strides, "SAME" pads only below and right.
    x = conv(self.mid, (3, 3), self.strides, padding=((1, 1), (1, 1)),
             groups=self.groups, name="conv2")(x)
    x = nn.relu(norm(name="gn3")(x))
    return resnet.constrain(residual + conv(self.width, name="conv3")(x))


class RootBlock(nn.Module):
  """Reduces the resolution to a quarter; no norm and no ReLU."""
  width: int
  pool_padding: str
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    """[b, h, w, c] -> [b, ceil(h / 4), ceil(w / 4), width]."""
    x = _StdConv(self.width, (7, 7), (2, 2), padding=((3, 3), (3, 3)),
                 dtype=self.dtype, name="conv_root")(x)
    margin = ((1, 1), (1, 1))
    if self.pool_padding == "zero":
      x, margin = jnp.pad(x, ((0, 0), *margin, (0, 0))), "VALID"
    return resnet.constrain(nn.max_pool(x, (3, 3), (2, 2), margin))


class Model(nn.Module):
  """ResNet v2 with GroupNorm and standardized weights.

  Images are float32[b, height, width, channels], by custom in [-1, 1], of any
  size.

  Attributes:
    num_classes: Number of classes, k; None has no head and returns features.
    depth: One of `resnet.DEPTHS`, or the number of units in each stage.
    width: Factor of the channels; with 1 the root has 64. A multiple of 1/2.
    groups: Number of groups of the 3 x 3 convolutions.
    group_width: Channels of each group in the first stage, doubled from stage
      to stage; None is 64 * width / groups.
    head_zeroinit: Whether the head's kernel starts at zero.
    pool_padding: Padding of max pooling, whose input has values of either
      sign: "lowest", which never wins, as in big_vision; or "zero", as in the
      code that trained the paper's weights.
    dtype_mm: Dtype of activations. Parameters, their standardization, GroupNorm
      statistics, pooling, pre_logits and logits are float32 regardless.
  """
  num_classes: ranges.Count | None = None
  depth: ranges.Count | Sequence[ranges.Count] = 50
  width: ranges.Positive = 1.0
  groups: ranges.Count = 1
  group_width: ranges.Count | None = None
  head_zeroinit: bool = True
  pool_padding: str = "lowest"
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Classifies images.

    Args:
      image: float32[b, height, width, channels].
      train: Ignored; all models accept it.

    Returns:
      logits: float32[b, k]; without a head the features, float32[b, c].
      out: intermediates in order, in dtype_mm unless stated:
        stem [b, h, w, 64 * width], h = ceil(height / 4),
        stageI/unitJJ [b, h, w, c], both counted from 1, h halved (and rounded
        up) and c doubled from stage to stage,
        norm_pre_head [b, h, w, c], the same before ReLU as
        pre_logits_2d float32[b, h, w, c], pre_logits float32[b, c], and with a
        head logits_2d float32[b, h, w, k] (the head at each pixel) and
        logits float32[b, k].

    Raises:
      ValueError: An option is unknown, the image does not have four axes, or
        groups do not divide the channels.
    """
    del train
    resnet.check_image(image)
    checks.check_choice("pool_padding", self.pool_padding, POOL_PADDINGS)
    dtype = checks.compute_dtype(self.dtype_mm)
    units = resnet.units_per_stage(self.depth)
    widths = resnet.stage_widths(
        self.width, self.groups, self.group_width, len(units))
    out = {}

    x = out["stem"] = RootBlock(
        int(64 * self.width), self.pool_padding, dtype,
        name="root_block")(image)
    for i, (num_units, (mid, width)) in enumerate(zip(units, widths), 1):
      x, out[f"stage{i}"] = resnet.Stage(
          ResidualUnit, num_units, mid, width,
          strides=(1, 1) if i == 1 else (2, 2), groups=self.groups, dtype=dtype,
          unit_name="unit{:02d}", name=f"block{i}")(x)
    x = out["norm_pre_head"] = _GroupNorm(
        dtype=jnp.float32, name="norm-pre-head")(x)
    x = resnet.classify(nn.relu(x), self.num_classes, self.head_zeroinit, out)
    return x, out


load = bit_weights.load
