"""Ops that change the values or the shape of one entry."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from big_vision.pp import registry


@registry.register("value_range")
@registry.in_key_out_key()
def value_range(
    vmin: float = -1, vmax: float = 1,
    in_min: float | Sequence[float] = 0,
    in_max: float | Sequence[float] = 255.0, clip_values: bool = False):
  """Maps [in_min, in_max] to [vmin, vmax] linearly.

  Any number dtype [...] in [in_min, in_max] to float32[...] in [vmin, vmax].
  Shapes may be unknown; refuses a RaggedTensor.

  Args:
    vmin: Result for an input of `in_min`.
    vmax: Result for an input of `in_max`.
    in_min: Lower end of the input range: one number, or one for each entry of
      the last axis.
    in_max: Upper end of the input range, in the same form.
    clip_values: Whether values outside of [in_min, in_max] are clipped. If
      not, they are mapped to values outside of [vmin, vmax].
  """
  if np.any(np.asarray(in_min) >= np.asarray(in_max)):
    raise ValueError(f"in_min={in_min} must be less than in_max={in_max}.")

  def scale(value):
    low = tf.constant(in_min, tf.float32)
    high = tf.constant(in_max, tf.float32)
    value = (tf.cast(value, tf.float32) - low) / (high - low)
    value = vmin + value * (vmax - vmin)
    return tf.clip_by_value(value, vmin, vmax) if clip_values else value
  return scale


@registry.register("reshape")
@registry.in_key_out_key()
def reshape(new_shape: Sequence[int]):
  """Changes the shape; the values stay in order.

  Any dtype and shape to the same dtype [new_shape]. Refuses a RaggedTensor.

  Args:
    new_shape: Sizes of the result; one of them may be -1 and is inferred.
  """
  return lambda value: tf.reshape(value, new_shape)


@registry.register("pad_to_shape")
@registry.in_key_out_key(ragged=True)
def pad_to_shape(
    shape: Sequence[int | None], pad_value: float = 0, where: str = "after"):
  """Pads a tensor to a given shape.

  Any number dtype and any shape of the same rank to the same dtype [shape]. A
  RaggedTensor becomes dense: its rows are padded as well, only with "after".

  Args:
    shape: Sizes of the result; None leaves an axis as it is. A value that is
      larger raises an InvalidArgumentError with both shapes.
    pad_value: Value of the added entries.
    where: "after", "before" or "both". An odd number of added entries is split
      by "both" so that the end gets one more.
  """
  if where not in ("after", "before", "both"):
    raise ValueError(
        f"where={where!r} must be one of ['after', 'before', 'both'].")
  shape = list(shape)

  def pad(value):
    if value.shape.rank != len(shape):
      raise ValueError(
          f"a value of shape {value.shape} cannot be padded to {shape}.")
    fill = tf.constant(pad_value, value.dtype)
    if isinstance(value, tf.RaggedTensor):
      if where != "after":
        raise ValueError(
            f"a RaggedTensor can only be padded 'after' its rows, not "
            f"{where!r}.")
      value = value.to_tensor(fill)
    old = tf.shape(value)
    wanted = tf.stack([
        old[axis] if size is None else size for axis, size in enumerate(shape)])
    missing = registry.checked(
        wanted - old, tf.reduce_all(old <= wanted),
        "The shape", old, "is larger than the shape to pad to:", wanted)
    before = {
        "after": tf.zeros_like(missing), "before": missing,
        "both": missing // 2}[where]
    padded = tf.pad(
        value, tf.stack([before, missing - before], axis=1),
        constant_values=fill)
    static = [
        known if size is None else size
        for size, known in zip(shape, value.shape)]
    return tf.ensure_shape(padded, static)
  return pad
