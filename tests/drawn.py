"""Draws models' parameters by name, and compiles programs once, for tests."""

import functools

from big_vision import tree
import jax
import numpy as np

# Patches of 4 x 2 make a grid of 2 x 3. Nothing is square, so that transposed
# axes do not go unnoticed.
IMAGE_SHAPE = (3, 8, 6, 3)

# Programs of tests run only once, so nearly all of their time is compilation.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def image(shape=IMAGE_SHAPE):
  """Returns float32 of a shape in [-1, 1), the same numbers at every call."""
  return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def shapes(model, *inputs):
  """Returns parameters as jax.ShapeDtypeStruct; by default, for an image."""
  return _shapes(model, *(
      jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs or (image(),)))


@functools.cache
def _shapes(model, *specs):
  return jax.eval_shape(model.init, jax.random.key(0), *specs)["params"]


def params(model, *inputs, scale=0.4):
  """Draws parameters by their names, not their order; none is zero or one."""
  def draw(name, leaf):
    rng = np.random.default_rng(sum(map(ord, name)))
    around = 1.0 if name.endswith("scale") else 0.0
    return (around + scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)
  return tree.map_with_names(draw, shapes(model, *inputs))


@functools.cache
def compiled(model, **kw):
  """Compiles `model.apply` with these keyword arguments."""
  return jit(functools.partial(model.apply, **kw))


def apply(model, weights, *inputs, **kw):
  """Returns the model's output as NumPy arrays."""
  return jax.device_get(compiled(model, **kw)({"params": weights}, *inputs))
