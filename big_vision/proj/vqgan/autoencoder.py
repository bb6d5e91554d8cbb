"""A convolutional autoencoder with a quantizer between its halves.

Source: arXiv:2012.09841; architecture and names of CompVis/taming-transformers,
which are those of DDPM (arXiv:2006.11239) without time.

Dimensions: b batch, h w rows and columns, c channels.
"""

from collections.abc import Sequence
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision.layers import attention as attention_lib
from big_vision.layers import activation_sharding
from big_vision.layers import checks
from big_vision.proj.vqgan import quantizers


def num_groups(channels: int) -> int:
  """Of a GroupNorm: 32, as published, but none of fewer than 4 channels.

  A single channel would lose its mean, and with it how bright an even patch is;
  what is published has 4 and more. Fewer groups where so many do not divide.
  """
  return math.gcd(channels, min(32, max(1, channels // 4)))


def normalize(x, name: str, dtype):
  return nn.GroupNorm(num_groups(x.shape[-1]), epsilon=1e-6, dtype=dtype,
                      name=name)(x)


def _conv(x, channels, name, dtype, side=3, **kw):
  return nn.Conv(channels, (side, side), name=name, dtype=dtype, **kw)(x)


class ResnetBlock(nn.Module):
  """Two normalized 3 x 3 convolutions beside a residual."""
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
  """All places look at each other, with one head, beside a residual."""
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
  """Half the size: 3 x 3, padded by one at the bottom and right only."""
  x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
  return nn.Conv(x.shape[-1], (3, 3), strides=2, padding="VALID", dtype=dtype,
                 name=name)(x)


def upsample(x, name: str, dtype):
  """Twice the size: every pixel four times, then 3 x 3."""
  x = x.repeat(2, axis=1).repeat(2, axis=2)
  return _conv(x, x.shape[-1], name, dtype)


class Encoder(nn.Module):
  """Images to vectors, float[b, H, W, c] -> float32[b, h, w, z_width]."""
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
  """Vectors to images, the encoder the other way round, a block more a level.

  The last convolution is of `Model`, which needs it alone too.
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
  """What encoder and decoder have at the smallest size."""
  x = ResnetBlock(x.shape[-1], half.dropout, half.dtype,
                  name="mid_block_1")(x, train)
  x = AttentionBlock(half.attention, half.dtype, name="mid_attn_1")(x)
  return ResnetBlock(x.shape[-1], half.dropout, half.dtype,
                     name="mid_block_2")(x, train)


class Model(nn.Module):
  """Images to codes and back.

  Attributes:
    channels: Number of channels of the images.
    width: channels of the first level.
    mults: channels of each level, in widths. Between levels the size halves,
      so n of them have factor 2 ** (n - 1) from pixels to codes.
    depth: residual blocks a level.
    attn_factors: levels with attention, by how much smaller than the image they
      are; (16,) is the level of 16 x 16 of an image of 256 x 256.
    z_width: channels out of the encoder and into the decoder.
    quantizer: see `quantizers.make`: "vq(num_codes=1024, width=256)",
      "ema(...)" or "fsq(levels=(8, 5, 5, 5))".
    dropout: rate, within residual blocks.
    attention: implementation, see `attention.attend`.
    dtype_mm: dtype of activations. Parameters, quantization and the images that
      come out are float32 regardless.
  """
  channels: int = 3
  width: int = 128
  mults: Sequence[int] = (1, 1, 2, 2, 4)
  depth: int = 2
  attn_factors: Sequence[int] = (16,)
  z_width: int = 256
  quantizer: str = "vq(num_codes=1024, width=256)"
  dropout: float = 0.0
  attention: str = "dense"
  dtype_mm: str = "float32"

  def setup(self):
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
    """Pixels along a side for one code."""
    return 2 ** (len(self.mults) - 1)

  @property
  def num_codes(self) -> int:
    """How many different codes there are."""
    return quantizers.make(self.quantizer, parent=None).num_codes

  def __call__(self, image, *, train: bool = False):
    """Encodes, quantizes and decodes.

    Args:
      image: float32[b, H, W, c] in [-1, 1].
      train: whether dropout acts (rng stream "dropout") and, of an `ema`
        quantizer, the codebook follows, which is then to be mutable.

    Returns:
      reconstruction: float32[b, H, W, c], not limited to [-1, 1].
      out: {"z": float32[b, h, w, d], before quantization, "codes":
        int32[b, h, w], "losses": see `quantizers`, "head_input":
        float32[b, H, W, width], what the last convolution sees}.

    Raises:
      ValueError: height or width are no multiple of the factor, or other
        channels.
    """
    quantized, out = self.encode(image, train=train)
    out["head_input"] = self.decoder(self.post_quant_conv(quantized), train)
    return self.conv_out(out["head_input"]), out

  def encode(self, image, *, train: bool = False):
    """float32[b, H, W, c] -> float32[b, h, w, d] and `out`, see `__call__`."""
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
    """float32[b, h, w, d] -> float32[b, H, W, c]."""
    return self.conv_out(self.decoder(self.post_quant_conv(quantized), False))

  def decode_codes(self, codes):
    """int32[b, h, w] -> float32[b, H, W, c]."""
    return self.decode(self.quantize.lookup(codes))


def last_layer(params, head_input):
  """The decoder's last convolution alone: its kernel decides the weight.

  Args:
    params: Parameters of `Model`, {"conv_out": {"kernel", "bias"}, ...}.
    head_input: float32[b, H, W, width], of `out`.

  Returns:
    float32[b, H, W, c].
  """
  channels = params["conv_out"]["kernel"].shape[-1]
  return nn.Conv(channels, (3, 3), parent=None).apply(
      {"params": params["conv_out"]}, jax.lax.stop_gradient(head_input))
