"""Loading published and own weights, from files that the tests write."""

import functools
import json
import os
import re
import struct

from big_vision import tree
from big_vision import weights
from big_vision.layers import posemb
from big_vision.models import vit
from big_vision.weights import vit as vit_weights
import deadline
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

TINY = dict(patch_size=(4, 4), width=8, depth=2, num_heads=2, mlp_dim=12)
K = 5


@functools.cache
def _shapes(grid=(2, 2), num_classes=K, **kw):
  model = vit.Model(num_classes, **{**TINY, **kw})
  spec = jax.ShapeDtypeStruct((1, 4 * grid[0], 4 * grid[1], 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), spec)["params"]


def _values(shapes):
  """{name: array}, all different."""
  rng = np.random.default_rng(0)
  return {name: rng.normal(size=leaf.shape).astype(np.float32)
          for name, leaf in tree.flatten_with_names(shapes)}


def _save(tmp_path, named, name="weights.npz", **kw):
  path = str(tmp_path / name)
  np.savez(path, **named, **kw)
  return path


def _load(shapes, path, **kw):
  return dict(tree.flatten_with_names(vit.load(shapes, path, {}, **kw)))


def _check_equal(got, wanted):
  assert got.keys() == wanted.keys()
  for name, array in wanted.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)
    assert got[name].dtype == np.float32


# --- Files of today -----------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
def test_round_trip(tmp_path, prefix):
  shapes = _shapes(pool_type="map", rep_size=True)
  named = _values(shapes)
  stored = {prefix + name: array for name, array in named.items()}
  if prefix:
    stored["opt/state/step"] = np.int32(7)
  _check_equal(_load(shapes, _save(tmp_path, stored)), named)


def test_part_of_a_file(tmp_path):
  shapes = _shapes(num_classes=None, pool_type="map")
  named = _values(shapes)
  path = _save(tmp_path, {
      "t": np.ones(1, np.float32), "txt/head/bias": np.ones(2, np.float32),
      **{f"towers/img/{name}": array for name, array in named.items()}})
  _check_equal(_load(shapes, f"{path}:towers/img"), named)
  np.testing.assert_array_equal(weights.read(f"{path}:t"), [1])
  for wrong, exists in (("image", "'t', 'towers', 'txt'"),
                        ("towers/image", "'img'"), ("t/img", "an array")):
    with pytest.raises(ValueError, match=f"no '{wrong}' in .*{exists}"):
      weights.read(f"{path}:{wrong}")


def test_initial_arrays_serve_as_shapes(tmp_path):
  named = _values(_shapes())
  init = tree.unflatten({k: jnp.zeros(v.shape) for k, v in named.items()})
  _check_equal(_load(init, _save(tmp_path, named)), named)


@pytest.mark.parametrize("file_scan,scan", [(False, True), (True, False)])
def test_between_scan_and_loop(tmp_path, file_scan, scan):
  from_loop = _values(_shapes(depth=3))
  stacked = {
      re.sub(r"encoderblock_\d+", "encoderblock", name): None
      for name in from_loop}
  for name in stacked:
    parts = [from_loop[name.replace("encoderblock", f"encoderblock_{i}")]
             for i in range(3)]
    stacked[name] = np.stack(parts) if "encoderblock" in name else parts[0]
  path = _save(tmp_path, stacked if file_scan else from_loop)
  _check_equal(_load(_shapes(depth=3, scan=scan), path),
               stacked if scan else from_loop)
  with pytest.raises(ValueError, match="does not fit the model"):
    _load(_shapes(depth=2, scan=scan), path)


