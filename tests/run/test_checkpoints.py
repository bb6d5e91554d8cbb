"""Tests checkpoints: round trips, resharding, and every kind of damage."""

import logging
import os
import pathlib
import shutil
import warnings

from big_vision import sharding
from big_vision import tree
from big_vision.run import checkpoints
from big_vision.run.checkpoints import digests
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

# orbax leaves unclosed resources behind after a failed read or write.
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
  """Makes a directory with the steps 1 (scale 1) and 2 (scale 2)."""
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


def test_the_state_has_the_leaves_of_real_optimizers(saved):
  """Otherwise the round trips here would prove little."""
  named = dict(tree.flatten_with_names(_state()))
  assert named["opt/0/inner_state/mu/head/kernel"].dtype == jnp.bfloat16
  assert isinstance(_state()["opt"][0].inner_state.mu["head"]["bias"],
                    optax.MaskedNode)
  assert _state()["opt"][1] == optax.EmptyState()
  restored = checkpoints.Checkpoints(str(saved), read_only=True).restore(
      _shapes(_state()))[1]
  assert isinstance(restored["opt"][0].inner_state, optax.ScaleByAdamState)


@pytest.mark.parametrize("num", [2, 50])
def test_the_number_of_files_does_not_grow_with_that_of_leaves(tmp_path, num):
  """big_vision makes 74 folders for a small model, which is slow on gs://."""
  state = {f"block{i:02}": jnp.ones((4, 4)) for i in range(num)}
  with checkpoints.Checkpoints(str(tmp_path)) as saver:
    saver.save(1, state)
  paths = list((tmp_path / "1").rglob("*"))
  # How many of them hold data depends on the timing of threads.
  assert len([path for path in paths if path.is_file()]) <= 30
  assert len([path for path in paths if path.is_dir()]) <= 8


def test_numbers_and_numpy_arrays_are_restored_as_jax_arrays(tmp_path):
  state = {"host": np.arange(6, dtype=np.int16).reshape(2, 3), "number": 3,
           "empty": jnp.zeros((0, 3)), "none": None, "nothing": {},
           "flag": True, "complex": jnp.asarray([1 + 2j]),
           "float8": jnp.ones(3, "float8_e4m3fn")}
  arrays = jax.tree.map(jnp.asarray, state)
  with checkpoints.Checkpoints(str(tmp_path)) as saver:
    saver.save(1, state)
    _, restored, _ = saver.restore(_shapes(arrays))
  _assert_same(restored, arrays)


def test_a_state_of_empty_leaves_only_is_refused(tmp_path):
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
def test_states_that_cannot_be_stored_are_refused(
    tmp_path, state, error, message):
  with checkpoints.Checkpoints(str(tmp_path)) as saver:
    with pytest.raises(error, match=message):
      saver.save(1, state)
    assert not list(tmp_path.iterdir())
    saver.save(1, {"x": jnp.ones(2)})


def test_no_deprecated_function_is_used(tmp_path, caplog):
  with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
    warnings.simplefilter("error")
    with checkpoints.Checkpoints(str(tmp_path), keep_every=3) as saver:
      saver.save(1, _state())
      saver.restore(_shapes(_state()))
    checkpoints.read_arrays(str(tmp_path))
  assert "deprecat" not in caplog.text.lower()


def test_restore_returns_none_if_nothing_was_saved(tmp_path):
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
  """Training overwrites its buffers while it is still being written."""
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


def test_newest_and_periodic_steps_are_kept(tmp_path):
  with checkpoints.Checkpoints(
      str(tmp_path), keep_every=3, keep_last=2) as saver:
    for step in range(1, 9):
      saver.save(step, _state())
    saver.wait()
    assert saver.steps() == [3, 6, 7, 8]
    saver.save(8, _state())  # It exists: nothing to do.
    assert saver.steps() == [3, 6, 7, 8]
    with pytest.raises(checkpoints.StorageError, match="8 exists and has"):
      saver.save(8, _state(scale=2.))
    with pytest.raises(
        checkpoints.StorageError, match=r"Step 5 cannot.*\[3, 6, 7, 8\].*away"):
      saver.save(5, _state())
    saver.save(9, _state())
  assert saver.steps() == [3, 6, 8, 9]


def test_a_killed_removal_is_completed(tmp_path):
  for keep_every, left in ((None, {"3", "4"}), (2, {"2.damaged", "3", "4"})):
    directory = tmp_path / str(keep_every)
    with checkpoints.Checkpoints(str(directory), keep_last=4) as saver:
      for step in (1, 2, 3, 4):
        saver.save(step, _state())
    for step in "12":
      (directory / step / "commit_success.txt").unlink()
    checkpoints.Checkpoints(str(directory), keep_every=keep_every).close()
    assert {path.name for path in directory.iterdir()} == left


def test_a_save_that_orbax_skips_is_an_error(tmp_path, monkeypatch):
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


def test_an_unusable_directory_is_an_error(tmp_path):
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
    (lambda mesh: None, "head/bias has no sharding"),
    (lambda mesh: jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec("data")), "head/bias cannot be shar")])
