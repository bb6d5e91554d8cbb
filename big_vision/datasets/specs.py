"""Shapes and dtypes of examples and batches, known without reading data."""

from collections.abc import Callable

import jax
import numpy as np

from big_vision import config as config_lib


def to_jax_types(example):
  """Casts int64 to int32 and float64 to float32, as jax has them.

  Reading an integer that does not fit into 32 bits fails with an
  InvalidArgumentError.

  Args:
    example: {key: tensor}.

  Returns:
    {key: tensor} with the same keys.
  """
  import tensorflow as tf

  def narrow(value):
    if value.dtype == tf.float64:
      return tf.cast(value, tf.float32)
    if value.dtype in (tf.int64, tf.uint64):
      narrowed = tf.cast(value, tf.int32)
      with tf.control_dependencies([tf.debugging.assert_equal(
          tf.cast(narrowed, value.dtype), value,
          "An integer does not fit into 32 bits.")]):
        return tf.identity(narrowed)
    return value
  return {key: narrow(value) for key, value in example.items()}


def element_spec(load: Callable, where: str):
  """Infers the types of the examples that `load` returns; reads no data.

  Args:
    load: Function of a position, int64[], that returns an example.
    where: Place in the config, for messages.

  Returns:
    {key: tf.TensorSpec}.

  Raises:
    ConfigError: The preprocessing does not suit the examples.
  """
  import tensorflow as tf
  try:
    return tf.data.Dataset.from_tensors(np.int64(0)).map(load).element_spec
  except (ValueError, TypeError) as error:
    # TensorFlow puts lines of code before the message.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raise config_lib.ConfigError(
        f"{where}: the preprocessing does not suit its examples. "
        f"{lines[-1] if lines else error}") from error


def batch_spec(
    spec, batch_size: int, where: str) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes and dtypes of global batches.

  Args:
    spec: {key: tf.TensorSpec} of one example.
    batch_size: Number of examples in a global batch.
    where: Place of the preprocessing in the config, for messages.

  Raises:
    ConfigError: An entry cannot be batched: it holds strings, or its shape
      differs between examples.
  """
  import tensorflow as tf
  specs = {}
  for key, tensor in spec.items():
    if not isinstance(tensor, tf.TensorSpec) or tensor.dtype == tf.string:
      raise config_lib.ConfigError(
          f"{where} leaves {key!r}, which is {tensor}: only numbers go to the "
          "devices. List the entries to keep, as in keep('image', 'labels'), "
          f"or decode it; there are {sorted(spec)}.")
    if not tensor.shape.is_fully_defined():
      raise config_lib.ConfigError(
          f"{where} leaves {key!r} of shape {tensor.shape}; all examples must "
          "have the same shape: resize, crop or pad it.")
    specs[key] = jax.ShapeDtypeStruct(
        (batch_size, *tensor.shape), tensor.dtype.as_numpy_dtype)
  return specs
