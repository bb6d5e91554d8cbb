"""How activations are split over the mesh, by logical names of their axes."""

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec as P

# Axes inside a layer. Without a rule they are left to the partitioner.
_INNER_AXES = frozenset({"act_heads", "act_mlp"})


def constrain(x, *names: str | None):
  """Constrains how the axes of an activation are split over the mesh.

  The run's `sharding_rules` map logical names to mesh axes; an axis whose name
  has no rule is not split. The exceptions are act_heads and act_mlp: without a
  rule they are unconstrained, because they inherit their split from the
  parameters and gathering them would be waste. Without rules or a mesh this
  function returns `x`.

  Args:
    x: Array with one axis per name.
    *names: act_batch, act_len, act_emb, act_heads, act_mlp or None.
  """
  rules = nn.get_logical_axis_rules()
  if not rules or jax.sharding.get_abstract_mesh().empty:
    return x
  free = _INNER_AXES - {name for name, _ in rules}
  spec = nn.logical_to_mesh_axes(
      [None if name in free else name for name in names], rules)
  return jax.lax.with_sharding_constraint(x, P(*(
      P.UNCONSTRAINED if name in free else axes
      for name, axes in zip(names, spec, strict=True))))
