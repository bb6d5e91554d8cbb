"""Models in tests: parameters drawn by name, programs compiled once."""

import functools

from big_vision import tree
import jax
import numpy as np

# In patches of 4 x 2 these are 2 x 3. Nothing is square, so that transposed
# axes do not go unnoticed.
IMAGE_SHAPE = (3, 8, 6, 3)

# Programs of tests run once: compiling them is what takes time.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def image(shape=IMAGE_SHAPE):
  """float32 of that shape in [-1, 1), always the same numbers."""
  return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def shapes(model, *inputs):
  """jax.ShapeDtypeStruct of each parameter; without `inputs`, for `image()`."""
  return _shapes(model, *(
      jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs or (image(),)))


@functools.cache
def _shapes(model, *specs):
  return jax.eval_shape(model.init, jax.random.key(0), *specs)["params"]


def params(model, *inputs, scale=0.4):
  """Parameters none of which is zero or one, by name and not by order."""
  def draw(name, leaf):
    rng = np.random.default_rng(sum(map(ord, name)))
    around = 1.0 if name.endswith("scale") else 0.0
    return (around + scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)
  return tree.map_with_names(draw, shapes(model, *inputs))


@functools.cache
def compiled(model, **kw):
  """`model.apply` with these keyword arguments."""
  return jit(functools.partial(model.apply, **kw))


def apply(model, weights, *inputs, **kw):
  """What the model returns, as NumPy arrays."""
  return jax.device_get(compiled(model, **kw)({"params": weights}, *inputs))
