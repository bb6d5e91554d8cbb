"""Other packages, which benchmarks and tests compare with."""

import functools


@functools.cache
def import_timm():
  """(torch, timm).

  Raises:
    ImportError: one of them is missing.
  """
  import torch
  try:
    import torchvision  # noqa: F401  # pylint: disable=unused-import
  except RuntimeError:
    # Its compiled half does not load beside a CPU build of torch, and then it
    # misses the declarations of these ops, which no classifier calls.
    for op in ("nms", "qnms"):
      torch.library.define(
          f"torchvision::{op}",
          "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
  import timm
  return torch, timm
