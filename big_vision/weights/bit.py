"""Published weights of BiT, and how to load them."""

from collections.abc import Mapping, Sequence
import re
from typing import Any

from big_vision import tree
from big_vision import weights

_BUCKET = "gs://bit_models/"

# Published weights of the R50x1 that was distilled with patience,
# arXiv:2106.05237, and of its teacher, an R152x2, at two resolutions.
VANITY_NAMES = {
    "FunMatch-224px-i1k82.8": f"{_BUCKET}distill/R50x1_224.npz",
    "FunMatch-160px-i1k80.5": f"{_BUCKET}distill/R50x1_160.npz",
    "BiT-M R152x2 imagenet2012 ic224": f"{_BUCKET}distill/R152x2_T_224.npz",
    "BiT-M R152x2 imagenet2012 rc384": f"{_BUCKET}distill/R152x2_T_384.npz",
}

# (depth, width) of the paper's published models.
_PAPER_SIZES = ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4))


def _find(init_file: str, model_cfg: Mapping[str, Any]) -> str:
  """Returns the file of a published checkpoint; a path is returned unchanged.

  Raises:
    ValueError: `init_file` is neither, or the paper has no model of this size.
  """
  match = re.fullmatch(r"([SML])(-.+)?", init_file)
  if match is None or weights.is_path(init_file):
    # These names are handled below; here they only appear in the error's list.
    paper_names = dict.fromkeys(("S", "M", "M-imagenet2012"))
    return weights.find(init_file, {**VANITY_NAMES, **paper_names})
  depth, width = model_cfg.get("depth", 50), model_cfg.get("width", 1)
  if (depth, width) not in _PAPER_SIZES:
    raise ValueError(
        f"{init_file!r} was published for the (depth, width) {_PAPER_SIZES}; "
        f"the model has {(depth, width)}.")
  upstream, downstream = match.groups(default="")
  # The files do not call the dataset by its name in TFDS.
  downstream = re.sub("^-imagenet2012$", "-ILSVRC2012", downstream)
  return f"{_BUCKET}BiT-{upstream}-R{depth}x{width:g}{downstream}.npz"


def fix_old_params(params: Mapping) -> dict:
  """Renames and reshapes the parameters of TensorFlow files.

  In those files, everything is below "resnet"; convolutions are called
  standardized_conv2d or, in some files, standardized_conv2d_12; scale and bias
  of GroupNorm are gamma and beta, of shape [c]; the head is a 1 x 1
  convolution. Other files are returned unchanged.

  Raises:
    ValueError: Such a file has a name that does not belong to the model.
  """
  if "resnet" not in params:
    return dict(params)
  fixed = {}
  for name, leaf in tree.flatten_with_names(params["resnet"]):
    new = _fix_old_name(name)
    if new.startswith("head/"):
      leaf = leaf.reshape(leaf.shape[-2:] if leaf.ndim > 1 else leaf.shape)
    elif new.endswith(("/scale", "/bias")):
      leaf = leaf.reshape(1, 1, 1, -1)
    fixed[new] = leaf
  return tree.unflatten(fixed)


def _fix_old_name(name: str) -> str:
  """Returns the current name of resnet/`name`."""
  new = re.sub(r"standardized_conv2d(_\d+)?/kernel$", "conv/kernel", name)
  new = new.replace("/gamma", "/scale").replace("/beta", "/bias")
  for pattern, replacement in (
      (r"root_block/conv/(kernel)", "root_block/conv_root/{}"),
      (r"group_norm/(scale|bias)", "norm-pre-head/{}"),
      (r"head/conv2d/(kernel|bias)", "head/{}")):
    if match := re.fullmatch(pattern, new):
      return replacement.format(*match.groups())
  match = re.fullmatch(
      r"(block\d+/unit\d+)/([abc])/(conv|group_norm|proj/conv)/(\w+)", new)
  if match is None:
    raise ValueError(
        f"{name!r} is in a TensorFlow file of BiT, but not in the model, which "
        "has root_block, block1/unit01/a, ..., group_norm, head.")
  unit, letter, kind, leaf = match.groups()
  place = "abc".index(letter) + 1
  part = {"conv": f"conv{place}", "group_norm": f"gn{place}",
          "proj/conv": "conv_proj"}[kind]
  return f"{unit}/{part}/{leaf}"


def load(init_params, init_file: str, model_cfg: Mapping[str, Any],
         dont_load: Sequence[str] = ()) -> dict:
  """Loads like `weights.load`, and also TensorFlow and published files.

  `init_file` may be one of VANITY_NAMES; or a name of the paper's files, in
  which case the file for the depth and width in `model_cfg` is read: "S" or "M"
  (pre-trained on ILSVRC-2012 or ImageNet-21k), "M-imagenet2012" or
  "M-run0-caltech101" ("M", fine-tuned on that dataset; run0 is the first of
  three runs).
  """
  params = fix_old_params(weights.read(_find(init_file, model_cfg)))
  return weights.fit(params, init_params, dont_load, init_file)
