"""Finds the modules that a config names: models, trainers, evaluators, sources.

A name without a dot is a module of this package: the model "vit" is
`big_vision/models/vit.py`. A name that begins with "proj." is a module of a
project: "proj.vqgan.stage1" is `big_vision/proj/vqgan/stage1.py`. Any other
dotted name, like "mylab.models.gizmo", is imported as it stands, so code in
other repositories needs no change here.

KINDS lists what a module must define to be used as a model, a trainer, etc.
"""

import ast
import importlib
import pathlib
import pkgutil
import types
from typing import NamedTuple

import big_vision
from big_vision import config as config_lib


# Packages in which `find` has found modules so far.
_packages = {"big_vision"}


class Kind(NamedTuple):
  """One kind of module that a config can name.

  Attributes:
    folder: Folder of this package's own modules of the kind; None if only
      projects and other packages have such modules.
    defines: Name that a module of this kind must define; None for modules of
      preprocessing ops, which register what they define.
  """
  folder: str | None
  defines: str | None


KINDS = {
    "model": Kind("models", "Model"),
    "trainer": Kind("trainers", "make_task"),
    "evaluator": Kind("evaluators", "Evaluator"),
    # A source's name without a dot is not a module: see `datasets`.
    "source": Kind(None, "open_source"),
    "pp module": Kind("pp", None),
}


def find(
    kind: str, name: str, where: str | None = None) -> types.ModuleType:
  """Imports the module that a config names.

  Args:
    kind: Key of KINDS.
    name: Name in the config: "vit", "proj.vqgan.stage1", "mylab.models.gizmo".
    where: Path of the key in the config, for messages; optional.

  Returns:
    The module.

  Raises:
    ConfigError: No such module exists, or it does not define what its kind
      requires; the error lists the names that this package offers.
  """
  folder, defines = KINDS[kind]
  full_name = _full_name(folder, name)
  where = f"{where}: " if where else ""
  try:
    module = importlib.import_module(full_name)
  except ModuleNotFoundError as error:
    if error.name is None or not f"{full_name}.".startswith(f"{error.name}."):
      raise  # A module that the named one imports is missing.
    offered = list_names(kind)
    raise config_lib.ConfigError(
        f"{where}Unknown {kind} {name!r}{config_lib.nearest(name, offered)}; "
        f"use one of {offered} or a dotted name of a module on the Python path."
    ) from None
  if defines and not hasattr(module, defines):
    offered = list_names(kind)
    raise config_lib.ConfigError(
        f"{where}{full_name} is not a {kind}: it does not define {defines!r}. "
        f"Use one of {offered}.")
  _packages.add(full_name.partition(".")[0])
  return module


def packages() -> list[str]:
  """Lists the packages that modules were found in, this one included."""
  return sorted(_packages)


def list_names(kind: str) -> list[str]:
  """Lists the names of this package's modules of a kind, projects included.

  Files are parsed, not imported: importing all of them would be slow, and
  some need TensorFlow.
  """
  folder, defines = KINDS[kind]
  root = pathlib.Path(big_vision.__file__).parent
  names = [] if folder is None else [
      module.name for module in pkgutil.iter_modules([str(root / folder)])
      if _defines(root / folder / f"{module.name}.py", defines)]
  if defines:
    projects = [str(path) for path in (root / "proj").iterdir()]
    names += [
        f"proj.{pathlib.Path(module.module_finder.path).name}.{module.name}"
        for module in pkgutil.iter_modules(projects)
        if _defines(pathlib.Path(module.module_finder.path)
                    / f"{module.name}.py", defines)]
  return sorted(names)


def is_module_name(name: str) -> bool:
  """Returns whether `name` is a dotted name, like "mylab.data.birds"."""
  parts = name.split(".")
  return len(parts) > 1 and all(part.isidentifier() for part in parts)


def _full_name(folder: str | None, name: str) -> str:
  if name.startswith("proj."):
    return f"big_vision.{name}"
  return name if "." in name else f"big_vision.{folder}.{name}"


def _defines(path: pathlib.Path, name: str | None) -> bool:
  """Returns whether a file binds `name`; for None, whether it registers ops."""
  if not path.is_file():
    return False
  text = path.read_text(encoding="utf-8")
  if name is None:
    return "@registry.register(" in text
  for node in ast.parse(text).body:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
      if node.name == name:
        return True
    elif isinstance(node, ast.Assign):
      if any(isinstance(target, ast.Name) and target.id == name
             for target in node.targets):
        return True
    elif isinstance(node, ast.ImportFrom):
      if any(name in (alias.asname, alias.name) for alias in node.names):
        return True
  return False
