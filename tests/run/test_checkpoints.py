"""Checkpoints: round trips, resharding, and every way in which files break."""

import logging
import os
import pathlib
import shutil
import warnings

from big_vision import sharding
from big_vision import tree
from big_vision.run import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

# orbax leaves these behind where reading or writing failed.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning")


def _state(scale=1., rows=8):
  params = {"head": {"kernel": jnp.arange(rows * 4.).reshape(rows, 4) * scale,
                     "bias": jnp.ones(4)}}
  tx = optax.chain(
      optax.masked(optax.scale_by_adam(mu_dtype="bfloat16"),
                   {"head": {"kernel": True, "bias": False}}),
      optax.scale(1.))
  grads = jax.tree.map(lambda p: p + .1, params)
  _, opt = tx.update(grads, tx.init(params), params)
  return {"params": params, "opt": opt, "step": jnp.int32(3),
          "flags": jnp.asarray([True, False])}


def _shapes(state, strategy=((".*", "replicate"),), devices=None):
  mesh = sharding.make_mesh(devices=devices)
  shardings = sharding.infer(state, strategy, mesh)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=s), state, shardings)


def _assert_same(got, expected):
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for (name, a), (_, b) in zip(tree.flatten_with_names(got),
                               tree.flatten_with_names(expected)):
    assert a.dtype == b.dtype, name
    np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A directory with the steps 1 (scale 1) and 2 (scale 2)."""
  directory = tmp_path_factory.mktemp("saved") / "checkpoints"
  with checkpoints.Checkpoints(str(directory)) as saver:
    for step in (1, 2):
      saver.save(step, _state(step), {"note": step})
  return directory


@pytest.fixture
def copied(saved, tmp_path):
  return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def test_round_trip_keeps_types_dtypes_and_meta(saved):
  with checkpoints.Checkpoints(str(saved)) as saver:
    assert saver.latest() == 2
    step, state, meta = saver.restore(_shapes(_state()))
    assert step == 2 and meta == {"note": 2}
    _assert_same(state, _state(2))
    step, state, _ = saver.restore(_shapes(_state()), step=1)
    _assert_same(state, _state(1))


def test_the_state_has_what_optimizers_have(saved):
  """So that the round trips here mean something."""
  named = dict(tree.flatten_with_names(_state()))
  assert named["opt/0/inner_state/mu/head/kernel"].dtype == jnp.bfloat16
  assert isinstance(_state()["opt"][0].inner_state.mu["head"]["bias"],
                    optax.MaskedNode)
  assert _state()["opt"][1] == optax.EmptyState()
  restored = checkpoints.Checkpoints(str(saved), read_only=True).restore(
      _shapes(_state()))[1]
  assert isinstance(restored["opt"][0].inner_state, optax.ScaleByAdamState)


@pytest.mark.parametrize("num", [2, 50])
def test_few_files_however_many_leaves(tmp_path, num):
  """The reference implementation makes 74 folders for a small model."""
  state = {f"block{i:02}": jnp.ones((4, 4)) for i in range(num)}
  with checkpoints.Checkpoints(str(tmp_path)) as saver:
    saver.save(1, state)
  paths = list((tmp_path / "1").rglob("*"))
  assert len([path for path in paths if path.is_file()]) <= 20
  assert len([path for path in paths if path.is_dir()]) <= 8


def test_other_leaves_come_back_as_arrays(tmp_path):
  state = {"host": np.arange(6, dtype=np.int16).reshape(2, 3), "number": 3,
           "empty": jnp.zeros((0, 3)), "none": None, "nothing": {},
           "flag": True, "complex": jnp.asarray([1 + 2j]),
           "float8": jnp.ones(3, "float8_e4m3fn")}
  arrays = jax.tree.map(jnp.asarray, state)
  with checkpoints.Checkpoints(str(tmp_path)) as saver:
    saver.save(1, state)
    _, restored, _ = saver.restore(_shapes(arrays))
  _assert_same(restored, arrays)


def test_nothing_but_empty_leaves(tmp_path):
  state = {"empty": jnp.zeros((2, 0))}
  with checkpoints.Checkpoints(str(tmp_path)) as saver:
    with pytest.raises(ValueError, match="nothing to store"):
      saver.save(1, state)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("state, error, message", [
    ({"rng": jax.random.key(0)}, TypeError, "rng .*key_data"),
    ({"a/b": 1, "a": {"b": 2}}, ValueError, r"called \['a.b'\]"),
    ({"a.b": 1, "a": {"b": 2}}, ValueError, r"called \['a.b'\]"),
    ({"seen": np.int64(1 << 40)}, ValueError, "seen does not fit into int32"),
    ({"name": "vit"}, TypeError, "name")])
def test_states_that_cannot_be_stored(tmp_path, state, error, message):
  with checkpoints.Checkpoints(str(tmp_path)) as saver:
    with pytest.raises(error, match=message):
      saver.save(1, state)
    assert not list(tmp_path.iterdir())
    saver.save(1, {"x": jnp.ones(2)})


def test_nothing_deprecated_is_used(tmp_path, caplog):
  with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
    warnings.simplefilter("error")
    with checkpoints.Checkpoints(str(tmp_path), keep_every=3) as saver:
      saver.save(1, _state())
      saver.restore(_shapes(_state()))
    checkpoints.restore_partial(str(tmp_path), _shapes(_state())["params"])
  assert "deprecat" not in caplog.text.lower()


def test_nothing_saved_is_none(tmp_path):
  with checkpoints.Checkpoints(str(tmp_path / "new")) as saver:
    assert saver.latest() is None
    assert saver.restore(_shapes(_state())) is None


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_restores_into_other_shardings(tmp_path, devices):
  split = ((".*kernel", "shard_dim('data', 0)"), (".*", "replicate"))
  shapes = _shapes(_state(), split)
  state = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), _state(),
                       shapes)
  with checkpoints.Checkpoints(str(tmp_path)) as saver:
    saver.save(1, state)
    other = _shapes(_state(), split, jax.devices()[:devices])
    _, restored, _ = saver.restore(other)
  _assert_same(restored, _state())
  kernel = restored["params"]["head"]["kernel"]
  assert kernel.sharding == other["params"]["head"]["kernel"].sharding
  assert kernel.addressable_shards[0].data.shape == (8 // devices, 4)


def test_the_state_may_be_donated_at_once(tmp_path):
  """Steps go on in its buffers while it is still being written."""
  add = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  state = add({f"w{i}": jnp.zeros((512, 512)) for i in range(8)})
  with checkpoints.Checkpoints(str(tmp_path), keep_last=9) as saver:
    for step in range(1, 5):
      saver.save(step, state)
      for _ in range(10):
        state = add(state)
    for step in range(1, 5):
      _, restored, _ = saver.restore(_shapes(state), step)
      for name, value in restored.items():
        assert np.all(value == 1 + 10 * (step - 1)), (name, step)


def test_retention(tmp_path):
  with checkpoints.Checkpoints(
      str(tmp_path), keep_every=3, keep_last=2) as saver:
    for step in range(1, 9):
      saver.save(step, _state())
    saver.wait()
    assert saver.steps() == [3, 6, 7, 8]
    saver.save(8, _state())  # Is there: nothing to do.
    assert saver.steps() == [3, 6, 7, 8]
    with pytest.raises(checkpoints.StorageError, match="8 is there and has"):
      saver.save(8, _state(scale=2.))
    with pytest.raises(
        checkpoints.StorageError, match=r"Step 5 cannot.*\[3, 6, 7, 8\].*away"):
      saver.save(5, _state())
    saver.save(9, _state())
  assert saver.steps() == [3, 6, 8, 9]


def test_a_removal_that_was_killed_leaves_nothing(tmp_path):
  for keep_every, left in ((None, {"3", "4"}), (2, {"2.damaged", "3", "4"})):
    directory = tmp_path / str(keep_every)
    with checkpoints.Checkpoints(str(directory), keep_last=4) as saver:
      for step in (1, 2, 3, 4):
        saver.save(step, _state())
    for step in "12":
      (directory / step / "commit_success.txt").unlink()
    checkpoints.Checkpoints(str(directory), keep_every=keep_every).close()
    assert {path.name for path in directory.iterdir()} == left


def test_when_orbax_refuses_it_is_an_error(tmp_path, monkeypatch):
  with checkpoints.Checkpoints(str(tmp_path)) as saver:
    saver.save(1, _state())
    saver.wait()
    with monkeypatch.context() as patch:
      patch.setattr(ocp.CheckpointManager, "save", lambda *args, **kw: False)
      with pytest.raises(checkpoints.StorageError, match="step 2 .*refused"):
        saver.save(2, _state(2))
    assert saver.latest() == 1
    saver.save(2, _state(2))
  assert checkpoints.list_steps(tmp_path) == [1, 2]


def test_a_directory_that_cannot_be_used(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(checkpoints.StorageError, match="file cannot be used"):
    checkpoints.Checkpoints(str(tmp_path / "file"))


def test_mismatch_names_both_sides_and_sets_nothing_aside(copied):
  wanted = _shapes({**_state(rows=6), "ema": jnp.zeros(2)})
  del wanted["flags"]
  with checkpoints.Checkpoints(str(copied)) as saver:
    with pytest.raises(checkpoints.CheckpointMismatch) as error:
      saver.restore(wanted)
    for text in ("only stored: flags", "not stored: ema",
                 "params/head/kernel: stored float32[8, 4], wanted "
                 "float32[6, 4]"):
      assert text in str(error.value)
    wanted = _shapes(_state())
    wanted["step"] = jax.ShapeDtypeStruct(
        (), jnp.float32, sharding=wanted["step"].sharding)
    with pytest.raises(checkpoints.CheckpointMismatch, match="int32.*float32"):
      saver.restore(wanted)
    assert saver.steps() == [1, 2]


@pytest.mark.parametrize("sharding_of, message", [
    (lambda mesh: None, "head/bias comes without a sharding"),
    (lambda mesh: jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec("data")), "head/bias cannot be shar")])
def test_shardings_that_do_not_fit_are_no_damage(copied, sharding_of, message):
  shapes = _shapes(_state())
  bias = shapes["params"]["head"]["bias"]  # 4 numbers, 8 devices.
  shapes["params"]["head"]["bias"] = jax.ShapeDtypeStruct(
      bias.shape, bias.dtype, sharding=sharding_of(bias.sharding.mesh))
  with checkpoints.Checkpoints(str(copied)) as saver:
    with pytest.raises(ValueError, match=message):
      saver.restore(shapes)
    assert saver.steps() == [1, 2]


@pytest.mark.parametrize("problem, error", [
    (ValueError("RESOURCE_EXHAUSTED: out of memory"), checkpoints.StorageError),
    (PermissionError("not yours"), checkpoints.StorageError),
    (ValueError("something else"), checkpoints.CheckpointDamaged)])
def test_reading_that_fails_for_all_sets_nothing_aside(
    copied, monkeypatch, problem, error):
  """If the newest alone is damaged, the one before it can be read."""
  def fail(*args, **kw):
    raise problem
  before = sorted(path.name for path in copied.iterdir())
  with checkpoints.Checkpoints(str(copied)) as saver:
    with monkeypatch.context() as patch:
      patch.setattr(ocp.PyTreeCheckpointHandler, "restore", fail)
      with pytest.raises(error, match=str(problem)) as raised:
        saver.restore(_shapes(_state()))
    assert raised.type is error
    assert sorted(path.name for path in copied.iterdir()) == before
    assert saver.restore(_shapes(_state()))[0] == 2


def test_a_damaged_step_that_was_asked_for(copied):
  for path in _data_files(copied / "2" / "state"):
    if path.stat().st_size:
      _truncate(path)
  with checkpoints.Checkpoints(str(copied)) as saver:
    with pytest.raises(checkpoints.CheckpointDamaged, match="checkpoints/2"):
      saver.restore(_shapes(_state()), step=2)
    assert saver.restore(_shapes(_state()), step=1)[0] == 1
    assert saver.steps() == [1, 2]


def _data_files(directory):
  return sorted(path for path in directory.rglob("*") if path.is_file())


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def _truncate(path):
  path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def test_one_flipped_bit_in_the_values_is_named(copied):
  """The file has the numbers as they are: orbax alone would restore them."""
  with checkpoints.Checkpoints(str(copied)) as saver:
    saver.save(3, {"noise": jnp.asarray(
        np.random.default_rng(0).normal(size=4096), jnp.float32)})
  largest = max(_data_files(copied / "3"), key=lambda p: p.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(data)
  with checkpoints.Checkpoints(str(copied)) as saver:
    with pytest.raises(
        checkpoints.CheckpointDamaged, match=r"/3 is damaged: .*\['noise'\]"):
      saver.restore(_shapes({"noise": jnp.ones(4096)}), step=3)
    with pytest.raises(checkpoints.CheckpointDamaged, match=r"\['noise'\]"):
      checkpoints.read_arrays(str(copied / "3"))


def test_a_changed_digit_of_the_meta_is_damage(copied):
  """It is JSON as before."""
  path = copied / "2" / "meta" / "metadata"
  text = path.read_text()
  path.write_text(text.replace('\\"note\\": 2', '\\"note\\": 3'))
  assert path.read_text() != text
  with pytest.raises(checkpoints.CheckpointDamaged, match="2/meta/.*checksum"):
    checkpoints.read_meta(str(copied))
  with checkpoints.Checkpoints(str(copied)) as saver:
    assert saver.restore(_shapes(_state()))[0] == 1


@pytest.mark.parametrize("damage", [_flip, _truncate, os.remove])
def test_whatever_is_damaged_is_never_restored(saved, tmp_path, damage, capsys):
  """Each file of the newest step in turn: whole values, or the step before."""
  shapes = _shapes(_state())
  fell_back = 0
  for i, path in enumerate(_data_files(saved / "2")):
    copy = shutil.copytree(saved, tmp_path / str(i))
    damage(copy / "2" / path.relative_to(saved / "2"))
    with checkpoints.Checkpoints(str(copy)) as saver:
      step, state, meta = saver.restore(shapes)
      _assert_same(state, _state(step))
      assert meta == {"note": step} and saver.latest() == step
      if step == 1:
        fell_back += 1
        assert f"{copy}/2" in (said := capsys.readouterr().out)
        assert "set aside as 2.damaged" in said
        assert (copy / "2.damaged").exists()
        # Training goes on from there, over the step that was set aside.
        saver.save(2, _state(5))
        saver.wait()
        _assert_same(saver.restore(shapes)[1], _state(5))
  assert fell_back >= 2


def test_all_damaged_is_an_error_and_not_a_fresh_start(copied):
  for step in ("1", "2"):
    for path in _data_files(copied / step / "state"):
      if path.stat().st_size:
        _truncate(path)
  for _ in range(2):  # Also the second time, when both are set aside.
    saver = checkpoints.Checkpoints(str(copied))
    with pytest.raises(checkpoints.CheckpointDamaged, match="To start from"):
      saver.restore(_shapes(_state()))
    saver.close()


def _make_junk(directory, kind, step):
  path = directory / step
  if kind == "empty":
    path.mkdir()
  elif kind == "file":
    path.write_text("")
  else:
    shutil.copytree(directory / "2", path)
    if kind == "half":
      shutil.rmtree(path / "meta")
    elif kind == "no marker":
      (path / "commit_success.txt").unlink()


@pytest.mark.parametrize("kind", ["empty", "file", "half", "no marker"])
@pytest.mark.parametrize("when", ["before", "while"])
def test_what_only_looks_like_a_step(copied, kind, when):
  if when == "before":
    _make_junk(copied, kind, "7")
  with checkpoints.Checkpoints(str(copied)) as saver:
    if when == "while":
      _make_junk(copied, kind, "7")
    assert saver.latest() == 2
    assert saver.restore(_shapes(_state()))[0] == 2
    saver.save(3, _state(3))  # orbax alone would refuse in silence.
    saver.save(7, _state(7))
    saver.wait()
    step, state, _ = saver.restore(_shapes(_state()))
    assert step == 7
    _assert_same(state, _state(7))
  assert (copied / "7.damaged").exists() == (
      kind != "empty" or when == "while"), "It may be the only copy."


def test_the_only_step_without_its_marker_is_no_fresh_start(copied):
  shutil.rmtree(copied / "1")
  (copied / "2" / "commit_success.txt").unlink()
  for _ in range(2):
    with checkpoints.Checkpoints(str(copied)) as saver:
      with pytest.raises(checkpoints.CheckpointDamaged, match="2.dam.*remove"):
        saver.restore(_shapes(_state()))
  # Unless this class was about to write it: a killed first saving.
  shutil.move(copied / "2.damaged", copied / "2")
  (copied / "saving.txt").write_text("2")
  with checkpoints.Checkpoints(str(copied)) as saver:
    assert saver.restore(_shapes(_state())) is None
    assert not list(copied.iterdir())


def test_what_is_not_ours_stays(copied):
  """orbax would remove what has no commit marker."""
  (copied / "notes").mkdir()
  (copied / "notes" / "mine.txt").write_text("precious")
  (copied / "2.damaged").mkdir()
  (copied / "007").mkdir()
  (copied / "007" / "x").write_text("")
  with checkpoints.Checkpoints(str(copied)) as saver:
    assert saver.steps() == [1, 2]
    saver.save(3, _state(3))
  assert {path.name for path in copied.iterdir()} == {
      "2", "3", "notes", "2.damaged", "007.damaged"}
  assert (copied / "notes" / "mine.txt").read_text() == "precious"


def test_a_damaged_meta_is_not_taken_for_the_step_to_save(copied):
  with checkpoints.Checkpoints(str(copied)) as saver:
    _flip(copied / "2" / "meta" / "metadata")
    saver.save(2, _state(2))
    saver.wait()
    _assert_same(saver.restore(_shapes(_state()))[1], _state(2))
  assert (copied / "2.damaged").exists()


def test_read_only_leaves_everything_as_it_is(copied):
  _truncate(copied / "2" / "meta" / "metadata")
  (copied / "7").mkdir()  # As a live run would leave it while it saves.
  before = sorted(path.name for path in copied.iterdir())
  with checkpoints.Checkpoints(str(copied), read_only=True) as saver:
    assert saver.restore(_shapes(_state()))[0] == 1
    with pytest.raises(checkpoints.StorageError, match="read only"):
      saver.save(3, _state())
  assert sorted(path.name for path in copied.iterdir()) == before
  missing = checkpoints.Checkpoints(str(copied / "missing"), read_only=True)
  assert missing.restore(_shapes(_state())) is None
  assert not (copied / "missing").exists()


def test_a_step_that_is_not_there(saved):
  with checkpoints.Checkpoints(str(saved)) as saver:
    with pytest.raises(checkpoints.StorageError, match=r"no step 9.*\[1, 2\]"):
      saver.restore(_shapes(_state()), step=9)


def _numpy_digest(x):
  """The digest as Python integers compute it, one word after the other."""
  def mix(h):
    h = (h ^ (h >> 16)) * 0x85EBCA6B % 2**32
    h = (h ^ (h >> 13)) * 0xC2B2AE35 % 2**32
    return h ^ (h >> 16)
  size = min(np.dtype(x.dtype).itemsize, 4)
  words = np.ascontiguousarray(x).reshape(-1).view(f"u{size}")
  return sum(mix(int(word) ^ mix((i + 0x9E3779B9) % 2**32))
             for i, word in enumerate(words)) % 2**32


@pytest.mark.parametrize("dtype", [
    "float32", "bfloat16", "float16", "int32", "int8", "uint32", "bool"])
def test_digest_sees_every_bit_and_swap_but_no_shards(dtype):
  generator = np.random.default_rng(1)
  values = (generator.normal(size=(8, 2)) * 50).astype(jnp.dtype(dtype))
  digest = int(checkpoints._digest(values))
  assert digest == _numpy_digest(values)
  sharded = jax.device_put(values, jax.sharding.NamedSharding(
      sharding.make_mesh(), jax.sharding.PartitionSpec("data")))
  assert int(checkpoints._digest(sharded)) == digest
  assert int(checkpoints._digest(values[0, 0])) == _numpy_digest(values[:1, 0])
  bits = np.unpackbits(np.ascontiguousarray(values).view(np.uint8))
  changed = np.eye(bits.size, dtype=np.uint8)
  if dtype == "bool":  # The other seven bits of the byte are no bool.
    changed = changed[7::8]
  flipped = np.packbits(bits ^ changed, axis=1).view(values.dtype)
  digests = jax.vmap(checkpoints._digest)(flipped.reshape(-1, 8, 2))
  assert digest not in set(np.asarray(digests).tolist())
  if dtype != "bool":  # In which most swaps change nothing.
    swapped = values.copy()
    swapped[[0, 5]] = swapped[[5, 0]]
    assert int(checkpoints._digest(swapped)) != digest
    assert int(checkpoints._digest(values.reshape(2, 8).T)) != digest


def test_digest_sees_both_halves_of_64_bits():
  with jax.enable_x64(True):
    values = jnp.asarray([1, 2], jnp.int64)
    digests = {int(checkpoints._digest(values + (1 << bit)))
               for bit in range(63)}
    assert len(digests) == 63
    assert int(checkpoints._digest(values)) == _numpy_digest(np.asarray(values))


def test_arrays_by_name_and_prefix(saved):
  arrays = checkpoints.read_arrays(str(saved), prefix="params/")
  assert set(arrays) == {"params/head/kernel", "params/head/bias"}
  np.testing.assert_array_equal(
      arrays["params/head/kernel"], _state(2)["params"]["head"]["kernel"])
  everything = checkpoints.read_arrays(str(saved), 1)
  assert set(everything) == {n for n, _ in tree.flatten_with_names(_state())}
  assert checkpoints.read_meta(str(saved), 1) == {"note": 1}
  assert checkpoints.read_meta(str(saved)) == {"note": 2}
  assert checkpoints.read_meta(str(saved / "1")) == {"note": 1}
  for fn in (checkpoints.read_arrays, checkpoints.read_meta):
    with pytest.raises(checkpoints.StorageError, match=r"no step 5.*\[1, 2\]"):
      fn(str(saved), 5)
    with pytest.raises(checkpoints.StorageError, match="nowhere has no checkp"):
      fn(str(saved / "nowhere"))


def test_a_subtree_in_shardings(saved):
  split = ((".*kernel", "shard_dim('data', 0)"), (".*", "replicate"))
  shapes = _shapes(_state(), split)
  params = checkpoints.restore_partial(str(saved), shapes["params"])
  _assert_same(params, _state(2)["params"])
  kernel = params["head"]["kernel"]
  assert kernel.sharding == shapes["params"]["head"]["kernel"].sharding
  head = checkpoints.restore_partial(
      str(saved / "1"), shapes["params"]["head"], prefix="params/head")
  _assert_same(head, _state(1)["params"]["head"])
  step = checkpoints.restore_partial(str(saved), shapes["step"], "step", 1)
  assert int(step) == 3
  with pytest.raises(checkpoints.CheckpointMismatch, match="only stored: para"):
    checkpoints.restore_partial(
        str(saved), {"body": shapes["params"]["head"]}, prefix="params")


def test_a_subtree_does_not_need_the_rest(copied):
  """Damage elsewhere is not read; damage in it is named."""
  with checkpoints.Checkpoints(str(copied)) as saver:
    noise = np.random.default_rng(0).normal(size=(2, 4096))
    state = {"params": jnp.asarray(noise[0], jnp.float32),
             "opt": jnp.asarray(noise[1], jnp.float32)}
    saver.save(3, state)
  failed = []
  for path in _data_files(copied / "3" / "state"):
    if path.stat().st_size < 10_000:
      continue
    # One file has one half of the values, or both after each other.
    data = path.read_bytes()
    for quarter in (1, 3):
      damaged = bytearray(data)
      damaged[len(data) * quarter // 4] ^= 1
      path.write_bytes(damaged)
      with pytest.raises(checkpoints.CheckpointDamaged):
        checkpoints.read_arrays(str(copied))
      try:
        got = checkpoints.restore_partial(str(copied), _shapes(state)["params"])
        np.testing.assert_array_equal(got, state["params"])
        failed.append(False)
      except checkpoints.CheckpointDamaged:
        failed.append(True)
    path.write_bytes(data)
  assert sorted(failed) in ([False, True], [False, False, True, True])


@pytest.mark.parametrize("mode, kept", [("max", 2), ("min", 3)])
def test_best(tmp_path, mode, kept):
  directory = str(tmp_path / "best")
  values = {1: .5, 2: .9, 3: .1, 4: .7}
  with checkpoints.Best(directory, metric="val/acc", mode=mode) as best:
    for step in (1, 2):
      best.update(step, _state(step), {"val/acc": values[step], "x": 0})
  with checkpoints.Best(directory, metric="val/acc", mode=mode) as best:
    for step in (3, 4):
      best.update(step, _state(step), {"val/acc": values[step]})
    best.update(5, _state(5), {"x": 1.})
  assert checkpoints.list_steps(directory) == [kept]
  assert checkpoints.read_meta(directory, kept) == {"best": values[kept]}
  with pytest.raises(ValueError, match="'maximum'"):
    checkpoints.Best(directory, metric="x", mode="maximum")


def test_best_of_a_run_that_repeats_steps(tmp_path):
  """It may find an earlier step better this time, or the same one."""
  directory = str(tmp_path / "best")
  with checkpoints.Best(directory, metric="acc") as best:
    best.update(6, _state(6), {"acc": .90})
  with checkpoints.Best(directory, metric="acc") as best:
    best.update(5, _state(5), {"acc": .91})
  assert checkpoints.list_steps(directory) == [5]
  with checkpoints.Best(directory, metric="acc") as best:
    best.update(5, _state(7), {"acc": .92})  # Not bit-identical.
  assert checkpoints.list_steps(directory) == [5]


def test_why_orbax_is_not_trusted(tmp_path, caplog):
  """What this module works around. A failure here is good news: use it."""
  manager = ocp.CheckpointManager(tmp_path / "auto")
  values = np.random.default_rng(0).normal(size=4096).astype(np.float32)
  save = lambda step: manager.save(
      step, args=ocp.args.StandardSave({"x": jnp.asarray(values)}))
  read = lambda shape: manager.restore(1, args=ocp.args.StandardRestore(shape))
  assert save(1)
  manager.wait_until_finished()
  shape = _shapes({"x": jnp.asarray(values)})
  halves = _shapes({"x": jnp.zeros(4096, jnp.float16)})
  assert read(halves)["x"].dtype == jnp.float16  # Cast in silence.
  largest = max(_data_files(tmp_path / "auto"), key=lambda p: p.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(data)
  assert not np.array_equal(read(shape)["x"], values)  # A bit, in silence.
  (tmp_path / "auto" / "7").mkdir()
  manager.reload()
  assert manager.latest_step() == 7  # An empty folder.
  assert save(3) is False  # And nothing is saved any more.
  manager.close()
  (tmp_path / "commit" / "notes").mkdir(parents=True)
  manager = ocp.CheckpointManager(
      tmp_path / "commit", options=ocp.CheckpointManagerOptions(
          cleanup_tmp_directories=True,
          atomicity_options=ocp.options.AtomicityOptions(
              mode=ocp.options.AtomicityMode.COMMIT_FILE)))
  assert save(1)
  manager.close()
  assert not (tmp_path / "commit" / "notes").exists()  # Somebody's folder.