def test_invalid_shardings_are_not_taken_for_damage(
    copied, sharding_of, message):
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
  """Real damage of the newest leaves the one before it readable."""
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


def test_a_damaged_step_is_not_replaced_when_asked_for_by_number(copied):
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
  """The file holds the values uncompressed: orbax would restore them."""
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


def test_a_changed_digit_in_the_metadata_is_detected(copied):
  """It is still valid JSON."""
  path = copied / "2" / "meta" / "metadata"
  text = path.read_text()
  path.write_text(text.replace('\\"note\\": 2', '\\"note\\": 3'))
  assert path.read_text() != text
  with pytest.raises(checkpoints.CheckpointDamaged, match="2/meta/.*checksum"):
    checkpoints.read_meta(str(copied))
  with checkpoints.Checkpoints(str(copied)) as saver:
    assert saver.restore(_shapes(_state()))[0] == 1


@pytest.mark.parametrize("damage", [_flip, _truncate, os.remove])
def test_damaged_data_is_never_restored(saved, tmp_path, damage, capsys):
  """Damages each file of the newest step in turn."""
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
        # Training continues and saves the step that was set aside again.
        saver.save(2, _state(5))
        saver.wait()
        _assert_same(saver.restore(shapes)[1], _state(5))
  assert fell_back >= 2


def test_only_damaged_steps_are_an_error_and_not_a_fresh_start(copied):
  for step in ("1", "2"):
    for path in _data_files(copied / step / "state"):
      if path.stat().st_size:
        _truncate(path)
  for _ in range(2):  # The second time, both are set aside already.
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
def test_folders_that_only_look_like_a_step(copied, kind, when):
  if when == "before":
    _make_junk(copied, kind, "7")
  with checkpoints.Checkpoints(str(copied)) as saver:
    if when == "while":
      _make_junk(copied, kind, "7")
    assert saver.latest() == 2
    assert saver.restore(_shapes(_state()))[0] == 2
    saver.save(3, _state(3))  # orbax alone would silently refuse.
    saver.save(7, _state(7))
    saver.wait()
    step, state, _ = saver.restore(_shapes(_state()))
    assert step == 7
    _assert_same(state, _state(7))
  assert (copied / "7.damaged").exists() == (
      kind != "empty" or when == "while"), "It may be the only copy."


def test_an_only_step_without_a_marker_is_kept_beside_a_fresh_start(
    copied, capsys):
  shutil.rmtree(copied / "1")
  (copied / "2" / "commit_success.txt").unlink()
  for _ in range(2):
    with checkpoints.Checkpoints(str(copied)) as saver:
      assert saver.restore(_shapes(_state())) is None
    assert (copied / "2.damaged" / "meta" / "metadata").exists()
  assert "it is set aside as 2.damaged" in capsys.readouterr().out
  # A killed first save is one: its note says that the folder is ours.
  shutil.move(copied / "2.damaged", copied / "2")
  (copied / "saving.txt").write_text("2")
  with checkpoints.Checkpoints(str(copied)) as saver:
    assert saver.restore(_shapes(_state())) is None
    assert not list(copied.iterdir())


def test_foreign_folders_stay(copied):
  """orbax would remove every folder without a commit marker."""
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


def test_a_step_with_damaged_metadata_is_saved_again(copied):
  with checkpoints.Checkpoints(str(copied)) as saver:
    _flip(copied / "2" / "meta" / "metadata")
    saver.save(2, _state(2))
    saver.wait()
    _assert_same(saver.restore(_shapes(_state()))[1], _state(2))
  assert (copied / "2.damaged").exists()


def test_read_only_leaves_everything_as_it_is(copied):
  _truncate(copied / "2" / "meta" / "metadata")
  (copied / "7").mkdir()  # A live run is saving it.
  before = sorted(path.name for path in copied.iterdir())
  with checkpoints.Checkpoints(str(copied), read_only=True) as saver:
    assert saver.restore(_shapes(_state()))[0] == 1
    with pytest.raises(checkpoints.StorageError, match="read only"):
      saver.save(3, _state())
  assert sorted(path.name for path in copied.iterdir()) == before
  missing = checkpoints.Checkpoints(str(copied / "missing"), read_only=True)
  assert missing.restore(_shapes(_state())) is None
  assert not (copied / "missing").exists()


def test_a_missing_step_is_an_error_that_lists_the_others(saved):
  with checkpoints.Checkpoints(str(saved)) as saver:
    with pytest.raises(checkpoints.StorageError, match=r"no step 9.*\[1, 2\]"):
      saver.restore(_shapes(_state()), step=9)


