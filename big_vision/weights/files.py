"""Reads files of weights: `.npz` and `.safetensors`, local or remote.

Names in them are "/"-joined paths. Files that would need unpickling are
refused.
"""

import io
import re
import zipfile

import ml_dtypes
import numpy as np
import safetensors

from big_vision import files
from big_vision import tree

_PATH = re.compile(r"(.+?\.(npz|safetensors))(?::(.+))?")
# Names of the types that safetensors files store.
_SAFETENSORS_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16,
    "I16": np.int16, "U32": np.uint32, "I32": np.int32, "U64": np.uint64,
    "I64": np.int64, "BF16": ml_dtypes.bfloat16, "F16": np.float16,
    "F32": np.float32, "F64": np.float64}


def is_path(name: str) -> bool:
  """Returns whether `name` is a path that `read` accepts."""
  return _PATH.fullmatch(name) is not None


def read(path: str) -> dict:
  """Reads the parameters that a file holds.

  If the file holds a whole training state, these are its "params" or
  "opt/target". bfloat16, which .npz files store as two untyped bytes, is
  recovered.

  Args:
    path: "file.npz" or "file.safetensors"; "file.npz:sub/tree" for a part of
      the parameters. Local, or anything `etils.epath` reads ("gs://...").

  Returns:
    A nested dict of NumPy arrays.

  Raises:
    ValueError: The file has another format or is truncated, the subtree does
      not exist, the names do not form a tree, or an array would have to be
      unpickled, which can run any code.
    OSError: The file is missing or unreadable; for a remote file, the error
      says to download it.
  """
  match = _PATH.fullmatch(path)
  if match is None:
    raise ValueError(
        "Weights are read from .npz and .safetensors files; "
        f"{path!r} is neither.")
  file, kind, subtree = match.groups()
  with _open(file) as stream:
    named = {"npz": _read_npz, "safetensors": _read_safetensors}[kind](
        stream, file)
  try:
    params = tree.unflatten(named)
  except ValueError as error:
    raise ValueError(
        f"The names in {file} do not form a tree: {error}") from error
  if isinstance(params.get("params"), dict):
    params = params["params"]
  elif isinstance(params.get("opt"), dict) and "target" in params["opt"]:
    params = params["opt"]["target"]
  for key in subtree.split("/") if subtree else ():
    if not isinstance(params, dict) or key not in params:
      exists = sorted(params) if isinstance(params, dict) else "an array"
      raise ValueError(
          f"There is no {subtree!r} in {file}: where {key!r} should be, there "
          f"is {exists}.")
    params = params[key]
  return params


def _open(file: str):
  """Opens a local or remote file for reading bytes."""
  if not files.is_remote(file):
    try:
      return files.open_regular(file)
    except OSError as error:
      raise OSError(f"Failed to read {file}: {error.strerror}.") from error
  try:
    return io.BytesIO(files.as_path(file).read_bytes())
  except Exception as error:  # Every kind of storage has errors of its own.
    raise OSError(
        f"Failed to read {file} ({error}). Download it where that is possible "
        "and give the path of your copy in its place.") from error


def _read_npz(stream, file: str) -> dict[str, np.ndarray]:
  """Reads the {name: array} of an .npz file."""
  if not zipfile.is_zipfile(stream):
    raise ValueError(f"{file} is not an .npz file, or is truncated.")
  stream.seek(0)
  with np.load(stream, allow_pickle=False) as arrays:
    return {name: _read_array(arrays, name, file) for name in arrays.files}


def _read_array(arrays, name, file):
  """Reads one array of an .npz file."""
  try:
    array = arrays[name]
  except (ValueError, zipfile.BadZipFile) as error:
    raise ValueError(
        f"{name!r} in {file} is pickled or damaged ({error}). Pickles are "
        "refused, because unpickling can run any code; store plain arrays "
        "instead.") from error
  if array.dtype == np.dtype("V2"):
    array = array.view(ml_dtypes.bfloat16)
  return array


def _read_safetensors(stream, file: str) -> dict[str, np.ndarray]:
  """Reads the {name: array} of a .safetensors file."""
  try:
    # The package's own reader for NumPy does not know bfloat16.
    tensors = dict(safetensors.deserialize(stream.read()))
  except safetensors.SafetensorError as error:
    raise ValueError(f"{file} is not a .safetensors file, or is truncated "
                     f"({error}).") from error
  unknown = {name: tensor["dtype"] for name, tensor in tensors.items()
             if tensor["dtype"] not in _SAFETENSORS_DTYPES}
  if unknown:
    raise ValueError(
        f"{file} holds types that cannot be read: {unknown}. Supported are "
        f"{list(_SAFETENSORS_DTYPES)}.")
  return {name: np.ndarray(tensor["shape"],
                           _SAFETENSORS_DTYPES[tensor["dtype"]], tensor["data"])
          for name, tensor in tensors.items()}