def test_blocks_that_cannot_be_stacked():
  block = {"kernel": np.ones(2)}
  with pytest.raises(ValueError, match=r"without gaps; there are \[0, 2\]"):
    weights.stack_blocks({"encoderblock_0": block, "encoderblock_2": block})
  with pytest.raises(ValueError, match="encoderblock_1 differs from"):
    weights.stack_blocks(
        {"encoderblock_0": block, "encoderblock_1": {"kernel": np.ones(3)}})
  with pytest.raises(ValueError, match="do not agree on the depth"):
    weights.unstack_blocks(
        {"encoderblock": {"a": np.ones((2, 1)), "b": np.ones((3, 1))}})
  many = {f"encoderblock_{i}": {"kernel": np.full(2, i)} for i in range(11)}
  stacked = weights.stack_blocks({**many, "encoder_norm": block})
  np.testing.assert_array_equal(  # 10 comes after 9, not after 1.
      stacked["encoderblock"]["kernel"][:, 0], np.arange(11))
  assert stacked["encoder_norm"] is block


# --- Files of the first generation --------------------------------------------

OLD_NAMES = (
    ("LayerNorm_1", "LayerNorm_2"),
    ("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1"),
    ("MlpBlock_0", "MlpBlock_3"))


def _old_name(name):
  if "encoderblock" in name:
    for new, old in OLD_NAMES:
      name = name.replace(new, old)
  return {"pos_embedding": "Transformer/posembed_input/pos_embedding"}.get(
      name, name)


def test_old_names_and_position_embedding_of_the_class_token(tmp_path):
  """There are 4 + 1 embeddings, and the first belongs to the token."""
  shapes = _shapes(pool_type="tok", rep_size=True)
  named = _values(shapes)
  first = np.random.default_rng(1).normal(size=(1, 1, 8)).astype(np.float32)
  stored = {_old_name(name): array for name, array in named.items()}
  stored["Transformer/posembed_input/pos_embedding"] = np.concatenate(
      [first, named["pos_embedding"]], axis=1)
  got = _load(shapes, _save(tmp_path, stored))
  _check_equal(got, {**named, "cls": named["cls"] + first})


@pytest.mark.parametrize("place", [
    "posembed_input/pos_embedding", "Transformer/pos_embedding"])
def test_other_places_of_the_position_embedding(tmp_path, place):
  shapes = _shapes()
  named = _values(shapes)
  stored = dict(named)
  stored[place] = stored.pop("pos_embedding")
  _check_equal(_load(shapes, _save(tmp_path, stored)), named)


def test_old_map_head_lies_beside_the_transformer(tmp_path):
  shapes = _shapes(pool_type="map")
  named = _values(shapes)
  old_map = {"MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_0",
             "LayerNorm_0": "LayerNorm_1", "MlpBlock_0": "MlpBlock_2",
             "probe": "probe"}
  stored = {}
  for name, array in named.items():
    if name.startswith("MAPHead_0/"):
      _, part, *rest = name.split("/")
      name = "/".join([old_map[part], *rest])
    stored[_old_name(name)] = array
  _check_equal(_load(shapes, _save(tmp_path, stored)), named)


# --- Grids of patches ---------------------------------------------------------


def test_resampling_is_aligned_at_the_corners():
  """Half-pixel centres would give 0, .25, .75, ..."""
  ramp = np.arange(4, dtype=np.float32).reshape(1, 4, 1)
  got = posemb.resample(ramp, (1, 4), (1, 8)).ravel()
  np.testing.assert_allclose(got, np.arange(8) * 3 / 7, atol=1e-6)
  np.testing.assert_allclose(got[:3], [0, 0.429, 0.857], atol=5e-4)
  down = posemb.resample(got.reshape(1, 8, 1), (8, 1), (4, 1)).ravel()
  np.testing.assert_allclose(down, np.arange(4), atol=1e-6)


def _bilinear(posemb, grid, new_grid):
  """The definition, number by number."""
  (h, w), (new_h, new_w) = grid, new_grid
  old = posemb.reshape(h, w, -1).astype(np.float64)
  new = np.zeros((new_h, new_w, old.shape[2]))
  for i, j in np.ndindex(new_h, new_w):
    y, x = i * (h - 1) / (new_h - 1), j * (w - 1) / (new_w - 1)
    y0, x0 = min(int(y), h - 2), min(int(x), w - 2)
    for dy, dx in np.ndindex(2, 2):
      weight = abs(1 - dy - (y - y0)) * abs(1 - dx - (x - x0))
      new[i, j] += weight * old[y0 + dy, x0 + dx]
  return new.reshape(1, new_h * new_w, -1)