def _numpy_digest(x):
  """Computes the digest with Python integers, word by word."""
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
def test_the_digest_depends_on_bits_and_order_but_not_on_shards(dtype):
  generator = np.random.default_rng(1)
  values = (generator.normal(size=(8, 2)) * 50).astype(jnp.dtype(dtype))
  digest = int(digests.digest(values))
  assert digest == _numpy_digest(values)
  sharded = jax.device_put(values, jax.sharding.NamedSharding(
      sharding.make_mesh(), jax.sharding.PartitionSpec("data")))
  assert int(digests.digest(sharded)) == digest
  assert int(digests.digest(values[0, 0])) == _numpy_digest(values[:1, 0])
  bits = np.unpackbits(np.ascontiguousarray(values).view(np.uint8))
  changed = np.eye(bits.size, dtype=np.uint8)
  if dtype == "bool":  # The other seven bits of the byte are always 0.
    changed = changed[7::8]
  flipped = np.packbits(bits ^ changed, axis=1).view(values.dtype)
  changed = jax.vmap(digests.digest)(flipped.reshape(-1, 8, 2))
  assert digest not in set(np.asarray(changed).tolist())
  if dtype != "bool":  # Swapping equal booleans changes nothing.
    swapped = values.copy()
    swapped[[0, 5]] = swapped[[5, 0]]
    assert int(digests.digest(swapped)) != digest
    assert int(digests.digest(values.reshape(2, 8).T)) != digest


def test_the_digest_depends_on_both_halves_of_64_bits():
  with jax.enable_x64(True):
    values = jnp.asarray([1, 2], jnp.int64)
    found = {int(digests.digest(values + (1 << bit)))
             for bit in range(63)}
    assert len(found) == 63
    assert int(digests.digest(values)) == _numpy_digest(np.asarray(values))


def test_arrays_are_read_by_name_and_prefix(saved):
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


def test_a_prefix_is_read_without_the_rest(copied):
  """Damage elsewhere is not noticed; damage below the prefix is."""
  with checkpoints.Checkpoints(str(copied)) as saver:
    noise = np.random.default_rng(0).normal(size=(2, 4096))
    state = {"params": jnp.asarray(noise[0], jnp.float32),
             "opt": jnp.asarray(noise[1], jnp.float32)}
    saver.save(3, state)
  failed = []
  for path in _data_files(copied / "3" / "state"):
    if path.stat().st_size < 10_000:
      continue
    # The two arrays are in two files, or one after the other in a single one.
    data = path.read_bytes()
    for quarter in (1, 3):
      damaged = bytearray(data)
      damaged[len(data) * quarter // 4] ^= 1
      path.write_bytes(damaged)
      with pytest.raises(checkpoints.CheckpointDamaged):
        checkpoints.read_arrays(str(copied))
      try:
        got = checkpoints.read_arrays(str(copied), prefix="params")
        np.testing.assert_array_equal(got["params"], state["params"])
        failed.append(False)
      except checkpoints.CheckpointDamaged:
        failed.append(True)
    path.write_bytes(data)
  assert sorted(failed) in ([False, True], [False, False, True, True])


@pytest.mark.parametrize("mode, kept", [("max", 2), ("min", 3)])
def test_best_keeps_the_best_across_restarts(tmp_path, mode, kept):
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
  """A resumed run may find a step before the best one better, or the same."""
  directory = str(tmp_path / "best")
  with checkpoints.Best(directory, metric="acc") as best:
    best.update(6, _state(6), {"acc": .90})
  with checkpoints.Best(directory, metric="acc") as best:
    best.update(5, _state(5), {"acc": .91})
  assert checkpoints.list_steps(directory) == [5]
  with checkpoints.Best(directory, metric="acc") as best:
    best.update(5, _state(7), {"acc": .92})  # Not bit-identical.
  assert checkpoints.list_steps(directory) == [5]


def test_orbax_alone_has_the_faults_that_are_worked_around(tmp_path, caplog):
  """If this fails, orbax has improved, and a workaround may be removed."""
  manager = ocp.CheckpointManager(tmp_path / "auto")
  values = np.random.default_rng(0).normal(size=4096).astype(np.float32)
  save = lambda step: manager.save(
      step, args=ocp.args.StandardSave({"x": jnp.asarray(values)}))
  read = lambda shape: manager.restore(1, args=ocp.args.StandardRestore(shape))
  assert save(1)
  manager.wait_until_finished()
  shape = _shapes({"x": jnp.asarray(values)})
  halves = _shapes({"x": jnp.zeros(4096, jnp.float16)})
  assert read(halves)["x"].dtype == jnp.float16  # Silently cast.
  largest = max(_data_files(tmp_path / "auto"), key=lambda p: p.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(data)
  assert not np.array_equal(read(shape)["x"], values)  # A silent flip.
  (tmp_path / "auto" / "7").mkdir()
  manager.reload()
  assert manager.latest_step() == 7  # An empty folder.
  assert save(3) is False  # Nothing is saved from now on.
  manager.close()
  (tmp_path / "commit" / "notes").mkdir(parents=True)
  manager = ocp.CheckpointManager(
      tmp_path / "commit", options=ocp.CheckpointManagerOptions(
          cleanup_tmp_directories=True,
          atomicity_options=ocp.options.AtomicityOptions(
              mode=ocp.options.AtomicityMode.COMMIT_FILE)))
  assert save(1)
  manager.close()
  assert not (tmp_path / "commit" / "notes").exists()  # A foreign folder.
