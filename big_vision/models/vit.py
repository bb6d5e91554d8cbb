"""Vision Transformer.

Source: arXiv:2010.11929, with the differences of google-research/big_vision,
whose parameter names it has: the class token gets no position embedding, the
head can read the mean of the tokens, a probe that attends to them
(arXiv:2106.04560) or the class token.

Dimensions: b batch, h w rows and columns of patches, n tokens, d width,
k classes.
"""

from collections.abc import Mapping, Sequence
import functools
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from big_vision import weights
from big_vision.layers import attention as attention_lib
from big_vision.layers import common

POSEMBS = ("learn", "sincos2d")
POOL_TYPES = ("gap", "map", "tok", "0", "none")
GELUS = ("tanh", "erf")

# name: (width, depth, mlp_dim, num_heads)
VARIANTS = {
    "mu": (32, 1, 128, 2),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "g-opt": (1536, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
    "G-opt": (1536, 48, 8192, 16),
    "e": (1792, 56, 15360, 16),
}


def decode_variant(variant: str | None) -> dict[str, Any]:
  """The arguments that "B/16" stands for; see `common.decode_variant`."""
  return common.decode_variant(
      variant, VARIANTS, ("width", "depth", "mlp_dim", "num_heads"),
      family="ViT")


def posemb_sincos2d(h: int, w: int, width: int, temperature: float = 10_000.):
  """Fixed position embedding, float32[1, h * w, width] in [-1, 1].

  The channels are four equal parts: sin x, cos x, sin y, cos y, each at
  geometrically falling frequencies.

  Raises:
    ValueError: `width` is not a multiple of 4, or less than 8.

  Source: arXiv:2104.02057 (MoCo v3).
  """
  if width % 4 or width < 8:
    raise ValueError(
        f"posemb='sincos2d' wants a width that is a multiple of 4 and at least "
        f"8, it is {width}.")
  omega = temperature ** -(np.arange(width // 4) / (width // 4 - 1))
  y, x = jnp.asarray(
      np.mgrid[:h, :w].reshape(2, h * w, 1), jnp.float32) * omega
  # Computed in jnp: as constants of NumPy, they would swell the program.
  return jnp.concatenate(
      [jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=1)[None]


class MlpBlock(nn.Module):
  """Two dense layers with a GELU between, on the last axis."""
  mlp_dim: int
  dropout: float = 0.0
  dtype: Any = jnp.float32
  gelu: str = "tanh"

  @nn.compact
  def __call__(self, x, train: bool = False):
    common.check_choice("gelu", self.gelu, GELUS)
    dense = functools.partial(
        nn.Dense, dtype=self.dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=nn.initializers.normal(stddev=1e-6))
    width = x.shape[-1]
    x = dense(self.mlp_dim)(x)
    x = common.constrain(x, "act_batch", "act_len", "act_mlp")
    x = nn.gelu(x, approximate=self.gelu == "tanh")
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    return dense(width)(x)


class Encoder1DBlock(nn.Module):
  """Pre-norm transformer block: attention, then MLP, each beside a residual.

  `out` has what the branches give, "sa" and "mlp", and the sums, "+sa", "+mlp".
  """
  mlp_dim: int
  num_heads: int
  dropout: float = 0.0
  stoch_depth_mode: str = "inverted"
  dtype: Any = jnp.float32
  attention: str = "dense"
  gelu: str = "tanh"

  @nn.compact
  def __call__(self, x, rate, train: bool, mask=None):
    """[b, n, d] -> [b, n, d], out.

    Args:
      x: [b, n, d].
      rate: of stochastic depth, or None.
      train: whether it and dropout act.
      mask: bool[b, n], False for tokens that are not looked at; None if all
        are.
    """
    out = {}
    seen = None if mask is None else mask[:, None, None, :]
    # Flax numbers submodules in the order of the calls; the names are spelt
    # out where the class is called differently than in published weights.
    y = nn.LayerNorm(dtype=self.dtype)(x)
    y = out["sa"] = attention_lib.MultiHeadAttention(
        self.num_heads, attention=self.attention, dtype=self.dtype,
        name="MultiHeadDotProductAttention_0")(y, mask=seen)
    x = out["+sa"] = self._add(x, y, rate, train)

    y = nn.LayerNorm(dtype=self.dtype)(x)
    y = out["mlp"] = MlpBlock(
        self.mlp_dim, self.dropout, self.dtype, self.gelu)(y, train)
    x = out["+mlp"] = self._add(x, y, rate, train)
    return x, out

  def _add(self, x, y, rate, train):
    """Adds a branch to the residual, or what is left of it in training."""
    y = nn.Dropout(self.dropout)(y, deterministic=not train)
    if rate is not None:
      y = common.drop_branch(
          y, rate, self.make_rng("dropout") if train else None,
          mode=self.stoch_depth_mode, train=train)
    return common.constrain(x + y, "act_batch", "act_len", "act_emb")


class Encoder(nn.Module):
  """A stack of blocks, then a LayerNorm.

  With `scan` the blocks are compiled once, as `encoderblock` with a leading
  depth axis; without, they are `encoderblock_0`, ... `weights.stack_blocks` and
  `unstack_blocks` convert. `out` is the same for both.
  """
  depth: int
  mlp_dim: int
  num_heads: int
  dropout: float = 0.0
  stoch_depth: float = 0.0
  stoch_depth_mode: str = "inverted"
  scan: bool = False
  remat_policy: str = "none"
  dtype: Any = jnp.float32
  attention: str = "dense"
  gelu: str = "tanh"

  @nn.compact
  def __call__(self, x, train: bool, mask=None):
    """[b, n, d] -> float32[b, n, d], out; `mask` as in `Encoder1DBlock`."""
    common.check_choice(
        "stoch_depth_mode", self.stoch_depth_mode, common.STOCH_DEPTH_MODES)
    rates = common.stoch_depth_rates(self.stoch_depth, self.depth)
    args = dict(
        mlp_dim=self.mlp_dim, num_heads=self.num_heads, dropout=self.dropout,
        stoch_depth_mode=self.stoch_depth_mode, dtype=self.dtype,
        attention=self.attention, gelu=self.gelu)
    block = common.remat(Encoder1DBlock, self.remat_policy, in_scan=self.scan)
    out = {}
    if self.scan:
      x, outs = nn.scan(
          block, variable_axes={"params": 0, attention_lib.FEATURES: 0},
          split_rngs={"params": True, "dropout": True},
          in_axes=(0,) + (nn.broadcast,) * 2, length=self.depth)(
              **args, name="encoderblock")(
                  x, jnp.asarray(rates) if self.stoch_depth else None, train,
                  mask)
      for i in range(self.depth):
        out[f"block{i:02d}"] = jax.tree.map(lambda leaf, i=i: leaf[i], outs)
    else:
      for i, rate in enumerate(rates):
        x, out[f"block{i:02d}"] = block(**args, name=f"encoderblock_{i}")(
            x, rate or None, train, mask)
    out["pre_ln"] = x
    # From here on float32: means over tokens and logits are sensitive.
    return nn.LayerNorm(name="encoder_norm", dtype=jnp.float32)(x), out


class MAPHead(nn.Module):
  """Multi-head attention pooling: [b, n, d] -> [b, d].

  One learned query attends to all tokens; a block's MLP follows.

  Source: arXiv:2106.04560, Section 3.1.
  """
  mlp_dim: int
  num_heads: int
  dtype: Any = jnp.float32
  gelu: str = "tanh"

  @nn.compact
  def __call__(self, x):
    b, _, d = x.shape
    probe = self.param(
        "probe", nn.initializers.xavier_uniform(), (1, 1, d), jnp.float32)
    # A single query costs memory linear in n however it is implemented.
    x = attention_lib.MultiHeadAttention(
        self.num_heads, dtype=self.dtype,
        name="MultiHeadDotProductAttention_0")(jnp.tile(probe, (b, 1, 1)), x)
    y = nn.LayerNorm(dtype=self.dtype)(x)
    x = x + MlpBlock(self.mlp_dim, dtype=self.dtype, gelu=self.gelu)(y)
    return x[:, 0]


class ViT(nn.Module):
  """Vision Transformer; make it with `Model`.

  Images are float32[b, height, width, channels], by custom in [-1, 1].

  Attributes:
    num_classes: of the head; None has no head and returns features.
    patch_size: (height, width) of patches, in pixels.
    width: of the tokens.
    depth: number of blocks.
    mlp_dim: hidden width of the MLPs; None is 4 * width.
    num_heads: of attention.
    posemb: "learn" (one vector per place of the grid) or "sincos2d" (fixed).
    rep_size: width of a dense layer with tanh before the head; True is `width`,
      False has none.
    dropout: rate, after the position embedding, in MLPs and on both branches.
    stoch_depth: rate of stochastic depth of the last block, see
      `common.stoch_depth_rates`; per example, independent for both branches.
    stoch_depth_mode: see `common.drop_branch`.
    pool_type: what the head sees: "gap" the mean of all tokens, "map" a probe's
      attention to them, "tok" a class token, "0" the first token, "none" each.
    head_zeroinit: whether the head's kernel starts at zero.
    scan: one compiled block instead of `depth`: compiles faster.
    remat_policy: what to keep for the backward pass, see `common.remat`.
    dtype_mm: dtype of activations. Parameters, LayerNorm statistics, softmax,
      pooling by mean, pre_logits and logits are float32 regardless.
    attention: implementation, with options if need be ("local(window=16)"), see
      `attention.MultiHeadAttention`. A probe's attention is always dense.
    gelu: "tanh" (approximation, as published weights) or "erf" (exact).
  """
  num_classes: int | None = None
  patch_size: int | Sequence[int] = (16, 16)
  width: int = 768
  depth: int = 12
  mlp_dim: int | None = None
  num_heads: int = 12
  posemb: str = "learn"
  rep_size: int | bool = False
  dropout: float = 0.0
  stoch_depth: float = 0.0
  stoch_depth_mode: str = "inverted"
  pool_type: str = "gap"
  head_zeroinit: bool = True
  scan: bool = False
  remat_policy: str = "none"
  dtype_mm: str = "float32"
  attention: str = "dense"
  gelu: str = "tanh"

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    """Classifies images.

    Args:
      image: float32[b, height, width, channels].
      train: whether dropout and stochastic depth act; they draw from the rng
        stream "dropout".

    Returns:
      logits: float32[b, k]; without a head the features, float32[b, d]; with
        pool_type "none" these per token, [b, n, ...].
      out: what is on the way, names in order, in dtype_mm unless said:
        stem [b, h, w, d], with_posemb [b, n, d],
        encoder/blockNN/{sa, +sa, mlp, +mlp} and encoder/pre_ln [b, n, d],
        encoded float32[b, n, d] (n counts the class token from the blocks on),
        head_input float32[b, d],
        pre_logits_2d float32[b, h, w, d] and pre_logits float32[b, d] (of
        width rep_size, if that is set),
        logits_2d float32[b, h, w, k] and logits float32[b, k] with a head. The
        ones in 2d are the head applied at each patch.

    Raises:
      ValueError: sizes that are no multiple of the patch, unknown options.
    """
    common.check_choice("posemb", self.posemb, POSEMBS)
    common.check_choice("pool_type", self.pool_type, POOL_TYPES)
    dtype = common.compute_dtype(self.dtype_mm)
    patch_size = common.check_patches(image, self.patch_size)
    mlp_dim = self.mlp_dim or 4 * self.width
    out = {}

    x = out["stem"] = nn.Conv(
        self.width, patch_size, strides=patch_size, padding="VALID",
        dtype=dtype, name="embedding")(image)
    b, h, w, d = x.shape
    x = x.reshape(b, h * w, d)
    if self.posemb == "learn":
      posemb = self.param(
          "pos_embedding", nn.initializers.normal(stddev=1 / math.sqrt(d)),
          (1, h * w, d), jnp.float32)
    else:
      posemb = posemb_sincos2d(h, w, d)
    x = out["with_posemb"] = (x + posemb).astype(dtype)

    if self.pool_type == "tok":
      cls = self.param("cls", nn.initializers.zeros, (1, 1, d), jnp.float32)
      cls = jnp.tile(cls.astype(dtype), (b, 1, 1))
      x = jnp.concatenate([cls, x], axis=1)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = common.constrain(x, "act_batch", "act_len", "act_emb")

    x, out["encoder"] = Encoder(
        depth=self.depth, mlp_dim=mlp_dim, num_heads=self.num_heads,
        dropout=self.dropout, stoch_depth=self.stoch_depth,
        stoch_depth_mode=self.stoch_depth_mode, scan=self.scan,
        remat_policy=self.remat_policy, dtype=dtype, attention=self.attention,
        gelu=self.gelu, name="Transformer")(x, train)
    tokens = out["encoded"] = x

    if self.pool_type == "map":
      x = MAPHead(mlp_dim, self.num_heads, dtype, self.gelu)(tokens)
    elif self.pool_type == "gap":
      x = jnp.mean(tokens, axis=1)
    elif self.pool_type in ("tok", "0"):
      x = tokens[:, 0]
    x = out["head_input"] = x.astype(jnp.float32)
    if self.pool_type == "tok":
      tokens = tokens[:, 1:]
    x_2d = tokens.reshape(b, h, w, d)

    if self.rep_size:
      rep_size = d if self.rep_size is True else self.rep_size
      dense = nn.Dense(rep_size, name="pre_logits")
      x, x_2d = nn.tanh(dense(x)), nn.tanh(dense(x_2d))
    out["pre_logits_2d"], out["pre_logits"] = x_2d, x

    if self.num_classes:
      head_init = {"kernel_init": nn.initializers.zeros} if (
          self.head_zeroinit) else {}
      head = nn.Dense(self.num_classes, name="head", **head_init)
      x, x_2d = head(x), head(x_2d)
      out["logits_2d"], out["logits"] = x_2d, x
    return x, out


@common.takes_fields_of(ViT)
def Model(num_classes: int | None = None, *, variant: str | None = None,
          **kw) -> ViT:  # pylint: disable=invalid-name
  """A ViT; `variant` ("B/16") gives the sizes that `kw` does not."""
  return ViT(num_classes, **{**decode_variant(variant), **kw})


def resample_posemb(
    posemb, grid: tuple[int, int], new_grid: tuple[int, int]) -> np.ndarray:
  """Position embeddings for another grid of patches, by linear interpolation.

  The corners stay in place ("align corners"): 4 numbers 0, 1, 2, 3 become, for
  8, 0, 3/7, 6/7, ... 3.

  Args:
    posemb: float[1, h * w, d].
    grid: its (h, w).
    new_grid: the wanted one.

  Returns:
    float32[1, new h * new w, d].
  """
  old = np.asarray(posemb, np.float32).reshape(*grid, -1)
  zoom = (new_grid[0] / grid[0], new_grid[1] / grid[1], 1)
  new = scipy.ndimage.zoom(old, zoom, order=1)
  return new.reshape(1, math.prod(new_grid), -1)


def _infer_grid(num_patches: int, given, argument: str) -> tuple[int, int]:
  """The given grid, after a check, or else the square of that many patches."""
  if given is None:
    side = math.isqrt(num_patches)
    if side * side != num_patches:
      raise ValueError(
          f"{num_patches} position embeddings are no square grid; state its "
          f"(height, width) in patches as {argument}.")
    return side, side
  grid = tuple(given)
  if len(grid) != 2 or math.prod(grid) != num_patches:
    raise ValueError(
        f"{argument} is {grid}, which does not hold the {num_patches} position "
        "embeddings there are.")
  return grid


def _howto(variant, aug, wd):
  """Recommended by "How to train your ViT?", arXiv:2106.10270."""
  return (f"gs://vit_models/augreg/{variant.replace('/', '_')}-i21k-300ep-"
          f"lr_0.001-aug_{aug}-wd_{wd}-do_0.0-sd_0.0.npz")


_SIGLIP = "gs://big_vision/siglip/webli_{}.npz:img"
_SIGLIP2 = "gs://big_vision/siglip2/siglip2_{}.npz:img"

# Where the published weights are; buckets come and go, so `load` also takes the
# path of a copy.
VANITY_NAMES = {
    **{f"howto-i21k-{variant}": _howto(variant, aug, wd)
       for variant, aug, wd in (
           ("Ti/16", "none", 0.03), ("S/32", "none", 0.1),
           ("S/16", "light1", 0.03), ("B/32", "light1", 0.1),
           ("B/16", "medium1", 0.1), ("B/8", "medium2", 0.1),
           ("L/16", "strong1", 0.1))},
    # The plain S/16 of arXiv:2205.01580: gap, sincos2d, rep_size.
    **{f"i1k-s16-{epochs}ep": f"gs://big_vision/vit_s16_i1k_{epochs}ep.npz"
       for epochs in (90, 150, 300)},
    # DeiT III, arXiv:2204.07118; made to take images in [-1, 1].
    **{f"deit3_{letter}_{res}_{data}":
       f"gs://big_vision/zoo/deit3/bv_deit_3_{size}_{res}_{data}.npz"
       for letter, size in (("S", "small"), ("B", "base"), ("L", "large"))
       for res in (224, 384) for data in ("1k", "21k")},
    # Image towers of arXiv:2303.15343: map, no head.
    **{f"SigLIP {name}": _SIGLIP.format(file) for name, file in (
        ("B/16 224", "en_b16_224_63724782"),
        ("B/16 256", "en_b16_256_60500360"),
        ("B/16 384", "en_b16_384_68578854"),
        ("B/16 512", "en_b16_512_68580893"),
        ("L/16 256", "en_l16_256_60552751"),
        ("L/16 384", "en_l16_384_63634585"),
        ("So400m/14 224", "en_so400m_224_57633886"),
        ("So400m/14 384", "en_so400m_384_58765454"),
        ("B/16-i18n 256", "i18n_b16_256_66117334"))},
    # Image towers of arXiv:2502.14786: map, no head.
    **{f"SigLIP2 {variant} {res}": _SIGLIP2.format(
        f"{variant.lower().replace('/', '')}_{res}")
       for variant, resolutions in (
           ("B/32", (256,)), ("B/16", (224, 256, 384, 512)),
           ("L/16", (256, 384, 512)), ("So400m/14", (224, 384)),
           ("So400m/16", (256, 384, 512)), ("g-opt/16", (256, 384)))
       for res in resolutions},
}


def fix_old_params(params: Mapping) -> dict:
  """Parameters of older files under today's names.

  Files of the first generation number submodules in the order of all calls
  (LayerNorm_0, MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3); today
  each kind counts for itself. They keep the position embedding within the
  Transformer, and the parts of a MAP head beside it.
  """
  params = _renumber(params)
  encoder = params["Transformer"] = dict(params.get("Transformer", {}))
  for holder in (params, encoder):
    if "posembed_input" in holder:
      params.update(holder.pop("posembed_input"))
  if "pos_embedding" in encoder:
    params["pos_embedding"] = encoder.pop("pos_embedding")
  if "probe" in params:
    params["MAPHead_0"] = {
        key: params.pop(key) for key in (
            "probe", "MultiHeadDotProductAttention_0", "LayerNorm_0",
            "MlpBlock_0") if key in params}
  return params


def _renumber(params: Mapping) -> dict:
  """Numbers classes (LayerNorm_2) from zero each, in their order."""
  parts = {key: re.fullmatch(r"([A-Z]\w*)_(\d+)", key) for key in params}
  renamed, count = {}, {}
  for key in sorted(params, key=lambda k: int(parts[k][2]) if parts[k] else -1):
    value = params[key]
    if parts[key]:
      place = count.setdefault(parts[key][1], 0)
      count[parts[key][1]] += 1
      key = f"{parts[key][1]}_{place}"
    renamed[key] = _renumber(value) if isinstance(value, Mapping) else value
  return renamed


def _has_cls_posemb(num_there: int, num_patches: int, file_posemb_grid):
  """Whether the first position embedding of a file is the class token's.

  Raises:
    ValueError: it may be or not; names the argument that would tell.
  """
  is_square = lambda n: math.isqrt(n) ** 2 == n
  if file_posemb_grid is not None:
    return num_there == math.prod(file_posemb_grid) + 1
  if num_there == num_patches:
    return False
  if is_square(num_there) and num_there - 1 == num_patches:
    raise ValueError(
        f"Of {num_there} position embeddings, for {num_patches} patches, the "
        "first may be the class token's or not; state the (height, width) in "
        "patches of the file as file_posemb_grid.")
  return num_there - 1 == num_patches or is_square(num_there - 1)


def _fit_posemb(params, num_patches, posemb_grid, file_posemb_grid) -> dict:
  """`params` with a position embedding for as many patches as wanted."""
  posemb = params["pos_embedding"]
  if "cls" in params and _has_cls_posemb(
      posemb.shape[1], num_patches, file_posemb_grid):
    # Older models gave the class token a position; only the sum matters.
    params = {**params, "cls": (params["cls"].astype(np.float32) +
                                posemb[:, :1].astype(np.float32))}
    posemb = posemb[:, 1:]
  num_there = posemb.shape[1]
  if num_there != num_patches or posemb_grid or file_posemb_grid:
    grid = _infer_grid(num_there, file_posemb_grid, "file_posemb_grid")
    new_grid = _infer_grid(num_patches, posemb_grid, "posemb_grid")
    if (num_there == num_patches and grid != new_grid and
        not (posemb_grid and file_posemb_grid)):
      raise ValueError(
          f"There are as many position embeddings as patches, {num_patches}, "
          f"which may still be {grid} in the file and {new_grid} in the model; "
          "state both posemb_grid and file_posemb_grid, or neither.")
    posemb = resample_posemb(posemb, grid, new_grid)
  return {**params, "pos_embedding": posemb}


def load(init_params, init_file: str, model_cfg: Mapping[str, Any],
         dont_load: Sequence[str] = (), *,
         posemb_grid: Sequence[int] | None = None,
         file_posemb_grid: Sequence[int] | None = None) -> dict:
  """Parameters of a file, fitted to a model: names, blocks, grid of patches.

  Args:
    init_params: the model's parameters, as jax.ShapeDtypeStruct or arrays.
    init_file: one of VANITY_NAMES or a file, see `weights.read`.
    model_cfg: what the model was made with; nothing here depends on it.
    dont_load: regexes of the model's names to leave out, like "head/.*".
    posemb_grid: (height, width) in patches of the model's images.
    file_posemb_grid: the same of the file's. With neither, embeddings are taken
      as they are if there are as many as patches; what else is not given is
      taken to be square.

  Returns:
    The structure of `init_params`: NumPy arrays, and for what `dont_load`
    leaves out, the leaf that was given.

  Raises:
    ValueError: what does not fit, all at once, see `weights.fit`.
  """
  del model_cfg  # `init_params` say it all.
  params = fix_old_params(
      weights.read(weights.find(init_file, VANITY_NAMES)))
  is_stacked = "encoderblock" in params["Transformer"]
  is_wanted_stacked = "encoderblock" in init_params["Transformer"]
  if is_wanted_stacked and not is_stacked:
    params["Transformer"] = weights.stack_blocks(params["Transformer"])
  elif is_stacked and not is_wanted_stacked:
    params["Transformer"] = weights.unstack_blocks(params["Transformer"])
  name = "pos_embedding"
  if name in params and name in init_params and not any(
      re.fullmatch(pattern, name) for pattern in dont_load):
    params = _fit_posemb(
        params, init_params[name].shape[1], posemb_grid, file_posemb_grid)
  elif posemb_grid or file_posemb_grid:
    raise ValueError(
        f"posemb_grid is {posemb_grid} and file_posemb_grid is "
        f"{file_posemb_grid}, but no {name} is loaded.")
  return weights.fit(params, init_params, dont_load, init_file)
