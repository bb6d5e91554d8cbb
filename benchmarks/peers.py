"""Imports packages that benchmarks and tests compare with."""

import functools


@functools.cache
def import_timm():
  """Returns the modules torch and timm.

  Raises:
    ImportError: one of them is missing.
  """
  import torch
  try:
    import torchvision  # noqa: F401  # pylint: disable=unused-import
  except RuntimeError:
    # Its compiled part does not load with a CPU build of torch, and then the
    # declarations of these ops are missing. No classifier calls them.
    for op in ("nms", "qnms"):
      torch.library.define(
          f"torchvision::{op}",
          "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
  import timm
  return torch, timm
