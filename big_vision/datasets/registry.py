"""Opens a source by the name that a config gives it."""

import importlib

from big_vision import config as config_lib
from big_vision import modules
from big_vision.datasets import core
from big_vision.datasets.tfds import opening

# {name in configs: (module, function)}; modules are imported when used.
_SOURCES = {
    "bv:digits": ("big_vision.datasets.arrays", "digits"),
    "bv:npz": ("big_vision.datasets.arrays", "npz"),
    "bv:photographs": ("big_vision.datasets.arrays", "photographs"),
    "bv:folder": ("big_vision.datasets.folder", "folder"),
    "bv:jsonl": ("big_vision.datasets.jsonl", "jsonl"),
    "bv:copy": ("big_vision.datasets.sequences", "copy"),
    "bv:reverse": ("big_vision.datasets.sequences", "reverse"),
    "bv:addition": ("big_vision.datasets.sequences", "addition"),
    "bv:listops": ("big_vision.datasets.listops", "listops"),
}


def open_source(name: str, **kwargs) -> core.Source | core.StreamSource:
  """Opens the source that a config names.

  Args:
    name: "bv:digits", "bv:npz", "bv:photographs", "bv:folder", "bv:jsonl";
      "bv:copy", "bv:reverse", "bv:addition", "bv:listops", which generate data
      for reasoning; a module that defines `open_source`, such as
      "proj.nerf.blender" or "mylab.birds", see `modules.find`; or the name of
      a dataset prepared by TensorFlow Datasets ("cifar10",
      "imagenet2012:5.1.0").
    **kwargs: Arguments of that source; see the function that `name` stands for
      in `arrays`, `folder`, `jsonl`, `sequences`, `listops` and
      `tfds.opening`.

  Raises:
    ConfigError: There is no such source, or it does not take these arguments.
    DataError: The stored data is incomplete or damaged.
  """
  where = f"data(name={name!r})"
  if name in _SOURCES:
    module, function = _SOURCES[name]
    open_fn = getattr(importlib.import_module(module), function)
    return config_lib.call(open_fn, kwargs, where)
  if name.startswith("bv:"):
    raise config_lib.ConfigError(
        f"Unknown source {name!r}{config_lib.nearest(name, _SOURCES)}; there "
        f"are {sorted(_SOURCES)}, and any dataset of TensorFlow Datasets.")
  if modules.is_module_name(name):
    module = modules.find("source", name)
    return config_lib.call(module.open_source, kwargs, where)
  return config_lib.call(opening.open_tfds, kwargs, where, dataset=name)
