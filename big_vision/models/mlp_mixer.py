"""MLP-Mixer: MLPs that mix tokens alternate with MLPs that mix channels.

Source: arXiv:2105.01601. Parameter names are those of
google-research/big_vision, which has no dropout either.

Dimensions: b batch, h w rows and columns of patches, n tokens, d width,
k classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from big_vision import ranges
from big_vision import weights
from big_vision.layers import activation_sharding
from big_vision.layers import checks
from big_vision.layers import rematerialization
from big_vision.layers import stochastic_depth
from big_vision.layers import variants

# name: (width, depth, tokens_mlp_dim, channels_mlp_dim)
VARIANTS = {
    "S": (512, 8, 256, 2048),
    "B": (768, 12, 384, 3072),
    "L": (1024, 24, 512, 4096),
    "H": (1280, 32, 640, 5120),
}


def decode_variant(variant: str | None) -> dict[str, Any]:
  """Returns the arguments for "B/16"; see `variants.decode_variant`.

  Source: arXiv:2105.01601, Table 1.
  """
  return variants.decode_variant(
      variant, VARIANTS,
      ("width", "depth", "tokens_mlp_dim", "channels_mlp_dim"), family="Mixer",
      is_square=True)


class Mlp(nn.Module):
  """Two dense layers with a GELU between them, on the last axis."""
  mlp_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    width = x.shape[-1]
    x = nn.Dense(self.mlp_dim, dtype=self.dtype)(x)
    x = activation_sharding.constrain(x, "act_batch", None, "act_mlp")
    # Published weights were trained with the approximation by tanh.
    x = nn.gelu(x, approximate=True)
    return nn.Dense(width, dtype=self.dtype)(x)


class MixerBlock(nn.Module):
  """Mixes tokens, then channels, each with a residual connection.

  `out` holds the outputs of the branches, "token_mixing" and "channel_mixing",
  and the sums with the residual, "+token_mixing" and "+channel_mixing".

  Source: arXiv:2105.01601, Eq. 1.
  """
  tokens_mlp_dim: int
  channels_mlp_dim: int
  stoch_depth_mode: str = "inverted"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, rate, train: bool):
    """[b, n, d] -> [b, n, d], out; `rate` is of stochastic depth, or None."""
    out = {}
    # Normalize over channels here too: only the MLP sees tokens as features.
    y = nn.LayerNorm(dtype=self.dtype)(x)
    y = Mlp(self.tokens_mlp_dim, self.dtype, name="token_mixing")(
        jnp.swapaxes(y, 1, 2))
    y = out["token_mixing"] = jnp.swapaxes(y, 1, 2)
    x = out["+token_mixing"] = self._add(x, y, rate, train)

    y = nn.LayerNorm(dtype=self.dtype)(x)
    y = out["channel_mixing"] = Mlp(
        self.channels_mlp_dim, self.dtype, name="channel_mixing")(y)
    x = out["+channel_mixing"] = self._add(x, y, rate, train)
    return x, out

  def _add(self, x, y, rate, train):
    """Adds a branch to the residual, with stochastic depth in training."""
    if rate is not None:
      y = stochastic_depth.drop_branch(
          y, rate, self.make_rng("dropout") if train else None,
          mode=self.stoch_depth_mode, train=train)
    return activation_sharding.constrain(
        x + y, "act_batch", "act_len", "act_emb")


class Mixer(nn.Module):
  """MLP-Mixer; make it with `Model`.

  Images are float32[b, height, width, channels], usually in [-1, 1]. A model
  takes one image size, because the MLPs that mix tokens have one input for each
  patch.

  Attributes:
    num_classes: Number of classes, k; None has no head and returns features.
      The head starts at zero.
    patch_size: (height, width) of patches, in pixels.
    width: Width of the tokens, d.
    depth: Number of blocks.
    tokens_mlp_dim: Hidden width of the MLPs that mix tokens.
    channels_mlp_dim: Hidden width of the MLPs that mix channels.
    stoch_depth: Stochastic depth rate of the last block, see
      `stochastic_depth.rates`; each example and branch draws by itself.
    stoch_depth_mode: Form of stochastic depth, see
      `stochastic_depth.drop_branch`.
    remat_policy: Activations to keep for the backward pass, see
      `rematerialization.remat`.
    dtype_mm: Dtype of activations. Parameters, LayerNorm statistics, pooling,
      pre_logits and logits are float32 regardless.
  """
  num_classes: ranges.Count | None = None
  patch_size: ranges.Count | Sequence[ranges.Count] = (16, 16)
  width: ranges.Count = 768
  depth: ranges.Count = 12
  tokens_mlp_dim: ranges.Count = 384
  channels_mlp_dim: ranges.Count = 3072
  stoch_depth: ranges.Decay = 0.0
  stoch_depth_mode: str = "inverted"
  remat_policy: str = "none"
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Classifies images.

    Args:
      image: float32[b, height, width, channels].
      train: Whether stochastic depth acts; it draws from the rng stream
        "dropout".

    Returns:
      logits: float32[b, k]; without a head the features, float32[b, d].
      out: Intermediates in the order of computation, in dtype_mm unless stated:
        stem [b, h, w, d],
        encoder/blockNN/{token_mixing, +token_mixing, channel_mixing,
        +channel_mixing} and encoder/pre_ln [b, n, d],
        encoded float32[b, n, d], pre_logits_2d float32[b, h, w, d],
        pre_logits float32[b, d], and with a head
        logits_2d float32[b, h, w, k] (the head at each patch) and
        logits float32[b, k].

    Raises:
      ValueError: Patches do not divide the image, its size is not the one that
        the parameters are for, or an option is invalid.
    """
    checks.check_choice(
        "stoch_depth_mode", self.stoch_depth_mode, stochastic_depth.MODES)
    dtype = checks.compute_dtype(self.dtype_mm)
    patch_size = checks.check_patches(image, self.patch_size)
    self._check_grid(image.shape, patch_size)
    out = {"encoder": {}}

    x = out["stem"] = nn.Conv(
        self.width, patch_size, strides=patch_size, padding="VALID",
        dtype=dtype, name="stem")(image)
    b, h, w, d = x.shape
    x = activation_sharding.constrain(
        x.reshape(b, h * w, d), "act_batch", "act_len", "act_emb")

    block = rematerialization.remat(MixerBlock, self.remat_policy)
    rates = stochastic_depth.rates(self.stoch_depth, self.depth)
    for i, rate in enumerate(rates):
      x, out["encoder"][f"block{i:02d}"] = block(
          tokens_mlp_dim=self.tokens_mlp_dim,
          channels_mlp_dim=self.channels_mlp_dim,
          stoch_depth_mode=self.stoch_depth_mode, dtype=dtype,
          name=f"MixerBlock_{i}")(x, rate or None, train)
    out["encoder"]["pre_ln"] = x

    # Means over tokens and logits need the precision of float32.
    x = out["encoded"] = nn.LayerNorm(
        name="pre_head_layer_norm", dtype=jnp.float32)(x)
    x_2d = out["pre_logits_2d"] = x.reshape(b, h, w, d)
    x = out["pre_logits"] = jnp.mean(x, axis=1)
    if self.num_classes:
      head = nn.Dense(
          self.num_classes, kernel_init=nn.initializers.zeros, name="head")
      out["logits_2d"], out["logits"] = head(x_2d), head(x)
      x = out["logits"]
    return x, out

  def _check_grid(self, shape, patch_size):
    """Raises ValueError if existing parameters mix another number of tokens."""
    if self.is_initializing() or not self.has_variable(
        "params", "MixerBlock_0"):
      return
    first = self.get_variable("params", "MixerBlock_0")
    num_mixed = first["token_mixing"]["Dense_0"]["kernel"].shape[0]
    h, w = (pixels // patch for pixels, patch in zip(shape[1:3], patch_size))
    if h * w != num_mixed:
      raise ValueError(
          f"Images {list(shape)} have {h} x {w} = {h * w} patches of "
          f"{patch_size}, but the parameters mix {num_mixed}: a Mixer only "
          "takes images of the size that it was made for. Resize the images, "
          "or make a model for their size.")


@variants.takes_fields_of(Mixer)
def Model(num_classes: ranges.Count | None = None, *,
          variant: str | None = None, **kw) -> Mixer:  # pylint: disable=invalid-name
  """Returns a Mixer; `variant` ("B/16") gives the sizes that `kw` does not."""
  return Mixer(num_classes, **{**decode_variant(variant), **kw})


# Locations of published weights, all for images of 224 x 224. Buckets come and
# go, so `load` also takes the path of a copy.
VANITY_NAMES = {
    f"{size}-{short}/16": f"gs://mixer_models/{data}/Mixer-{size}_16.npz"
    for short, data in (("i1k", "imagenet1k"), ("i21k", "imagenet21k"))
    for size in ("B", "L")
}


def load(init_params, init_file: str, model_cfg: Mapping[str, Any],
         dont_load: Sequence[str] = ()) -> dict:
  """Loads like `weights.load`; `init_file` may also be one of VANITY_NAMES.

  Models for another number of patches do not fit the weights that mix tokens.
  """
  del model_cfg  # `init_params` has all sizes.
  params = weights.read(weights.find(init_file, VANITY_NAMES))
  return weights.fit(params, init_params, dont_load, init_file)
