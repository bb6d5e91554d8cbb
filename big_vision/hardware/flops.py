"""Counts the floating-point operations of a function.

They are counted in its jaxpr, which holds the arithmetic of all devices, the
length of each scan, and nothing that depends on the hardware.
"""

import math

from jax.extend import core as jax_core
from jax.interpreters import partial_eval


def count(jaxpr) -> float:
  """Counts the floating-point operations of matrix products and convolutions.

  A multiply and an add count as two. By the convention of the literature,
  elementwise operations are not counted. Neither is dead code, which every
  compiler removes. Loops count as often as they run, except that a `while`,
  whose number of iterations is unknown, counts once; a `cond` counts as its
  largest branch. The body of a `shard_map` counts for all devices whose parts
  of the arrays differ. Devices that hold copies repeat each other's work, which
  counts once there as everywhere.

  Args:
    jaxpr: Jaxpr of a function, `jax.make_jaxpr(fn)(*args).jaxpr` or
      `jax.jit(fn).trace(*args).jaxpr`.
  """
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _count(jaxpr)


def _count(jaxpr) -> float:
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  total, split_over = 0., {}
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      shape = eqn.invars[0].aval.shape
      total += 2. * math.prod(eqn.outvars[0].aval.shape) * math.prod(
          shape[dim] for dim in contracted)
    elif eqn.primitive.name == "conv_general_dilated":
      total += _conv_flops(eqn)
    elif eqn.primitive.name == "cond":
      total += max(map(_count, eqn.params["branches"]))
    else:
      repeated = 1
      if eqn.primitive.name == "scan":
        repeated = eqn.params["length"]
      elif eqn.primitive.name == "pallas_call":
        repeated = math.prod(eqn.params["grid_mapping"].grid)
      elif eqn.primitive.name == "shard_map":
        repeated = _num_parts(eqn, split_over)
      total += repeated * sum(
          map(_count, jax_core.jaxprs_in_params(eqn.params)))
  return total


def _num_parts(eqn, split_over: dict[int, set[str]]) -> int:
  """Returns the number of parts that a `shard_map` splits its work into.

  These are the devices along the mesh axes that split an argument, or along
  which the body asks for its place.

  Args:
    eqn: Equation of the `shard_map`.
    split_over: {id of a variable: mesh axes} for the results of the
      `shard_map`s before this one; its own results are added. The specs of
      residuals, which a forward pass keeps for the backward pass, name all axes
      of the mesh, even where the devices hold copies.
  """
  axes = _asked_axes(eqn.params["jaxpr"])
  for var, spec in zip(eqn.invars, eqn.params["in_specs"]):
    named = {axis for entry in spec if entry is not None
             for axis in ((entry,) if isinstance(entry, str) else entry)}
    axes |= named & split_over.get(id(var), named)
  split_over.update((id(var), axes) for var in eqn.outvars)
  return math.prod(eqn.params["mesh"].shape[axis] for axis in axes)


def _asked_axes(jaxpr) -> set[str]:
  """Returns the mesh axes for which `axis_index` is called in a body."""
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  axes = set()
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "axis_index":
      name = eqn.params["axis_name"]
      axes |= {name} if isinstance(name, str) else set(name)
    for inner in jax_core.jaxprs_in_params(eqn.params):
      axes |= _asked_axes(inner)
  return axes


def _conv_flops(eqn) -> float:
  """Counts two for every product of an input and a kernel element.

  Products with the zeros between the elements of a dilated input, as in the
  gradient of a strided convolution, are not counted.
  """
  numbers = eqn.params["dimension_numbers"]
  out, kernel = eqn.outvars[0].aval.shape, eqn.invars[1].aval.shape
  taps = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
  dilation = math.prod(eqn.params["lhs_dilation"])
  return 2. * math.prod(out) * taps / dilation
