"""Checkpoints: round trips, resharding, and every way in which files break."""

import os
import pathlib
import shutil

from big_vision import checkpoint
from big_vision import sharding
from big_vision import tree
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest


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
  with checkpoint.Checkpoints(str(directory)) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, _state(step), {"note": step})
  return directory


@pytest.fixture
def copied(saved, tmp_path):
  return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def test_round_trip_keeps_types_dtypes_and_meta(saved):
  with checkpoint.Checkpoints(str(saved)) as checkpoints:
    assert checkpoints.latest() == 2
    step, state, meta = checkpoints.restore(_shapes(_state()))
    assert step == 2 and meta == {"note": 2}
    _assert_same(state, _state(2))
    step, state, _ = checkpoints.restore(_shapes(_state()), step=1)
    _assert_same(state, _state(1))


def test_few_files(saved):
  files = [path for path in (saved / "2").rglob("*") if path.is_file()]
  assert len(files) < 25, files


def test_nothing_saved_is_none(tmp_path):
  with checkpoint.Checkpoints(str(tmp_path / "new")) as checkpoints:
    assert checkpoints.latest() is None
    assert checkpoints.restore(_shapes(_state())) is None


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_restores_into_other_shardings(tmp_path, devices):
  split = ((".*kernel", "shard_dim('data', 0)"), (".*", "replicate"))
  shapes = _shapes(_state(), split)
  state = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), _state(),
                       shapes)
  with checkpoint.Checkpoints(str(tmp_path)) as checkpoints:
    checkpoints.save(1, state)
    other = _shapes(_state(), split, jax.devices()[:devices])
    _, restored, _ = checkpoints.restore(other)
  _assert_same(restored, _state())
  kernel = restored["params"]["head"]["kernel"]
  assert kernel.sharding == other["params"]["head"]["kernel"].sharding
  assert kernel.addressable_shards[0].data.shape == (8 // devices, 4)


def test_the_state_may_be_donated_at_once(tmp_path):
  state = jax.tree.map(jnp.copy, _state())
  with checkpoint.Checkpoints(str(tmp_path)) as checkpoints:
    checkpoints.save(1, state)
    jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state)
    assert state["params"]["head"]["kernel"].is_deleted()
    checkpoints.wait()
    _, restored, _ = checkpoints.restore(_shapes(_state()))
  _assert_same(restored, _state())


def test_retention(tmp_path):
  with checkpoint.Checkpoints(
      str(tmp_path), keep_every=3, keep_last=2) as checkpoints:
    for step in range(1, 9):
      checkpoints.save(step, _state())
    checkpoints.wait()
    assert checkpoints.steps() == [3, 6, 7, 8]
    checkpoints.save(8, _state())  # Is there: nothing to do.
    assert checkpoints.steps() == [3, 6, 7, 8]


def test_mismatch_names_both_sides_and_sets_nothing_aside(copied):
  wanted = _shapes({**_state(rows=6), "ema": jnp.zeros(2)})
  del wanted["flags"]
  with checkpoint.Checkpoints(str(copied)) as checkpoints:
    with pytest.raises(checkpoint.CheckpointMismatch) as error:
      checkpoints.restore(wanted)
    for text in ("only stored: flags", "not stored: ema",
                 "params/head/kernel: stored float32[8, 4], wanted "
                 "float32[6, 4]"):
      assert text in str(error.value)
    wanted = _shapes(_state())
    wanted["step"] = jax.ShapeDtypeStruct(
        (), jnp.float32, sharding=wanted["step"].sharding)
    with pytest.raises(checkpoint.CheckpointMismatch, match="int32.*float32"):
      checkpoints.restore(wanted)
    assert checkpoints.steps() == [1, 2]


def _data_files(directory):
  return sorted(path for path in directory.rglob("*") if path.is_file())


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def _truncate(path):
  path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [_flip, _truncate, os.remove])
def test_whatever_is_damaged_is_never_restored(saved, tmp_path, damage, capsys):
  """Each file of the newest step in turn: whole values, or the step before."""
  shapes = _shapes(_state())
  fell_back = 0
  for i, path in enumerate(_data_files(saved / "2")):
    if not path.stat().st_size:
      continue  # A marker: nothing to flip. Its absence is tested below.
    copy = shutil.copytree(saved, tmp_path / str(i))
    damage(copy / "2" / path.relative_to(saved / "2"))
    checkpoints = checkpoint.Checkpoints(str(copy))
    step, state, meta = checkpoints.restore(shapes)
    _assert_same(state, _state(step))
    assert meta == {"note": step}
    if step == 1:
      fell_back += 1
      if checkpoints.latest() == 1 and (copy / "2.damaged").exists():
        assert "2 is damaged" in capsys.readouterr().out
      # Training goes on from there, over the step that was set aside.
      checkpoints.save(2, _state(5))
      checkpoints.wait()
      _assert_same(checkpoints.restore(shapes)[1], _state(5))
    checkpoints.close()
  assert fell_back >= 2


