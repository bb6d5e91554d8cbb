"""Parts of ResNets with GroupNorm and standardized weights.

Source: arXiv:1912.11370, arXiv:1512.03385.

Dimensions: b batch, h w rows and columns, c channels, k classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision.layers import activation_sharding

# depth: units in each stage. A unit has three convolutions; the root and the
# head count as layers too.
DEPTHS = {
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
_NUM_GROUPS = 32  # Groups of GroupNorm.


def units_per_stage(depth: int | Sequence[int]) -> tuple[int, ...]:
  """Returns the number of residual units in each stage.

  Args:
    depth: One of DEPTHS, or the numbers themselves.

  Raises:
    ValueError: `depth` is neither; the error lists the depths.
  """
  # The command line turns `--config.model.depth=50` into (50,) if the config
  # has a tuple there.
  depths = (depth,) if isinstance(depth, int) else tuple(depth)
  if len(depths) == 1 and depths[0] in DEPTHS:
    return DEPTHS[depths[0]]
  if not isinstance(depth, int) and depths and all(
      isinstance(units, int) and units > 0 for units in depths):
    return depths
  raise ValueError(
      f"Unknown depth {depth!r}; use one of {sorted(DEPTHS)}, or the number of "
      "units in each stage, like [3, 4, 6, 3].")


def stage_widths(
    width: float, groups: int, group_width: int | None, num_stages: int
) -> list[tuple[int, int]]:
  """Returns (channels within a unit, channels between units) of each stage.

  Args:
    width: Factor of the channels; 1 has 64 channels in the root.
    groups: Number of groups of the 3 x 3 convolutions.
    group_width: Channels of one group in the first stage; None divides the
      channels that there would be without groups.
    num_stages: Number of stages; each has twice the channels of the one before.

  Raises:
    ValueError: GroupNorm or the groups do not divide the channels.
  """
  root = 64 * width
  mid = root if group_width is None else groups * group_width
  if root < 1 or root % _NUM_GROUPS or mid < 1 or mid % _NUM_GROUPS or (
      groups < 1 or mid % groups):
    raise ValueError(
        f"width {width} makes {root:g} channels in the root, groups {groups} "
        f"and group_width {group_width} make {mid:g} within the first units; "
        f"both must be multiples of {_NUM_GROUPS}, for GroupNorm, and groups "
        "must divide the second.")
  root, mid = int(root), int(mid)
  return [(mid * 2 ** i, 4 * root * 2 ** i) for i in range(num_stages)]


def standardize_std(kernel):
  """Gives each output's weights mean 0, and divides by deviation + 1e-5.

  Args:
    kernel: float32[h, w, c, outputs].

  Returns:
    float32[h, w, c, outputs].

  Source: arXiv:1903.10520; epsilon is where published weights have it.
  """
  kernel = kernel - jnp.mean(kernel, axis=(0, 1, 2))
  # The root has no finite gradient at zero, which is the variance of outputs
  # with a single weight.
  var = jnp.maximum(jnp.mean(kernel ** 2, axis=(0, 1, 2)), 1e-30)
  return kernel / (jnp.sqrt(var) + 1e-5)


class StdConv(nn.Module):
  """Convolution without bias whose kernel is standardized at each use.

  Attributes:
    features: Number of output channels.
    kernel_size: (height, width).
    strides: (vertical, horizontal).
    padding: "SAME" or pixels per side, ((top, bottom), (left, right)).
    groups: Number of groups of channels that are convolved separately.
    dtype: Dtype of the convolution; the kernel is standardized in float32.
    standardize: Function of the kernel, float32[h, w, c / groups, features],
      that returns the standardized one.
  """
  features: int
  kernel_size: tuple[int, int] = (1, 1)
  strides: tuple[int, int] = (1, 1)
  padding: str | Sequence[tuple[int, int]] = "SAME"
  groups: int = 1
  dtype: Any = jnp.float32
  standardize: Callable = standardize_std

  @nn.compact
  def __call__(self, x):
    """[b, h, w, c] -> dtype[b, new h, new w, features]."""
    kernel = self.param(
        "kernel", nn.initializers.lecun_normal(),
        (*self.kernel_size, x.shape[-1] // self.groups, self.features),
        jnp.float32)
    return jax.lax.conv_general_dilated(
        x.astype(self.dtype), self.standardize(kernel).astype(self.dtype),
        self.strides, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=self.groups)


class GroupNorm(nn.Module):
  """Normalizes over the pixels and channels of each of 32 groups.

  Attributes:
    epsilon: Constant added to the variance.
    param_shape: Leading axes of scale and bias, before the channels.
    scale_init: Initializer of scale, float32[*param_shape, c].
    dtype: Dtype of the result; statistics are float32.

  Source: arXiv:1803.08494, Eq. 7.
  """
  epsilon: float = 1e-6
  param_shape: tuple[int, ...] = ()
  scale_init: Callable = nn.initializers.ones
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    """[b, h, w, c] -> dtype[b, h, w, c]."""
    shape = (*self.param_shape, x.shape[-1])
    scale = self.param("scale", self.scale_init, shape, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
    x = x.astype(jnp.float32)
    x = x - _mean_of_groups(x)
    x = x * jax.lax.rsqrt(_mean_of_groups(x ** 2) + self.epsilon)
    return (x * scale + bias).astype(self.dtype)


def _mean_of_groups(x):
  """Averages over pixels and groups, [b, h, w, c] -> [b, 1, 1, c].

  Pixels are averaged first: an array with both pixels and a separate axis of
  groups would have a short last axis, which TPUs pad to 128.
  """
  x = jnp.mean(x, axis=(1, 2))
  b, c = x.shape
  x = jnp.mean(x.reshape(b, _NUM_GROUPS, -1), axis=2)
  return jnp.repeat(x, c // _NUM_GROUPS, axis=1)[:, None, None]


def constrain(x):
  """Constrains how an activation [b, h, w, c] is split over the mesh."""
  return activation_sharding.constrain(x, "act_batch", None, None, "act_emb")


class Stage(nn.Module):
  """A stage: residual units of one resolution.

  Attributes:
    unit: Class of the units, with arguments (mid, width, strides, groups,
      dtype).
    num_units: Number of units.
    mid: Channels between the convolutions of a unit.
    width: Channels of the result.
    strides: Strides of the first unit, which changes the resolution.
    groups: Number of groups of the 3 x 3 convolutions.
    dtype: Dtype of activations.
    unit_name: Pattern of the units' names, counted from 1, also in `out`.
  """
  unit: type[nn.Module]
  num_units: int
  mid: int
  width: int
  strides: tuple[int, int] = (1, 1)
  groups: int = 1
  dtype: Any = jnp.float32
  unit_name: str = "unit{}"

  @nn.compact
  def __call__(self, x):
    """[b, h, w, c] -> [b, new h, new w, width], out."""
    out = {}
    for i in range(1, self.num_units + 1):
      name = self.unit_name.format(i)
      x = out[name] = self.unit(
          self.mid, self.width, self.strides if i == 1 else (1, 1),
          self.groups, self.dtype, name=name)(x)
    return x, out


def check_image(image):
  """Raises ValueError if `image` is not [b, height, width, channels]."""
  if image.ndim != 4 or not all(image.shape[1:]):
    raise ValueError(
        "Images must be [b, height, width, channels], of any size but 0; they "
        f"are {list(image.shape)}.")


def classify(x, num_classes: int | None, head_zeroinit: bool, out: dict):
  """Applies the head to every pixel and to their mean.

  It is called from a compact method and creates the head in its module.

  Args:
    x: [b, h, w, c].
    num_classes: Number of classes, k; None has no head.
    head_zeroinit: Whether the head's kernel starts at zero.
    out: Dict to which pre_logits_2d, pre_logits and, with a head, logits_2d and
      logits are added, all float32.

  Returns:
    float32[b, k], or the features float32[b, c].
  """
  # Float32 from here on: means over pixels and logits are sensitive.
  x_2d = out["pre_logits_2d"] = x.astype(jnp.float32)
  x = out["pre_logits"] = jnp.mean(x_2d, axis=(1, 2))
  if num_classes:
    init = {"kernel_init": nn.initializers.zeros} if head_zeroinit else {}
    head = nn.Dense(num_classes, name="head", **init)
    out["logits_2d"], out["logits"] = head(x_2d), head(x)
    x = out["logits"]
  return x
