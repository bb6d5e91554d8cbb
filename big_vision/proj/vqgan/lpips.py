"""LPIPS: a distance between images in the features of VGG-16.

The weights come from a file. Where the package lpips is installed, make it by

  import lpips, numpy as np
  np.savez("lpips_vgg.npz", **{
      name: value.numpy() for name, value in
      lpips.LPIPS(net="vgg").state_dict().items()})

Source: arXiv:1801.03924, version 0.1 of richzhang/PerceptualSimilarity.

Dimensions: b batch, h w rows and columns, c channels.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from big_vision import weights as weights_lib

# Indices of the convolutions in torchvision's VGG-16. A slice ends with an
# activation that is compared; the next one starts with max pooling.
SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
CHANNELS = (64, 128, 256, 512, 512)
# Normalization of images in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


def expected_shapes() -> dict[str, tuple[int, ...]]:
  """Returns {name: shape} of the arrays that the file must have."""
  shapes, c_in = {}, 3
  for s, (places, c) in enumerate(zip(SLICES, CHANNELS), start=1):
    for place in places:
      shapes[f"net.slice{s}.{place}.weight"] = (c, c_in, 3, 3)
      shapes[f"net.slice{s}.{place}.bias"] = (c,)
      c_in = c
    shapes[f"lin{s - 1}.model.1.weight"] = (1, c, 1, 1)
  return shapes


def load(fname: str) -> dict[str, np.ndarray]:
  """Reads the weights: {name in the file: float32 array}.

  Args:
    fname: Local or remote file, see `weights.read`.

  Raises:
    ValueError: The file is unreadable or has another layout; the error names
      arrays that are missing or have the wrong shape.
  """
  try:
    stored = weights_lib.read(fname)
  except (OSError, ValueError) as error:
    raise ValueError(
        f"The LPIPS weights {fname!r} cannot be read: {error}") from error
  wrong = [
      f"{name}: wanted {shape}, "
      + (f"it is {stored[name].shape}" if name in stored else "it is missing")
      for name, shape in expected_shapes().items()
      if name not in stored or stored[name].shape != shape]
  if wrong:
    raise ValueError(
        f"{fname} does not have the layout of LPIPS with VGG-16:\n  "
        + "\n  ".join(wrong[:5]))
  return {name: stored[name].astype(np.float32) for name in expected_shapes()}


def features(weights: Mapping, image):
  """Computes the five activations of VGG-16 that are compared.

  Args:
    weights: Result of `load`.
    image: float32[b, H, W, 3 or 1] in [-1, 1]; grey images count as RGB with
      three equal channels.

  Returns:
    List of float32[b, h, w, c], with the c of CHANNELS.
  """
  x = (jnp.broadcast_to(image, (*image.shape[:-1], 3)) - _SHIFT) / _SCALE
  found = []
  for s, places in enumerate(SLICES, start=1):
    if s > 1:
      x = jax.lax.reduce_window(
          x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    for place in places:
      name = f"net.slice{s}.{place}"
      x = jax.lax.conv_general_dilated(
          x, weights[f"{name}.weight"], (1, 1), "SAME",
          dimension_numbers=("NHWC", "OIHW", "NHWC"))
      x = jax.nn.relu(x + weights[f"{name}.bias"])
    found.append(x)
  return found


def distance(weights: Mapping, a, b):
  """Computes LPIPS, float32[b], 0 for equal images; see `features`."""
  total = 0.0
  for i, (x, y) in enumerate(zip(features(weights, a), features(weights, b))):
    difference = (unit(x) - unit(y)) ** 2
    total += jnp.mean(
        difference @ weights[f"lin{i}.model.1.weight"].reshape(-1),
        axis=(1, 2))
  return total


def unit(x):
  """Scales vectors along the last axis to length 1."""
  # 1e-20 is inside the root, which has no gradient at 0, where images agree.
  return x / (jnp.sqrt(jnp.sum(x ** 2, axis=-1, keepdims=True) + 1e-20) + 1e-10)