@pytest.mark.parametrize("grid,new_grid,grids", [
    ((3, 3), (5, 5), {}),
    ((4, 4), (2, 2), {}),
    ((2, 2), (3, 5), dict(posemb_grid=(3, 5))),
    ((3, 2), (4, 4), dict(file_posemb_grid=[3, 2])),
    ((2, 3), (5, 4), dict(posemb_grid=[5, 4], file_posemb_grid=(2, 3))),
    # As many, otherwise arranged.
    ((4, 4), (2, 8), dict(posemb_grid=(2, 8), file_posemb_grid=(4, 4))),
])
@pytest.mark.parametrize("has_cls_posemb", [False, True])
def test_other_grids(tmp_path, grid, new_grid, grids, has_cls_posemb):
  shapes = _shapes(new_grid, pool_type="tok")
  named = _values(_shapes(grid, pool_type="tok"))
  wanted = {**named, "pos_embedding": _bilinear(
      named["pos_embedding"], grid, new_grid).astype(np.float32)}
  stored = dict(named)
  if has_cls_posemb:
    first = np.full((1, 1, 8), 3, np.float32)
    stored["pos_embedding"] = np.concatenate(
        [first, named["pos_embedding"]], axis=1)
    wanted["cls"] = named["cls"] + first
  got = _load(shapes, _save(tmp_path, stored), **grids)
  np.testing.assert_allclose(
      got["pos_embedding"], wanted["pos_embedding"], atol=1e-6)
  got["pos_embedding"] = wanted["pos_embedding"]
  _check_equal(got, wanted)


def test_14x10_patches_and_a_class_token_need_no_hint_if_the_model_has_them(
    tmp_path):
  """141 is neither a square nor one more than a square."""
  shapes = _shapes((14, 10), pool_type="tok")
  named = _values(shapes)
  stored = {**named, "pos_embedding": np.concatenate(
      [np.ones((1, 1, 8), np.float32), named["pos_embedding"]], axis=1)}
  _check_equal(_load(shapes, _save(tmp_path, stored)),
               {**named, "cls": named["cls"] + 1})


def test_grids_that_cannot_be_known_are_asked_for(tmp_path):
  named = _values(_shapes((2, 3)))
  path = _save(tmp_path, named)
  with pytest.raises(ValueError, match="6 position.*file_posemb_grid"):
    _load(_shapes((4, 4)), path)
  with pytest.raises(ValueError, match="8 position.* posemb_grid"):
    _load(_shapes((2, 4)), path, file_posemb_grid=(2, 3))
  with pytest.raises(ValueError, match=r"posemb_grid is \(3, 3\).*the 8 pos"):
    _load(_shapes((2, 4)), path, file_posemb_grid=(2, 3), posemb_grid=(3, 3))
  with pytest.raises(ValueError, match="6 position.*file_posemb_grid"):
    _load(_shapes((3, 2)), path, posemb_grid=(3, 2))
  square = _save(tmp_path, _values(_shapes((4, 4))), "square.npz")
  with pytest.raises(ValueError, match=r"\(4, 4\).*\(2, 8\).*state both"):
    _load(_shapes((2, 8)), square, posemb_grid=(2, 8))
  with pytest.raises(ValueError, match="pos_embedding is not loaded"):
    _load(_shapes((2, 8)), square, posemb_grid=(2, 8),
          dont_load=["pos_embedding"])
  # 16 may be 4 x 4 or 3 x 5 and a class token.
  named = _values(_shapes((4, 4), pool_type="tok"))
  path, shapes = _save(tmp_path, named), _shapes((3, 5), pool_type="tok")
  with pytest.raises(ValueError, match="16 position .* 15 patches"):
    _load(shapes, path, posemb_grid=(3, 5))
  got = _load(shapes, path, posemb_grid=(3, 5), file_posemb_grid=(4, 4))
  np.testing.assert_array_equal(got["cls"], named["cls"])
  got = _load(shapes, path, posemb_grid=(3, 5), file_posemb_grid=(3, 5))
  np.testing.assert_array_equal(
      got["pos_embedding"], named["pos_embedding"][:, 1:])


