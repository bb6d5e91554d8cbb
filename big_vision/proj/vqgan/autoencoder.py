"""A convolutional autoencoder with a quantizer between its halves.

Source: arXiv:2012.09841. The architecture and parameter names follow
CompVis/taming-transformers; it is that of DDPM (arXiv:2006.11239) without time
embeddings.

Dimensions: b batch, h w rows and columns, c channels.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision import ranges
from big_vision.layers import attention as attention_lib
from big_vision.layers import activation_sharding
from big_vision.layers import checks
from big_vision.proj.vqgan import group_norm
from big_vision.proj.vqgan import quantizers


def normalize(x, name: str, dtype):
  """Applies a GroupNorm with the published epsilon."""
  return nn.GroupNorm(group_norm.num_groups(x.shape[-1]), epsilon=1e-6,
                      dtype=dtype, name=name)(x)


def _conv(x, channels, name, dtype, side=3, **kw):
  return nn.Conv(channels, (side, side), name=name, dtype=dtype, **kw)(x)


class ResnetBlock(nn.Module):
  """Two normalized 3 x 3 convolutions with a residual connection."""
  channels: int
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train: bool):
    y = nn.swish(normalize(x, "norm1", self.dtype))
    y = _conv(y, self.channels, "conv1", self.dtype)
    y = nn.swish(normalize(y, "norm2", self.dtype))
    y = nn.Dropout(self.dropout)(y, deterministic=not train)
    y = _conv(y, self.channels, "conv2", self.dtype)
    if x.shape[-1] != self.channels:
      x = _conv(x, self.channels, "nin_shortcut", self.dtype, side=1)
    return activation_sharding.constrain(x + y, "act_batch", None, None, None)


class AttentionBlock(nn.Module):
  """Attention with one head among all positions, with a residual connection."""
  attention: str = "dense"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape
    y = normalize(x, "norm", self.dtype)
    q, k, v = (
        _conv(y, c, name, self.dtype, side=1).reshape(b, h * w, 1, c)
        for name in ("q", "k", "v"))
    y = attention_lib.attend(q, k, v, impl=self.attention)
    return x + _conv(y.reshape(x.shape), c, "proj_out", self.dtype, side=1)


def downsample(x, name: str, dtype):
  """Halves the size by a 3 x 3 convolution, padded at bottom and right."""
  x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
  return nn.Conv(x.shape[-1], (3, 3), strides=2, padding="VALID", dtype=dtype,
                 name=name)(x)


def upsample(x, name: str, dtype):
  """Doubles the size: repeats each pixel 2 x 2 times, then convolves 3 x 3."""
  x = x.repeat(2, axis=1).repeat(2, axis=2)
  return _conv(x, x.shape[-1], name, dtype)


class Encoder(nn.Module):
  """Encodes images: float[b, H, W, c] -> float32[b, h, w, z_width]."""
  width: int
  mults: Sequence[int]
  depth: int
  attn_factors: Sequence[int]
  z_width: int
  dropout: float
  attention: str
  dtype: Any

  @nn.compact
  def __call__(self, image, train: bool):
    x = _conv(image, self.width, "conv_in", self.dtype)
    for i, mult in enumerate(self.mults):
      for j in range(self.depth):
        x = ResnetBlock(self.width * mult, self.dropout, self.dtype,
                        name=f"down_{i}_block_{j}")(x, train)
        if 2 ** i in self.attn_factors:
          x = AttentionBlock(self.attention, self.dtype,
                             name=f"down_{i}_attn_{j}")(x)
      if i < len(self.mults) - 1:
        x = downsample(x, f"down_{i}_downsample", self.dtype)
    x = _middle(self, x, train)
    x = nn.swish(normalize(x, "norm_out", self.dtype))
    return _conv(x, self.z_width, "conv_out", jnp.float32)


class Decoder(nn.Module):
  """Decodes vectors to the features from which an image is made.

  It mirrors the encoder, with one more block in each level. The last
  convolution belongs to `Model`, because the adversarial weight needs it alone.
  """
  width: int
  mults: Sequence[int]
  depth: int
  attn_factors: Sequence[int]
  dropout: float
  attention: str
  dtype: Any

  @nn.compact
  def __call__(self, z, train: bool):
    x = _conv(z, self.width * self.mults[-1], "conv_in", self.dtype)
    x = _middle(self, x, train)
    for i, mult in reversed(list(enumerate(self.mults))):
      for j in range(self.depth + 1):
        x = ResnetBlock(self.width * mult, self.dropout, self.dtype,
                        name=f"up_{i}_block_{j}")(x, train)
        if 2 ** i in self.attn_factors:
          x = AttentionBlock(self.attention, self.dtype,
                             name=f"up_{i}_attn_{j}")(x)
      if i:
        x = upsample(x, f"up_{i}_upsample", self.dtype)
    return nn.swish(normalize(x, "norm_out", self.dtype)).astype(jnp.float32)


def _middle(half, x, train):
  """Applies the blocks that encoder and decoder have at the smallest size."""
  x = ResnetBlock(x.shape[-1], half.dropout, half.dtype,
                  name="mid_block_1")(x, train)
  x = AttentionBlock(half.attention, half.dtype, name="mid_attn_1")(x)
  return ResnetBlock(x.shape[-1], half.dropout, half.dtype,
                     name="mid_block_2")(x, train)


class Model(nn.Module):
  """Maps images to codes and back.

  Attributes:
    channels: Number of channels of the images.
    width: Number of channels of the first level.
    mults: Number of channels of each level, in multiples of `width`. The size
      halves between levels, so that n levels give 2 ** (n - 1) pixels along the
      side of a code.
    depth: Number of residual blocks in each level of the encoder.
    attn_factors: Levels with attention, given by their reduction of the image
      size; (16,) is the level of 16 x 16 for images of 256 x 256.
    z_width: Number of channels that leave the encoder and enter the decoder.
    quantizer: Quantizer, see `quantizers.make`; for example
      "vq(num_codes=1024, width=256)", "ema(...)" or "fsq(levels=(8, 5, 5, 5))".
    dropout: Dropout rate within residual blocks.
    attention: Implementation, see `attention.attend`.
    dtype_mm: Dtype of activations. Parameters, quantization and reconstructions
      are float32 regardless.
  """
  channels: int = 3
  width: ranges.Count = 128
  mults: Sequence[ranges.Count] = (1, 1, 2, 2, 4)
  depth: ranges.Count = 2
  attn_factors: Sequence[ranges.Count] = (16,)
  z_width: ranges.Count = 256
  quantizer: str = "vq(num_codes=1024, width=256)"
  dropout: ranges.Decay = 0.0
  attention: str = "dense"
  dtype_mm: str = "float32"

  def setup(self):
    if not self.mults:
      raise ValueError("mults must have a number for each level; it is empty.")
    args = dict(
        width=self.width, mults=self.mults, depth=self.depth,
        attn_factors=self.attn_factors, dropout=self.dropout,
        attention=self.attention, dtype=checks.compute_dtype(self.dtype_mm))
    self.encoder = Encoder(z_width=self.z_width, **args)
    self.decoder = Decoder(**args)
    self.conv_out = nn.Conv(self.channels, (3, 3))
    self.quantize = quantizers.make(self.quantizer)
    self.quant_conv = nn.Conv(self.quantize.width, (1, 1))
    self.post_quant_conv = nn.Conv(self.z_width, (1, 1))

  @property
  def factor(self) -> int:
    """Number of pixels along the side of a code."""
    return 2 ** (len(self.mults) - 1)

  @property
  def num_codes(self) -> int:
    """Number of different codes."""
    return quantizers.make(self.quantizer, parent=None).num_codes

  def __call__(self, image, *, train: bool = False):
    """Encodes, quantizes and decodes.

    Args:
      image: float32[b, H, W, c] in [-1, 1].
      train: Whether dropout acts (rng stream "dropout") and an `ema` quantizer
        updates its codebook, whose collection must then be mutable.

    Returns:
      reconstruction: float32[b, H, W, c], not limited to [-1, 1].
      out: {"z": float32[b, h, w, d], vectors before quantization; "codes":
        int32[b, h, w]; "losses": see `quantizers`; "head_input":
        float32[b, H, W, width], input of the last convolution}.

    Raises:
      ValueError: The factor does not divide height and width, or the number of
        channels is wrong.
    """
    quantized, out = self.encode(image, train=train)
    out["head_input"] = self.decoder(self.post_quant_conv(quantized), train)
    return self.conv_out(out["head_input"]), out

  def encode(self, image, *, train: bool = False):
    """Encodes: float32[b, H, W, c] -> float32[b, h, w, d], out."""
    checks.check_patches(
        image, self.factor, "The factor is 2 ** (len(mults) - 1).")
    if image.shape[-1] != self.channels:
      raise ValueError(
          f"Images have {image.shape[-1]} channels; model.channels is "
          f"{self.channels}.")
    z = self.quant_conv(self.encoder(image, train))
    quantized, out = self.quantize(z, train)
    return quantized, {"z": z, **out}

  def decode(self, quantized):
    """Decodes vectors: float32[b, h, w, d] -> float32[b, H, W, c]."""
    return self.conv_out(self.decoder(self.post_quant_conv(quantized), False))

  def decode_codes(self, codes):
    """Decodes codes: int32[b, h, w] -> float32[b, H, W, c]."""
    return self.decode(self.quantize.lookup(codes))


def last_layer(params, head_input):
  """Applies the decoder's last convolution alone.

  The gradients of both losses with respect to its kernel set the weight of the
  adversarial loss.

  Args:
    params: Parameters of `Model`, {"conv_out": {"kernel", "bias"}, ...}.
    head_input: float32[b, H, W, width], the entry of `out`.

  Returns:
    float32[b, H, W, c].
  """
  channels = params["conv_out"]["kernel"].shape[-1]
  return nn.Conv(channels, (3, 3), parent=None).apply(
      {"params": params["conv_out"]}, jax.lax.stop_gradient(head_input))
