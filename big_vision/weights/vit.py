"""Published weights of ViTs, and how to load them.

The files may have parameters under older names, with or without a stack of
blocks, and position embeddings for another grid of patches.
"""

from collections.abc import Mapping, Sequence
import math
import re
from typing import Any

import numpy as np

from big_vision import weights
from big_vision.layers import posemb as posemb_lib


def _howto(variant, aug, wd):
  """Returns a file recommended by "How to train your ViT?"."""
  return (f"gs://vit_models/augreg/{variant.replace('/', '_')}-i21k-300ep-"
          f"lr_0.001-aug_{aug}-wd_{wd}-do_0.0-sd_0.0.npz")


_SIGLIP = "gs://big_vision/siglip/webli_{}.npz:img"
_SIGLIP2 = "gs://big_vision/siglip2/siglip2_{}.npz:img"

# Addresses of the published weights. Buckets come and go, so `load` accepts the
# path of a copy too.
VANITY_NAMES = {
    # arXiv:2106.10270.
    **{f"howto-i21k-{variant}": _howto(variant, aug, wd)
       for variant, aug, wd in (
           ("Ti/16", "none", 0.03), ("S/32", "none", 0.1),
           ("S/16", "light1", 0.03), ("B/32", "light1", 0.1),
           ("B/16", "medium1", 0.1), ("B/8", "medium2", 0.1),
           ("L/16", "strong1", 0.1))},
    # The plain S/16 of arXiv:2205.01580: gap, sincos2d, rep_size.
    **{f"i1k-s16-{epochs}ep": f"gs://big_vision/vit_s16_i1k_{epochs}ep.npz"
       for epochs in (90, 150, 300)},
    # DeiT III, arXiv:2204.07118; converted to images in [-1, 1].
    **{f"deit3_{letter}_{res}_{data}":
       f"gs://big_vision/zoo/deit3/bv_deit_3_{size}_{res}_{data}.npz"
       for letter, size in (("S", "small"), ("B", "base"), ("L", "large"))
       for res in (224, 384) for data in ("1k", "21k")},
    # Image towers of arXiv:2303.15343: pool_type "map", no head.
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
    # Image towers of arXiv:2502.14786: pool_type "map", no head.
    **{f"SigLIP2 {variant} {res}": _SIGLIP2.format(
        f"{variant.lower().replace('/', '')}_{res}")
       for variant, resolutions in (
           ("B/32", (256,)), ("B/16", (224, 256, 384, 512)),
           ("L/16", (256, 384, 512)), ("So400m/14", (224, 384)),
           ("So400m/16", (256, 384, 512)), ("g-opt/16", (256, 384)))
       for res in resolutions},
}


def fix_old_params(params: Mapping) -> dict:
  """Renames the parameters of older files to current names.

  Files of the first generation number all submodules together (LayerNorm_0,
  MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3); now each class is
  numbered separately. They also keep the position embedding inside the
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
  """Numbers each class of submodules (LayerNorm_2) from zero, in order."""
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
  """Returns whether a file's first position embedding is the class token's.

  Raises:
    ValueError: It is ambiguous; the error names the argument that decides.
  """
  is_square = lambda n: math.isqrt(n) ** 2 == n
  if file_posemb_grid is not None:
    return num_there == math.prod(file_posemb_grid) + 1
  if num_there == num_patches:
    return False
  if is_square(num_there) and num_there - 1 == num_patches:
    raise ValueError(
        f"The file has {num_there} position embeddings for {num_patches} "
        "patches; the first may be the class token's or not. State the "
        "(height, width) in patches of the file as file_posemb_grid.")
  return num_there - 1 == num_patches or is_square(num_there - 1)


def _fit_posemb(params, num_patches, posemb_grid, file_posemb_grid) -> dict:
  """Resamples the position embedding of `params` to `num_patches`."""
  posemb = params["pos_embedding"]
  if "cls" in params and _has_cls_posemb(
      posemb.shape[1], num_patches, file_posemb_grid):
    # Older models gave the class token a position; only the sum matters.
    params = {**params, "cls": (params["cls"].astype(np.float32) +
                                posemb[:, :1].astype(np.float32))}
    posemb = posemb[:, 1:]
  num_there = posemb.shape[1]
  if num_there != num_patches or posemb_grid or file_posemb_grid:
    grid = posemb_lib.infer_grid(
        num_there, file_posemb_grid, "file_posemb_grid")
    new_grid = posemb_lib.infer_grid(num_patches, posemb_grid, "posemb_grid")
    if (num_there == num_patches and grid != new_grid and
        not (posemb_grid and file_posemb_grid)):
      raise ValueError(
          f"There are as many position embeddings as patches, {num_patches}, "
          f"but the grid may be {grid} in the file and {new_grid} in the "
          "model; state both posemb_grid and file_posemb_grid, or neither.")
    posemb = posemb_lib.resample(posemb, grid, new_grid)
  return {**params, "pos_embedding": posemb}


def load(init_params, init_file: str, model_cfg: Mapping[str, Any],
         dont_load: Sequence[str] = (), *,
         posemb_grid: Sequence[int] | None = None,
         file_posemb_grid: Sequence[int] | None = None) -> dict:
  """Loads a ViT's parameters: renames, stacks and resamples as needed.

  Args:
    init_params: The model's parameters, as jax.ShapeDtypeStruct or arrays.
    init_file: One of VANITY_NAMES, or a file, see `weights.read`.
    model_cfg: The model's arguments; not used here.
    dont_load: Regexes of the model's names to leave out, like "head/.*".
    posemb_grid: (height, width) in patches of the model's images.
    file_posemb_grid: (height, width) in patches of the file's images. With
      neither grid, embeddings are used unchanged if their number is that of the
      patches; otherwise, a grid that is not given is assumed to be square.

  Returns:
    The structure of `init_params`: NumPy arrays, and the given leaf wherever
    `dont_load` leaves a name out.

  Raises:
    ValueError: The file does not fit, see `weights.fit`.
  """
  del model_cfg  # `init_params` has all that is needed.
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
        f"{file_posemb_grid}, but {name} is not loaded.")
  return weights.fit(params, init_params, dont_load, init_file)