def test_position_embedding_can_be_left_out(tmp_path):
  path = _save(tmp_path, _values(_shapes((2, 3))))
  shapes = _shapes((4, 4))
  got = _load(shapes, path, dont_load=["pos_embedding"])
  assert got["pos_embedding"] is shapes["pos_embedding"]
  fixed = _shapes((4, 4), posemb="sincos2d")
  with pytest.raises(ValueError, match=r"only in .*: pos_embedding float32\[1"):
    _load(fixed, path)
  assert "pos_embedding" not in _load(fixed, path, dont_load=["pos_embedding"])


# --- What does not fit --------------------------------------------------------


def test_what_dont_load_names_keeps_the_initial_leaf(tmp_path):
  named = _values(_shapes(num_classes=7))
  shapes = _shapes(num_classes=3)
  got = _load(shapes, _save(tmp_path, named), dont_load=["head/.*"])
  assert got.pop("head/kernel") is shapes["head"]["kernel"]
  assert got.pop("head/bias") is shapes["head"]["bias"]
  _check_equal(got, {name: array for name, array in named.items()
                     if not name.startswith("head")})
  # Also where one side only has it.
  headless = _load(_shapes(num_classes=None), _save(tmp_path, named),
                   dont_load=["head/kernel", "head/bias"])
  _check_equal(headless, got)


def test_everything_that_does_not_fit_is_in_one_message(tmp_path):
  named = _values(_shapes(num_classes=7, rep_size=True))
  named["embedding/bias"] = np.ones(8, np.int32)
  del named["Transformer/encoder_norm/scale"]
  path = _save(tmp_path, named)
  with pytest.raises(ValueError) as error:
    _load(_shapes(), path, dont_load=["hed/.*"])
  assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
      "no parameter matches dont_load: 'hed/.*'",
      f"only in {path}: pre_logits/bias float32[8]",
      f"only in {path}: pre_logits/kernel float32[8, 8]",
      "only in the model: Transformer/encoder_norm/scale float32[8]",
      f"embedding/bias is int32[8] in {path}, float32[8] in the model",
      f"head/bias is float32[7] in {path}, float32[5] in the model",
      f"head/kernel is float32[8, 7] in {path}, float32[8, 5] in the model"]


def test_dont_load_must_match_the_whole_name(tmp_path):
  path = _save(tmp_path, _values(_shapes(num_classes=7)))
  with pytest.raises(ValueError, match="dont_load: 'head'"):
    _load(_shapes(), path, dont_load=["head"])


# --- Number formats and files -------------------------------------------------


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_floats_become_float32(tmp_path, dtype):
  shapes = _shapes()
  named = {name: array.astype(dtype) for name, array in _values(shapes).items()}
  path = _save(tmp_path, named)
  if dtype == ml_dtypes.bfloat16:  # NumPy has forgotten what it was.
    with np.load(path) as arrays:
      assert arrays["head/bias"].dtype == np.dtype("V2")
  _check_equal(_load(shapes, path), {
      name: array.astype(np.float32) for name, array in named.items()})


def test_bfloat16_position_embeddings_are_resampled(tmp_path):
  named = _values(_shapes((2, 2)))
  posemb = named["pos_embedding"].astype(ml_dtypes.bfloat16)
  path = _save(tmp_path, {**named, "pos_embedding": posemb})
  np.testing.assert_allclose(
      _load(_shapes((3, 3)), path)["pos_embedding"],
      _bilinear(posemb.astype(np.float32), (2, 2), (3, 3)), atol=1e-6)


