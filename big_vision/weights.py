"""Reading published weights, and fitting them to a model.

Everything here happens on the host, in NumPy. Weights are `.npz` or
`.safetensors` files whose names are "/"-joined paths; files that would need
unpickling are refused.
"""

from collections.abc import Mapping, Sequence
import io
import re
from typing import Any
import zipfile

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors

from big_vision import config as config_lib
from big_vision import tree

_BLOCK = re.compile(r"encoderblock_(\d+)")
_PATH = re.compile(r"(.+?\.(npz|safetensors))(?::(.+))?")
# What safetensors calls the types it stores.
_SAFETENSORS_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16,
    "I16": np.int16, "U32": np.uint32, "I32": np.int32, "U64": np.uint64,
    "I64": np.int64, "BF16": ml_dtypes.bfloat16, "F16": np.float16,
    "F32": np.float32, "F64": np.float64}


def read(path: str) -> dict:
  """The parameters stored in a file, as a nested dict of NumPy arrays.

  Of a file with a whole training state, that is "params" or "opt/target".
  bfloat16, which .npz files store as two bytes without a meaning, is recovered.

  Args:
    path: "file.npz" or "file.safetensors"; "file.npz:sub/tree" for a part of
      the parameters. Local, or anything `etils.epath` reads ("gs://...").

  Raises:
    ValueError: not such a file, or not all of one; no such subtree; names that
      are no tree; an array that would have to be unpickled: a pickle can run
      any code.
    OSError: a remote file that cannot be read; says to download it.
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
    raise ValueError(f"The names in {file} are no tree: {error}") from error
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
  """The file, for reading bytes."""
  if "://" not in file:
    return open(file, "rb")
  try:
    from etils import epath  # Imports TensorFlow to read buckets.
    return io.BytesIO(epath.Path(file).read_bytes())
  except Exception as error:  # Each kind of storage fails in its own way.
    raise OSError(
        f"Cannot read {file} ({error}). Download it where that is possible and "
        "give the path of your copy in its place.") from error


def _read_npz(stream, file: str) -> dict[str, np.ndarray]:
  """{name: array} of an .npz file."""
  if not zipfile.is_zipfile(stream):
    raise ValueError(f"{file} is no .npz file, or not all of one.")
  stream.seek(0)
  with np.load(stream, allow_pickle=False) as arrays:
    return {name: _read_array(arrays, name, file) for name in arrays.files}


def _read_array(arrays, name, file):
  """One array of an .npz file."""
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
  """{name: array} of a .safetensors file."""
  try:
    # Not its reader for NumPy, which knows no bfloat16.
    tensors = dict(safetensors.deserialize(stream.read()))
  except safetensors.SafetensorError as error:
    raise ValueError(f"{file} is no .safetensors file, or not all of one "
                     f"({error}).") from error
  unknown = {name: tensor["dtype"] for name, tensor in tensors.items()
             if tensor["dtype"] not in _SAFETENSORS_DTYPES}
  if unknown:
    raise ValueError(
        f"{file} holds types that are not read here: {unknown}. Those that are "
        f"are {list(_SAFETENSORS_DTYPES)}.")
  return {name: np.ndarray(tensor["shape"],
                           _SAFETENSORS_DTYPES[tensor["dtype"]], tensor["data"])
          for name, tensor in tensors.items()}


def stack_blocks(encoder: Mapping) -> dict:
  """From `encoderblock_0`, ... to one `encoderblock` with a depth axis, first.

  The inverse of `unstack_blocks`: between models with and without `scan`.

  Raises:
    ValueError: blocks are missing, or differ in names or shapes.
  """
  blocks = {int(match[1]): dict(tree.flatten_with_names(encoder[key]))
            for key in encoder if (match := _BLOCK.fullmatch(key))}
  if sorted(blocks) != list(range(len(blocks))):
    raise ValueError(
        f"Blocks are to be numbered from 0 without gaps; there are "
        f"{sorted(blocks)}.")
  if not blocks:
    return dict(encoder)
  def shapes(block):
    return {name: np.shape(leaf) for name, leaf in block.items()}
  for i, block in blocks.items():
    if shapes(block) != shapes(blocks[0]):
      raise ValueError(
          f"encoderblock_{i} is not like encoderblock_0, so they cannot be "
          f"stacked: {shapes(block)} and {shapes(blocks[0])}.")
  rest = {key: value for key, value in encoder.items()
          if not _BLOCK.fullmatch(key)}
  return {**rest, "encoderblock": tree.unflatten({
      name: np.stack([blocks[i][name] for i in range(len(blocks))])
      for name in blocks[0]})}


def unstack_blocks(encoder: Mapping) -> dict:
  """From one `encoderblock` with a leading depth axis to `encoderblock_0`, ...

  The inverse of `stack_blocks`.
  """
  stacked = dict(tree.flatten_with_names(encoder["encoderblock"]))
  depths = {len(leaf) for leaf in stacked.values()}
  if len(depths) != 1:
    raise ValueError(
        "The leaves of encoderblock do not agree on the depth: "
        f"{ {name: leaf.shape for name, leaf in stacked.items()} }.")
  rest = {key: value for key, value in encoder.items() if key != "encoderblock"}
  return {**rest, **{
      f"encoderblock_{i}": tree.unflatten(
          {name: leaf[i] for name, leaf in stacked.items()})
      for i in range(depths.pop())}}


def fit(loaded: Mapping, init, dont_load: Sequence[str], source: str) -> dict:
  """What `loaded` has for every leaf of `init`, after checking that it fits.

  Args:
    loaded: nested dict of NumPy arrays.
    init: the model's parameters as jax.ShapeDtypeStruct or arrays.
    dont_load: regexes; a name (as in `init`) that one matches as a whole is
      not taken from `loaded`, whether or not it is there.
    source: where `loaded` is from, for messages.

  Returns:
    The structure of `init` with NumPy arrays, cast to the model's dtype; where
    `dont_load` says so, with the leaf of `init` itself.

  Raises:
    ValueError: names that are on one side only, shapes that differ, numbers of
      another kind (integers for floats), a regex that matches nothing. All of
      them, in one message.
  """
  wanted = dict(tree.flatten_with_names(init))
  there = dict(tree.flatten_with_names(loaded))
  matches = tree.first_match(sorted({*wanted, *there}), dont_load)
  left_out = {name for name, match in matches.items() if match is not None}
  problems = [
      f"matched by nothing in dont_load: {pattern!r}" for pattern in dont_load
      if not any(re.fullmatch(pattern, name) for name in matches)]
  # Two lists, each sorted, so that a reader sees at once what was renamed.
  for what, ours, theirs in ((f"only in {source}", there, wanted),
                             ("only in the model", wanted, there)):
    problems += [f"{what}: {name} {_describe(ours[name])}"
                 for name in sorted(set(ours) - set(theirs) - left_out)]
  fitted = {}
  for name, leaf in wanted.items():
    if name in left_out:
      fitted[name] = leaf
    elif name in there:
      array = there[name]
      if array.shape != leaf.shape or not _same_kind(array.dtype, leaf.dtype):
        problems.append(
            f"{name} is {_describe(array)} in {source}, {_describe(leaf)} in "
            "the model")
      else:
        fitted[name] = array.astype(leaf.dtype, copy=False)
  if problems:
    raise ValueError(
        f"{source} does not fit the model. Leave names out of loading by "
        "regexes in dont_load, or change the model.\n  "
        + "\n  ".join(problems))
  return tree.unflatten(fitted)


def _same_kind(a, b):
  """Whether casting from a to b changes precision at most."""
  return a == b or (
      jnp.issubdtype(a, jnp.floating) and jnp.issubdtype(b, jnp.floating))


def _describe(leaf):
  return f"{leaf.dtype}{list(leaf.shape)}"


def load(init_params, init_file: str, model_cfg: Mapping[str, Any],
         dont_load: Sequence[str] = ()) -> dict:
  """Parameters of a file, fitted to a model: what every model's `load` does.

  It is the `load` of models of which nothing is published and no older names
  exist.

  Args:
    init_params: the model's parameters, as jax.ShapeDtypeStruct or arrays.
    init_file: a file of weights, see `read`.
    model_cfg: what the model was made with; nothing here depends on it.
    dont_load: regexes of the model's names to leave out, like "head/.*".

  Returns:
    The structure of `init_params`: NumPy arrays, and for what `dont_load`
    leaves out, the leaf that was given.

  Raises:
    ValueError: what does not fit, all at once, see `fit`.
  """
  del model_cfg  # `init_params` say it all.
  return fit(read(find(init_file, {})), init_params, dont_load, init_file)


def is_path(name: str) -> bool:
  """Whether `name` is a path that `read` takes."""
  return _PATH.fullmatch(name) is not None


def find(name: str, published: Mapping[str, str]) -> str:
  """The file of a published checkpoint; the path of a file is left as is.

  Raises:
    ValueError: neither; lists the published names.
  """
  if not is_path(name) and name not in published:
    raise ValueError(
        f"{name!r} is neither an .npz or .safetensors file nor the name of a "
        f"published checkpoint{config_lib.nearest(name, published)}. Published "
        f"are {sorted(published)}.")
  return published.get(name, name)
