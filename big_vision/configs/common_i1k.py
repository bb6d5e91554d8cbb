# pylint: disable=line-too-long
"""Makes the input and evaluators that the configs for ImageNet share.

All functions return plain dicts, which a config may change further.
"""

from collections.abc import Mapping, Sequence
from typing import Any

# Name of an evaluator: data set, split, entry with the class numbers.
SPLITS = dict(
    train=("imagenet2012", "train[:2%]", "label"),
    minival=("imagenet2012", "train[99%:]", "label"),  # Not trained on.
    val=("imagenet2012", "validation", "label"),
    v2=("imagenet_v2", "test", "label"),
    real=("imagenet2012_real", "validation", "real_label"),
)
# Name in metrics: data set, train split, test split.
FEWSHOT = dict(
    # The first 65,000 images contain at least 30 of each class.
    imagenet=("imagenet2012", "train[:65000]", "validation"),
    cifar=("cifar100", "train", "test"),
    pets=("oxford_iiit_pet", "train", "test"),
)


def get_input(
    augment: str, *, batch_size: int, runlocal: bool = False,
    label_smoothing: float = 0.0) -> dict[str, Any]:
  """Returns `config.input` for training on 99 % of ImageNet's training split.

  Args:
    augment: Preprocessing from an encoded image to a uint8 one of the final
      size.
    batch_size: Number of examples in a step.
    runlocal: Whether to use batches of 8, and not to keep encoded images in
      memory.
    label_smoothing: Weight of the uniform distribution in the labels, in [0, 1).
  """
  smooth = ""
  if label_smoothing:
    off = label_smoothing / 1000
    smooth = f", on={1 - label_smoothing + off}, off={off}"
  return dict(
      data=dict(name="imagenet2012", split="train[:99%]"),
      batch_size=8 if runlocal else batch_size,
      cache_raw=not runlocal,
      pp=f"{augment}|value_range(-1, 1)|{_labels('label', smooth)}")


def get_evals(
    loss: str, *, log_steps: int, names: Sequence[str] = tuple(SPLITS),
) -> dict[str, dict[str, Any]]:
  """Returns `config.evals`: accuracy and loss on several splits of ImageNet.

  "v2" is ImageNet-V2 (arXiv:1902.10811), matched frequencies; "real" has the
  reassessed labels of arXiv:2006.07159.

  Args:
    loss: Name of the loss function.
    log_steps: Number of steps between two evaluations.
    names: Evaluators to include, keys of `SPLITS`.
  """
  evals = {}
  for name in names:
    dataset, split, label = SPLITS[name]
    evals[name] = dict(
        type="classification", data=dict(name=dataset, split=split),
        pp_fn=f"decode|resize_small(256)|central_crop(224)|value_range(-1, 1)|{_labels(label)}",
        loss_name=loss, log_steps=log_steps)
  return evals


def get_fewshot(
    *, log_steps: int = 25_000, runlocal: bool = False) -> Mapping[str, Any]:
  """Returns an evaluator of few-shot accuracy with the usual protocol.

  Logged are `z/{dataset}_{k}shot`, and `a/imagenet_10shot`.

  Args:
    log_steps: Number of steps between two evaluations.
    runlocal: Whether to measure only the 1-shot accuracy on Pets.
  """
  pp = "decode|resize(256)|central_crop(224)|value_range(-1, 1)|keep('image', 'label')"
  return dict(
      type="fewshot_lsr", representation_layer="pre_logits", prefix="",
      datasets=FEWSHOT if not runlocal else dict(pets=FEWSHOT["pets"]),
      shots=(1, 5, 10, 25) if not runlocal else (1,),
      display_first=[("imagenet", 10)] if not runlocal else [],
      pp_train=pp, pp_eval=pp, log_steps=log_steps)


def _labels(key: str, options: str = "") -> str:
  return f"onehot(1000, key='{key}', key_result='labels'{options})|keep('image', 'labels')"