def test_pickles_are_refused(tmp_path):
  named = _values(_shapes())
  path = _save(tmp_path, named, evil=np.array([{"a": 1}], dtype=object))
  with pytest.raises(ValueError, match="'evil' in .* is pickled.*any code"):
    _load(_shapes(), path)
  whole = tmp_path / "pickle.npz"
  np.array([{"a": 1}], dtype=object).dump(whole)
  with pytest.raises(ValueError, match="pickle.npz is not an .npz file"):
    _load(_shapes(), str(whole))


def test_files_that_are_not_there_or_not_npz(tmp_path):
  with pytest.raises(OSError, match="to read .*none.npz: No such file"):
    _load(_shapes(), str(tmp_path / "none.npz"))
  with pytest.raises(ValueError, match="neither .*did you mean 'i1k-s16-90ep'"):
    _load(_shapes(), "i1k-s16-9ep")
  with pytest.raises(ValueError, match="from .npz and .safetensors .*'x.pth'"):
    weights.read("x.pth")
  with pytest.raises(OSError, match="to read nowhere://x.npz .*Download"):
    _load(_shapes(), "nowhere://x.npz")


# --- safetensors --------------------------------------------------------------

_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16",
           "int32": "I32", "bool": "BOOL"}


def _save_safetensors(path, named, **header):
  """As its specification says: length, JSON, bytes; without the package."""
  header, start = {"__metadata__": {"format": "np"}, **header}, 0
  for name, array in named.items():
    header[name] = dict(
        dtype=_DTYPES[array.dtype.name], shape=list(array.shape),
        data_offsets=[start, start := start + array.nbytes])
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(
      array.tobytes() for array in named.values()))
  return str(path)


@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
def test_safetensors_are_read_as_npz_are(tmp_path, prefix):
  named = _values(_shapes())
  path = _save_safetensors(
      tmp_path / "w.safetensors",
      {prefix + name: array for name, array in named.items()})
  _check_equal(_load(_shapes(), path), named)


def test_types_of_safetensors_and_a_part_of_a_file(tmp_path):
  named = {
      "a/bfloat16": np.array([[1.5, -2, 3e38]], ml_dtypes.bfloat16),
      "a/float16": np.array([.1, 7], np.float16),
      "a/int32": np.array([2 ** 31 - 1], np.int32),
      "a/bool": np.array([True, False]),
      "a/scalar": np.array(3, np.float32),
      "a/empty": np.zeros((0, 4), np.float32)}
  path = _save_safetensors(
      tmp_path / "w.safetensors", {**named, "b": np.ones(1, np.float32)})
  got = weights.read(f"{path}:a")
  assert len(got) == len(named)
  for name, array in named.items():
    part = got[name.removeprefix("a/")]
    assert (part.dtype, part.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(part, array)
  with pytest.raises(ValueError, match="no 'c' in .*w.safetensors: .*'a', 'b'"):
    weights.read(f"{path}:c")


def test_bfloat16_of_safetensors_becomes_what_the_model_has(tmp_path):
  named = {name: array.astype(ml_dtypes.bfloat16)
           for name, array in _values(_shapes()).items()}
  path = _save_safetensors(tmp_path / "w.safetensors", named)
  _check_equal(_load(_shapes(), path), {
      name: array.astype(np.float32) for name, array in named.items()})


def test_names_of_other_frameworks_are_not_guessed_at(tmp_path):
  path = _save_safetensors(
      tmp_path / "timm.safetensors",
      {"blocks.0.attn.qkv.weight": np.zeros((24, 8), np.float32)})
  with pytest.raises(ValueError) as error:
    _load(_shapes(), path)
  assert re.search(r"only in .*timm.safetensors: blocks.0.attn.qkv.weight "
                   r"float32\[24, 8\]", str(error.value))
  assert re.search(r"only in the model: embedding/kernel", str(error.value))


def test_broken_safetensors_are_named(tmp_path):
  whole = _save_safetensors(
      tmp_path / "whole.safetensors", {"a": np.ones(4, np.float32)})
  with open(whole, "rb") as file:
    whole = file.read()
  path = tmp_path / "broken.safetensors"
  for content in (b"", whole[:4], whole[:20], whole[:-1], whole + b"x",
                  b"no safetensors, but long enough"):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="tensors is not a .safetensors"):
      weights.read(str(path))
  _save_safetensors(path, {}, a=dict(
      dtype="F8_E4M3", shape=[0], data_offsets=[0, 0]))
  with pytest.raises(ValueError, match="broken.*{'a': 'F8_E4M3'}.*'BF16'"):
    weights.read(str(path))
  _save_safetensors(path, {"a": np.ones(1, np.float32),
                           "a/b": np.ones(1, np.float32)})
  with pytest.raises(ValueError, match="broken.safetensors do not form a tree"):
    weights.read(str(path))


