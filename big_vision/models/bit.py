"""BiT: ResNets with GroupNorm and standardized weights.

This is the plain form that `configs/bit_i1k.py` trains: normalization after
each convolution, the stride in the 3 x 3 (ResNet "v1.5"). `bit_paper` has the
form of the paper, with normalization before. With `groups` it is a ResNeXt,
with `group_width` alone a wide ResNet.

Source: arXiv:1912.11370, arXiv:1512.03385, arXiv:1603.05027; the parameter
names of google-research/big_vision.

Dimensions: b batch, h w rows and columns, c channels, k classes.
"""

from collections.abc import Mapping, Sequence
import functools
import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from big_vision import ranges
from big_vision import tree
from big_vision import weights
from big_vision.layers import checks
from big_vision.layers import resnet


class ResidualUnit(nn.Module):
  """Three convolutions beside a residual, each followed by GroupNorm.

  It starts as its residual: the last GroupNorm's scale is initially zero.

  Attributes:
    mid: Channels between the convolutions.
    width: Channels of the result.
    strides: Strides of the 3 x 3 convolution.
    groups: Number of groups of the 3 x 3 convolution.
    dtype: Dtype of activations.
  """
  mid: int
  width: int
  strides: tuple[int, int] = (1, 1)
  groups: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    """[b, h, w, c] -> [b, new h, new w, width]."""
    conv = functools.partial(resnet.StdConv, dtype=self.dtype)
    norm = functools.partial(resnet.GroupNorm, dtype=self.dtype)
    residual = x
    if x.shape[-1] != self.width or self.strides != (1, 1):
      residual = conv(self.width, strides=self.strides, name="conv_proj")(x)
      residual = norm(name="gn_proj")(residual)
    x = nn.relu(norm(name="gn1")(conv(self.mid, name="conv1")(x)))
    x = conv(self.mid, (3, 3), self.strides, groups=self.groups,
             name="conv2")(x)
    x = nn.relu(norm(name="gn2")(x))
    x = conv(self.width, name="conv3")(x)
    x = norm(name="gn3", scale_init=nn.initializers.zeros)(x)
    return resnet.constrain(nn.relu(residual + x))


class Model(nn.Module):
  """ResNet v1.5 with GroupNorm and standardized weights.

  Images are float32[b, height, width, channels], by custom in [-1, 1], of any
  size.

  Attributes:
    num_classes: Number of classes, k; None has no head and returns features.
    depth: One of `resnet.DEPTHS`, or the number of units in each stage.
    width: Factor of the channels; with 1 the root has 64. A multiple of 1/2.
    groups: Number of groups of the 3 x 3 convolutions; 32 with group_width 4 is
      ResNeXt "32x4d".
    group_width: Channels of each group in the first stage, doubled from stage
      to stage; None is 64 * width / groups.
    head_zeroinit: Whether the head's kernel starts at zero.
    dtype_mm: Dtype of activations. Parameters, their standardization, GroupNorm
      statistics, pooling, pre_logits and logits are float32 regardless.
  """
  num_classes: ranges.Count | None = None
  depth: ranges.Count | Sequence[ranges.Count] = 50
  width: ranges.Positive = 1.0
  groups: ranges.Count = 1
  group_width: ranges.Count | None = None
  head_zeroinit: bool = True
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
        stageI/unitJ [b, h, w, c], both counted from 1, h halved (and rounded
        up) and c doubled from stage to stage,
        pre_logits_2d float32[b, h, w, c], pre_logits float32[b, c], and with a
        head logits_2d float32[b, h, w, k] (the head at each pixel) and
        logits float32[b, k].

    Raises:
      ValueError: An option is unknown, the image does not have four axes, or
        groups do not divide the channels.
    """
    del train
    resnet.check_image(image)
    dtype = checks.compute_dtype(self.dtype_mm)
    units = resnet.units_per_stage(self.depth)
    widths = resnet.stage_widths(
        self.width, self.groups, self.group_width, len(units))
    out = {}

    x = resnet.StdConv(int(64 * self.width), (7, 7), (2, 2), dtype=dtype,
                name="conv_root")(image)
    x = nn.relu(resnet.GroupNorm(dtype=dtype, name="gn_root")(x))
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
    x = out["stem"] = resnet.constrain(x)
    for i, (num_units, (mid, width)) in enumerate(zip(units, widths), 1):
      x, out[f"stage{i}"] = resnet.Stage(
          ResidualUnit, num_units, mid, width,
          strides=(1, 1) if i == 1 else (2, 2),
          groups=self.groups, dtype=dtype, name=f"block{i}")(x)
    return resnet.classify(x, self.num_classes, self.head_zeroinit, out), out


def fix_old_params(params: Mapping) -> dict:
  """Reshapes GroupNorm's parameters of older files, [1, 1, 1, c], to [c]."""
  def squeeze(name, leaf):
    is_norm = re.fullmatch(r"(.*/)?gn(_root|_proj|\d)/(scale|bias)", name)
    return np.reshape(leaf, leaf.shape[-1:]) if (
        is_norm and leaf.shape[:-1] == (1, 1, 1)) else leaf
  return tree.map_with_names(squeeze, params)


def load(init_params, init_file: str, model_cfg: Mapping[str, Any],
         dont_load: Sequence[str] = ()) -> dict:
  """Loads like `weights.load`, and also files with older shapes.

  There are published weights only for the form in `bit_paper`.
  """
  del model_cfg  # `init_params` has all that is needed.
  params = fix_old_params(weights.read(init_file))
  return weights.fit(params, init_params, dont_load, init_file)
