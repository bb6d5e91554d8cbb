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
import re
from typing import Any

import flax.linen as nn
import numpy as np

from big_vision import tree
from big_vision import weights
from big_vision.layers import checks
from big_vision.layers import resnet


class Model(nn.Module):
  """ResNet v1.5 with GroupNorm and standardized weights.

  Images are float32[b, height, width, channels], usually in [-1, 1], of any
  size.

  Attributes:
    num_classes: Number of classes; None has no head and returns features.
    depth: one of `resnet.DEPTHS`, or the number of units in each stage.
    width: factor of the channels; with 1 the root has 64. A multiple of 1/2.
    groups: Number of groups of the 3 x 3 convolutions; 32 with group_width 4 is
    group_width: channels of each group in the first stage, doubled from stage
      to stage; None is 64 * width / groups.
    head_zeroinit: whether the head's kernel starts at zero.
    dtype_mm: dtype of activations. Parameters, their standardization, GroupNorm
      statistics, pooling, pre_logits and logits are float32 regardless.
  """
  num_classes: int | None = None
  depth: int | Sequence[int] = 50
  width: float = 1.0
  groups: int = 1
  group_width: int | None = None
  head_zeroinit: bool = True
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Classifies images.

    Args:
      image: float32[b, height, width, channels].
      train: accepted as by every model; makes no difference here.

    Returns:
      logits: float32[b, k]; without a head the features, float32[b, c].
      out: intermediates in the order of computation, in dtype_mm unless stated:
        stem [b, h, w, 64 * width], h = ceil(height / 4),
        stageI/unitJ [b, h, w, c], both counted from 1, h halved (and rounded
        up) and c doubled from stage to stage,
        pre_logits_2d float32[b, h, w, c], pre_logits float32[b, c], and with a
        head logits_2d float32[b, h, w, k] (the head at each pixel) and
        logits float32[b, k].

    Raises:
      ValueError: no images, unknown options, channels that do not divide.
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
          num_units, mid, width, strides=(1, 1) if i == 1 else (2, 2),
          groups=self.groups, dtype=dtype, name=f"block{i}")(x)
    return resnet.classify(x, self.num_classes, self.head_zeroinit, out), out


def fix_old_params(params: Mapping) -> dict:
  """Parameters of older files under today's shapes.

  They keep GroupNorm's scale and bias as [1, 1, 1, c].
  """
  def squeeze(name, leaf):
    is_norm = re.fullmatch(r"(.*/)?gn(_root|_proj|\d)/(scale|bias)", name)
    return np.reshape(leaf, leaf.shape[-1:]) if (
        is_norm and leaf.shape[:-1] == (1, 1, 1)) else leaf
  return tree.map_with_names(squeeze, params)


def load(init_params, init_file: str, model_cfg: Mapping[str, Any],
         dont_load: Sequence[str] = ()) -> dict:
  """As `weights.load`; also of files with older names.

  There are no published weights of this form, but of `bit_paper`.
  """
  del model_cfg  # `init_params` say it all.
  params = fix_old_params(weights.read(init_file))
  return weights.fit(params, init_params, dont_load, init_file)
