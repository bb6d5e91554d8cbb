"""Networks whose features measure how similar images look.

A config chooses one of them:

  dict(name="lpips", fname="lpips_vgg.npz")
      LPIPS with its published weights, see `proj/vqgan/lpips.py`.
  dict(name="classifier", workdir=..., layers=["stem", ...], crop=28)
      A classifier trained with this framework. Its distance is not LPIPS, and
      its Frechet distance is not FID, so metrics are named after it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from big_vision import config as config_lib
from big_vision import ranges
from big_vision import tree
from big_vision.proj.vqgan import lpips
from big_vision.run import pretrained


class Network(NamedTuple):
  """A frozen network.

  Attributes:
    name: "lpips" or "classifier", a part of metrics' names.
    load: Host; () -> variables of the network.
    features: (variables, image) -> list of float[b, ..., d]; images are
      float32[b, h, w, c] in [-1, 1].
    distance: (variables, a, b) -> float32[b], 0 for equal images.
  """
  name: str
  load: Callable[[], Any]
  features: Callable[..., Any]
  distance: Callable[..., Any]


def make(options: Mapping[str, Any], where: str) -> Network:
  """Makes the network that a config describes.

  Args:
    options: Name and options of the network, see the top of this file.
    where: Path of `options` in the config, for messages.

  Raises:
    ConfigError: The name or an option does not exist, or a file or run is
      missing.
  """
  options = dict(options)
  name = options.pop("name", None)
  if name not in _NETWORKS:
    raise config_lib.ConfigError(
        f"{where}.name is {name!r}; use one of {sorted(_NETWORKS)}.")
  return config_lib.call(_NETWORKS[name], options, where, path=where)


def _lpips(fname: str, *, path: str) -> Network:
  def load():
    try:
      return lpips.load(fname)
    except ValueError as error:
      raise config_lib.ConfigError(f"{path}.fname: {error}") from error
  return Network(name="lpips", load=load, features=lpips.features,
                 distance=lpips.distance)


def _classifier(workdir: str, layers, crop: ranges.Count | None = None, *,
                path: str) -> Network:
  """Makes a network of features from a trained classifier.

  Args:
    workdir: Directory of the classification run.
    layers: Names of entries in the model's `out`.
    crop: Size of the model's images, cut from the middle; None for all.
    path: Path of these options in the config, for messages.
  """
  classify, variables = pretrained.classifier(
      workdir, f"{path}.workdir", crop)

  def features(variables, image):
    _, out = classify(variables, image)
    named = dict(tree.flatten_with_names(out))
    for layer in layers:
      if layer not in named:
        raise config_lib.ConfigError(
            f"{path}.layers: the classifier has no {layer!r}"
            f"{config_lib.nearest(layer, named)}; it has {sorted(named)}.")
    return [named[layer].astype(jnp.float32) for layer in layers]

  def distance(variables, a, b):
    """Sums over layers the mean squared distance of unit vectors."""
    total = 0.0
    for x, y in zip(features(variables, a), features(variables, b)):
      squared = jnp.sum((lpips.unit(x) - lpips.unit(y)) ** 2, axis=-1)
      total += squared.reshape(len(squared), -1).mean(axis=1)
    return total

  return Network(name="classifier", load=lambda: variables, features=features,
                 distance=distance)


_NETWORKS = {"lpips": _lpips, "classifier": _classifier}
