"""Recomputation of activations in the backward pass."""

import flax.linen as nn
import jax

from big_vision.layers import checks

# The members of `jax.checkpoint_policies` that are policies themselves, not
# functions that make policies.
REMAT_POLICIES = (
    "none", "nothing_saveable", "everything_saveable", "dots_saveable",
    "dots_with_no_batch_dims_saveable", "checkpoint_dots",
    "checkpoint_dots_with_no_batch_dims")


def remat(module: type[nn.Module], policy: str, *, in_scan: bool = False):
  """Makes a module recompute activations in its backward pass.

  Args:
    module: Class whose `__call__` has a static third argument, `train`.
    policy: One of REMAT_POLICIES, the names in `jax.checkpoint_policies`;
      "none" returns `module` unchanged.
    in_scan: Whether the module is the body of a scan, which keeps the compiler
      from undoing the recomputation; a Python loop needs barriers against that.

  Returns:
    A class with the interface of `module`.
  """
  checks.check_choice("remat_policy", policy, REMAT_POLICIES)
  if policy == "none":
    return module
  return nn.remat(
      module, policy=getattr(jax.checkpoint_policies, policy),
      prevent_cse=not in_scan, static_argnums=(3,))