def test_published_names():
  """Section "published checkpoints" of what is known about big_vision."""
  names = {
      *(f"howto-i21k-{v}" for v in (
          "Ti/16", "S/32", "S/16", "B/32", "B/16", "B/8", "L/16")),
      *(f"i1k-s16-{n}ep" for n in (90, 150, 300)),
      *(f"deit3_{v}_{r}_{d}" for v in "SBL" for r in (224, 384)
        for d in ("1k", "21k")),
      *(f"SigLIP B/16 {r}" for r in (224, 256, 384, 512)),
      "SigLIP L/16 256", "SigLIP L/16 384", "SigLIP So400m/14 224",
      "SigLIP So400m/14 384", "SigLIP B/16-i18n 256", "SigLIP2 B/32 256",
      *(f"SigLIP2 B/16 {r}" for r in (224, 256, 384, 512)),
      *(f"SigLIP2 L/16 {r}" for r in (256, 384, 512)),
      "SigLIP2 So400m/14 224", "SigLIP2 So400m/14 384",
      *(f"SigLIP2 So400m/16 {r}" for r in (256, 384, 512)),
      "SigLIP2 g-opt/16 256", "SigLIP2 g-opt/16 384"}
  assert set(vit_weights.VANITY_NAMES) == names
  files = vit_weights.VANITY_NAMES
  for name, file in (
      ("howto-i21k-Ti/16", "gs://vit_models/augreg/Ti_16-i21k-300ep-lr_0.001-"
       "aug_none-wd_0.03-do_0.0-sd_0.0.npz"),
      ("howto-i21k-B/8", "gs://vit_models/augreg/B_8-i21k-300ep-lr_0.001-"
       "aug_medium2-wd_0.1-do_0.0-sd_0.0.npz"),
      ("i1k-s16-300ep", "gs://big_vision/vit_s16_i1k_300ep.npz"),
      ("deit3_L_384_21k",
       "gs://big_vision/zoo/deit3/bv_deit_3_large_384_21k.npz"),
      ("SigLIP So400m/14 384",
       "gs://big_vision/siglip/webli_en_so400m_384_58765454.npz:img"),
      ("SigLIP2 So400m/16 512",
       "gs://big_vision/siglip2/siglip2_so400m16_512.npz:img"),
      ("SigLIP2 g-opt/16 256",
       "gs://big_vision/siglip2/siglip2_g-opt16_256.npz:img")):
    assert files[name] == file
  assert len(set(files.values())) == len(files)


def test_weights_in_a_pipe_are_refused(tmp_path):
  """Reading them would wait for ever."""
  for name in "weights.npz", "weights.safetensors":
    os.mkfifo(tmp_path / name)
    with deadline.within(20), pytest.raises(
        OSError, match=f"{name}: not a regular file but a pipe"):
      weights.read(str(tmp_path / name))