def test_all_damaged_is_an_error_and_not_a_fresh_start(copied):
  for step in ("1", "2"):
    for path in _data_files(copied / step / "state"):
      if path.stat().st_size:
        _truncate(path)
  for _ in range(2):  # Also the second time, when both are set aside.
    checkpoints = checkpoint.Checkpoints(str(copied))
    with pytest.raises(checkpoint.CheckpointDamaged, match="start from scratch"):
      checkpoints.restore(_shapes(_state()))
    checkpoints.close()


@pytest.mark.parametrize("junk", ["empty", "half", "no marker"])
def test_folders_that_only_look_like_steps(copied, junk):
  if junk == "empty":
    (copied / "7").mkdir()
  else:
    shutil.copytree(copied / "2", copied / "7")
    if junk == "half":
      shutil.rmtree(copied / "7" / "meta")
    else:
      (copied / "7" / "commit_success.txt").unlink()
  with checkpoint.Checkpoints(str(copied)) as checkpoints:
    assert checkpoints.latest() == 2
    assert checkpoints.restore(_shapes(_state()))[0] == 2
    checkpoints.save(3, _state(3))  # orbax alone would refuse in silence.
    checkpoints.save(7, _state(7))
    checkpoints.wait()
    step, state, _ = checkpoints.restore(_shapes(_state()))
    assert step == 7
    _assert_same(state, _state(7))


def test_read_only_leaves_everything_as_it_is(copied):
  _truncate(copied / "2" / "meta" / "metadata")
  (copied / "7").mkdir()  # As a live run would leave it while it saves.
  before = sorted(path.name for path in copied.iterdir())
  with checkpoint.Checkpoints(str(copied), read_only=True) as checkpoints:
    assert checkpoints.restore(_shapes(_state()))[0] == 1
  assert sorted(path.name for path in copied.iterdir()) == before
  missing = checkpoint.Checkpoints(str(copied / "missing"), read_only=True)
  assert missing.restore(_shapes(_state())) is None
  assert not (copied / "missing").exists()


def test_a_step_that_is_not_there(saved):
  with checkpoint.Checkpoints(str(saved)) as checkpoints:
    with pytest.raises(checkpoint.StorageError, match=r"no step 9.*\[1, 2\]"):
      checkpoints.restore(_shapes(_state()), step=9)


def test_digest_sees_every_bit_and_position_but_no_shards():
  values = jnp.arange(64.).reshape(16, 4)
  digest = lambda x: int(checkpoint._digest(x))
  assert len({digest(values), digest(values.T.reshape(16, 4)),
              digest(values[::-1]), digest(-values)}) == 4
  host = np.arange(64, dtype=np.float32).view(np.uint32)
  seen = set()
  for bit in range(0, 64 * 32, 37):
    flipped = host.copy()
    flipped[bit // 32] ^= np.uint32(1 << (bit % 32))
    seen.add(digest(jnp.asarray(flipped.view(np.float32))))
  assert len(seen) == len(range(0, 64 * 32, 37))
  mesh = sharding.make_mesh()
  spread = jax.device_put(values, jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec("data")))
  assert int(checkpoint._digests({"x": spread})["x"]) == digest(values)
  for dtype in (jnp.bfloat16, jnp.int8, jnp.bool_, jnp.uint32):
    assert digest(values.astype(dtype)) != digest((values * 0).astype(dtype))


def test_arrays_by_name_and_prefix(saved):
  arrays = checkpoint.read_arrays(str(saved), prefix="params/")
  assert set(arrays) == {"params/head/kernel", "params/head/bias"}
  np.testing.assert_array_equal(
      arrays["params/head/kernel"], _state(2)["params"]["head"]["kernel"])
  everything = checkpoint.read_arrays(str(saved), 1)
  assert set(everything) == {n for n, _ in tree.flatten_with_names(_state())}
  assert checkpoint.read_meta(str(saved), 1) == {"note": 1}


@pytest.mark.parametrize("mode, kept", [("max", 2), ("min", 3)])
def test_best(tmp_path, mode, kept):
  directory = str(tmp_path / "best")
  values = {1: .5, 2: .9, 3: .1, 4: .7}
  with checkpoint.Best(directory, metric="val/acc", mode=mode) as best:
    for step in (1, 2):
      best.update(step, _state(step), {"val/acc": values[step], "x": 0})
  with checkpoint.Best(directory, metric="val/acc", mode=mode) as best:
    for step in (3, 4):
      best.update(step, _state(step), {"val/acc": values[step]})
    best.update(5, _state(5), {"x": 1.})
  assert checkpoint.list_steps(directory) == [kept]
  assert checkpoint.read_meta(directory, kept) == {"best": values[kept]}
  with pytest.raises(ValueError, match="'maximum'"):
    checkpoint.Best(directory, metric="x", mode="maximum")
