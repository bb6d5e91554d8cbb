"""Tests the order, hosts, mixtures, damage and evaluation of batches."""

import itertools
import os
import time

from big_vision import config as config_lib
from big_vision import input_pipeline
from big_vision import sharding
from big_vision.datasets import core
from big_vision.datasets import registry
import jax
import numpy as np
from PIL import Image
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds


def _sharding(axes=(("data", -1),), devices=None, batch="data"):
  mesh = sharding.make_mesh(axes, devices)
  return sharding.batch_sharding(mesh, [("act_batch", batch)])


def _npz(path, n, start=0):
  """Writes a source whose example i is {"x": [start + i] * 2}."""
  fname = str(path / f"{start}.npz")
  values = np.arange(start, start + n, dtype=np.int32)
  np.savez(fname, x=np.stack([values, values], 1))
  return dict(name="bv:npz", fname=fname)


def _training(data, batch_size=8, pp="keep('x')", seed=0, **kw):
  return input_pipeline.make_training(
      dict(data=data, batch_size=batch_size, pp=pp, **kw), seed=seed)


def _take(pipeline, count, first=0, where=None, key="x"):
  with pipeline.start(first, where or _sharding()) as batches:
    return [np.asarray(batch[key])
            for batch in itertools.islice(batches, count)]


def _ids(batches):
  return [int(row[0]) for batch in batches for row in batch]


def test_each_epoch_has_every_example_once_in_its_own_order(tmp_path):
  pipeline = _training(_npz(tmp_path, 24))
  assert pipeline.data_size == 24
  assert pipeline.batch_spec == {"x": jax.ShapeDtypeStruct((8, 2), np.int32)}
  ids = _ids(_take(pipeline, 9))
  epochs = [ids[i:i + 24] for i in (0, 24, 48)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(24))
  assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])
  assert _ids(_take(_training(_npz(tmp_path, 24), seed=1), 3)) != epochs[0]


def test_an_epoch_may_end_within_a_batch(tmp_path):
  ids = _ids(_take(_training(_npz(tmp_path, 11)), 11))
  for i in range(8):
    assert sorted(ids[11 * i:11 * (i + 1)]) == list(range(11))


def test_a_batch_does_not_depend_on_the_first_batch(tmp_path):
  data = _npz(tmp_path, 50)
  everything = _take(_training(data), 10)
  for first in (1, 7):
    for a, b in zip(_take(_training(data), 3, first), everything[first:]):
      np.testing.assert_array_equal(a, b)


def test_starting_late_is_free(tmp_path):
  pipeline = _training(_npz(tmp_path, 50))
  start = time.monotonic()
  _take(pipeline, 1)
  early = time.monotonic() - start
  start = time.monotonic()
  _take(pipeline, 1, first=10 ** 6)
  # A million batches would take minutes.
  assert time.monotonic() - start < 10 * early + 5


def test_random_ops_draw_from_seed_and_position(tmp_path):
  pp = "reshape((1, 2, 1), key='x')|flip_lr(key='x')|keep('x')"
  fname = tmp_path / "flips.npz"
  np.savez(fname, x=np.tile(np.asarray([[0, 1]], np.uint8), (4, 1)))
  data = dict(name="bv:npz", fname=str(fname))
  flips = np.concatenate(_take(_training(data, pp=pp), 8))[:, 0, 0, 0]
  assert 15 < flips.sum() < 49  # 64 fair coins; 4 sigma.
  again = np.concatenate(_take(_training(data, pp=pp), 3, first=5))[:, 0, 0, 0]
  np.testing.assert_array_equal(flips[40:], again)
  other = np.concatenate(_take(_training(data, pp=pp, seed=1), 8))[:, 0, 0, 0]
  assert (flips != other).any()


@pytest.mark.parametrize("where", [
    _sharding(devices=jax.devices()[:1]), _sharding(devices=jax.devices()[:2]),
    _sharding([("data", 4), ("model", 2)]),
    _sharding([("data", 4), ("model", 2)], batch=("data", "model")),
    _sharding([("data", 4), ("model", 2)], batch=None)])
def test_any_mesh_gets_the_same_batches(tmp_path, where):
  data = _npz(tmp_path, 30)
  for a, b in zip(_take(_training(data), 3),
                  _take(_training(data), 3, where=where)):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("hosts", [2, 4])
def test_any_number_of_hosts_gets_the_same_batches(
    tmp_path, monkeypatch, hosts):
  """Each host makes its devices' rows, which together form the batch."""
  data, devices = _npz(tmp_path, 30), jax.devices()
  expected = _take(_training(data), 2)
  where = _sharding()
  original = jax.sharding.NamedSharding.addressable_devices_indices_map
  got = [[], []]
  for host in range(hosts):
    mine = set(devices[host * 8 // hosts:(host + 1) * 8 // hosts])
    with monkeypatch.context() as patch:
      patch.setattr(
          jax.sharding.NamedSharding, "addressable_devices_indices_map",
          lambda self, shape, mine=mine: {
              d: i for d, i in original(self, shape).items() if d in mine})
      patch.setattr(jax, "make_array_from_single_device_arrays",
                    lambda shape, where, shards: np.concatenate(shards))
      for parts, batch in zip(got, _take(_training(data), 2, where=where)):
        parts.append(batch)
  for parts, batch in zip(got, expected):
    np.testing.assert_array_equal(np.concatenate(parts), batch)


class _Numbers(core.IndexSource):
  def describe(self, index):
    return f"number {index}"


def test_indices_made_in_batches_equal_indices_made_singly(monkeypatch):
  """Without preprocessing a batch of indices is made at once."""
  monkeypatch.setattr(registry, "open_source", lambda name: _Numbers(30, name))
  at_once = _training(dict(name="ray"), pp="")
  assert at_once.batch_spec == {"ray": jax.ShapeDtypeStruct((8,), np.int32)}
  for where in (_sharding(), _sharding(devices=jax.devices()[:2])):
    for first in (0, 5):
      np.testing.assert_array_equal(
          _take(at_once, 4, first, where, key="ray"),
          _take(_training(dict(name="ray"), pp="keep('ray')"), 4, first, where,
                key="ray"))
  ids = np.ravel(_take(at_once, 15, key="ray"))
  for epoch in ids.reshape(4, 30):
    assert sorted(epoch) == list(range(30))
  cached = _training(dict(name="ray"), pp="", cache_raw=True)
  np.testing.assert_array_equal(np.ravel(_take(cached, 15, key="ray")), ids)


def test_mixtures_keep_their_weights_and_cover_every_source(tmp_path):
  blocks = {"a": dict(data=_npz(tmp_path, 30), pp="keep('x')"),
            "b": dict(data=_npz(tmp_path, 7, start=100), pp="keep('x')")}
  make = lambda: input_pipeline.make_training(
      dict(data={"a": 3, "b": 1}, batch_size=400, **blocks), seed=0)
  assert make().data_size == 37
  ids = np.asarray(_ids(_take(make(), 25)))  # One block of 10,000.
  assert (ids < 100).sum() == 7500
  # The sources alternate: in 400 examples about a quarter are from b.
  assert 60 < (ids[:400] >= 100).sum() < 140
  # Over the block, each source goes through all of its epochs.
  counts = np.bincount(ids[ids < 100])
  assert set(counts) == {250}
  counts = np.bincount(ids[ids >= 100] - 100)
  assert counts.max() - counts.min() <= 1
  np.testing.assert_array_equal(
      _ids(_take(make(), 2, first=24)),
      np.concatenate([ids[-400:], _ids(_take(make(), 1, first=25))]))


def test_the_order_equals_the_committed_one(tmp_path):
  """A change of the order would alter every run that is resumed."""
  plain = _ids(_take(_training(_npz(tmp_path, 24)), 3))
  assert plain == [
      0, 7, 19, 21, 2, 4, 10, 23, 5, 14, 22, 13, 16, 15, 12, 9, 6, 3, 17, 18, 8,
      11, 1, 20]
  blocks = {"a": dict(data=_npz(tmp_path, 30), pp="keep('x')"),
            "b": dict(data=_npz(tmp_path, 7, start=100), pp="keep('x')")}
  mixture = input_pipeline.make_training(
      dict(data={"a": 3, "b": 1}, batch_size=400, **blocks), seed=3)
  batch, = _take(mixture, 1)
  assert batch[:16, 0].tolist() == [
      4, 13, 28, 8, 104, 9, 26, 6, 103, 103, 10, 100, 1, 17, 104, 101]
  # Batch 25 is the first one of the second block.
  batch, = _take(mixture, 1, first=25)
  assert batch[:16, 0].tolist() == [
      102, 27, 18, 27, 10, 10, 29, 9, 21, 3, 16, 102, 20, 19, 25, 21]


def test_a_mixture_reaches_every_example_of_a_source_larger_than_a_block(
    tmp_path):
  """A block must start where the one before it ended within each source."""
  blocks = {"a": dict(data=_npz(tmp_path, 20_000), pp="keep('x')"),
            "b": dict(data=_npz(tmp_path, 8, start=10**6), pp="keep('x')")}
  pipeline = input_pipeline.make_training(
      dict(data={"a": 1, "b": 1}, batch_size=5_000, **blocks), seed=0)
  where = _sharding(devices=jax.devices()[:1])
  ids = np.concatenate(_take(pipeline, 8, where=where))[:, 0]
  assert sorted(ids[ids < 20_000]) == list(range(20_000))


@pytest.mark.parametrize("mixed", [False, True])
def test_random_ops_draw_anew_in_each_epoch(tmp_path, mixed):
  """Neither an example nor a place in the epoch has always the same seed."""
  fname = tmp_path / "flips.npz"
  np.savez(fname, x=np.asarray([[[[0], [1]]]] * 8, np.uint8),
           id=np.arange(8, dtype=np.int32))
  data = dict(name="bv:npz", fname=str(fname))
  pp = "flip_lr(key='x')|keep('x', 'id')"
  if mixed:
    pipeline = _training({"a": 1}, a=dict(data=data, pp=pp))
  else:
    pipeline = _training(data, pp=pp)
  of_examples, of_places = ({i: set() for i in range(8)} for _ in range(2))
  with pipeline.start(0, _sharding()) as batches:
    for batch in itertools.islice(batches, 16):
      for place, (i, x) in enumerate(zip(
          np.asarray(batch["id"]), np.asarray(batch["x"]))):
        of_examples[int(i)].add(int(x[0, 0, 0]))
        of_places[place].add(int(x[0, 0, 0]))
  # All of 16 fair coins are alike with probability 2**-15.
  for flips in (of_examples, of_places):
    assert all(found == {0, 1} for found in flips.values()), flips


@pytest.mark.parametrize("changes, message", [
    (dict(data={"a": 1, "b": 0}), "a number above 0"),
    (dict(data={"a": 1, "b": 1e-6}), "never gets a turn"),
    (dict(b=dict(pp="copy('x', 'y')|keep('y')")), "different"),
    (dict(batch_size="8"), "'8'"),
    (dict(a=dict(pp="nope")), "'nope'")])
def test_mistakes_in_a_mixture_are_named(tmp_path, changes, message):
  config = dict(data={"a": 1, "b": 1}, batch_size=8,
                a=dict(pp="keep('x')"), b=dict(pp="keep('x')"))
  config |= changes
  for i, name in enumerate("ab"):
    config[name] = {**config[name], "data": _npz(tmp_path, 9, start=i * 10)}
  with pytest.raises(config_lib.ConfigError, match=message):
    input_pipeline.make_training(config, seed=0)


def test_a_batch_size_that_does_not_divide_is_refused(tmp_path):
  with pytest.raises(config_lib.ConfigError, match=r"12.*8 shards.*\[8, 16\]"):
    _training(_npz(tmp_path, 30), batch_size=12).start(0, _sharding())


@pytest.mark.parametrize("arrays, pp, message", [
    (dict(x=["a", "b"]), "", "'x'.*only numbers"),
    (dict(x=[1, 2]), "lookup_missing", "lookup_missing"),
    (dict(x=[1, 2]), "decode", "does not suit.*'decode'")])
def test_entries_that_cannot_be_batched_are_named(
    tmp_path, arrays, pp, message):
  fname = str(tmp_path / "data.npz")
  np.savez(fname, **{k: np.asarray(v) for k, v in arrays.items()})
  with pytest.raises(config_lib.ConfigError, match=message):
    _training(dict(name="bv:npz", fname=fname), pp=pp)


def test_types_are_narrowed_to_jax_types_without_overflow(tmp_path):
  fname = str(tmp_path / "data.npz")
  np.savez(fname, i=np.asarray([2 ** 31 - 1, -2 ** 31]),
           f=np.asarray([.5, .25]), u=np.asarray([1, 2], np.uint8))
  pipeline = _training(dict(name="bv:npz", fname=fname), pp="")
  assert {k: str(v.dtype) for k, v in pipeline.batch_spec.items()} == {
      "i": "int32", "f": "float32", "u": "uint8"}
  np.savez(fname, i=np.asarray([2 ** 31, 2 ** 31]))
  with pytest.raises(input_pipeline.DataError, match="32 bits"):
    _take(_training(dict(name="bv:npz", fname=fname), pp=""), 1, key="i")


# -- damaged examples --------------------------------------------------------


def _folder(path, damaged=()):
  for i in range(40):
    folder = path / "data" / f"class{i % 2}"
    folder.mkdir(parents=True, exist_ok=True)
    fname = folder / f"{i:02d}.png"
    Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(fname)
    if i in damaged:
      fname.write_bytes(fname.read_bytes()[:40])
  return dict(name="bv:folder", path=str(path / "data"), split="train")


PP = "decode|resize(2)|keep('image')"


def test_a_damaged_example_is_named_with_its_file(tmp_path):
  data = _folder(tmp_path, damaged=range(40))
  with pytest.raises(input_pipeline.DataError,
                     match=r"\d\d.png.*(?s:.*)skip_err"):
    _take(_training(data, pp=PP), 1, key="image")


def test_a_picture_that_claims_gigabytes_is_named_with_its_file(tmp_path):
  data = _folder(tmp_path)
  for path in tmp_path.rglob("*.png"):
    contents = bytearray(path.read_bytes())
    contents[16:24] = (50000).to_bytes(4, "big") * 2  # The size in its header.
    path.write_bytes(contents)
  with pytest.raises(
      input_pipeline.DataError,
      match=r"(?s)\d\d.png.*64000000 pixels.*50000, 50000"):
    _take(_training(data, pp=PP), 1, key="image")


def test_damaged_examples_are_replaced_counted_and_named(tmp_path, capsys):
  damaged = {3, 8, 17, 30}
  data = _folder(tmp_path, damaged)
  make = lambda: _training(data, pp=PP, skip_errors=True)
  with make().start(0, _sharding()) as batches:
    ids = [np.asarray(batch["image"])[:, 0, 0, 0]
           for batch in itertools.islice(batches, 12)]
    assert batches.num_skipped > 0
  printed = capsys.readouterr().out
  seen = set(np.concatenate(ids))
  assert not seen & damaged and len(seen) >= 28
  assert "Skipped a damaged example" in printed and ".png" in printed
  # Neither the first batch nor the devices change the substitutes.
  where = _sharding(devices=jax.devices()[:2])
  for a, b in zip(_take(make(), 4, 8, where, key="image"), ids[8:]):
    np.testing.assert_array_equal(a[:, 0, 0, 0], b)


def test_a_damaged_example_whose_name_is_not_utf8_is_replaced(
    tmp_path, capsys):
  """Printing its name must not end the run."""
  data = _folder(tmp_path)
  for i in (0, 16, 32):
    folder = os.fsencode(tmp_path / "data" / "class0")
    os.remove(folder + b"/%02d.png" % i)
    with open(folder + b"/\xff%02d.png" % i, "wb") as file:
      file.write(b"damaged")
  with _training(data, pp=PP, skip_errors=True).start(
      0, _sharding()) as batches:
    list(itertools.islice(batches, 4))
    assert batches.num_skipped > 0
  assert "class0/\\xff" in capsys.readouterr().out


def test_too_many_damaged_examples_in_a_row_stop(tmp_path):
  data = _folder(tmp_path, damaged=range(40))
  with pytest.raises(input_pipeline.DataError, match=".png"):
    _take(_training(data, pp=PP, skip_errors=True), 1, key="image")


def test_damaged_examples_are_masked_in_evaluation(tmp_path):
  # The splits are folders, so that no damaged example is held out.
  (tmp_path / "other").mkdir()
  _folder(tmp_path / "other")
  data = _folder(tmp_path, damaged={3, 8})
  root = tmp_path / "root"
  root.mkdir()
  (tmp_path / "data").rename(root / "train")
  (tmp_path / "other" / "data").rename(root / "val")
  data["path"] = str(root)
  pipeline = input_pipeline.make_evaluation(
      data, PP, 8, sharding=_sharding(), skip_errors=True)
  seen = [(int(image[0, 0, 0]), int(mask)) for batch in pipeline
          for image, mask in zip(np.asarray(batch["image"]),
                                 np.asarray(batch["_mask"]))]
  whole = [i for i, mask in seen if mask]
  assert pipeline.num_skipped == 2
  assert len(whole) == len(set(whole)) == pipeline.num_examples - 2
  assert not {3, 8} & set(whole)


# -- streams -----------------------------------------------------------------


@pytest.fixture(scope="module")
def tfrecords(tmp_path_factory):
  directory = str(tmp_path_factory.mktemp("tfds"))

  class Counted(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict(
              {"x": tfds.features.Tensor(shape=(2,), dtype=np.int64)}))

    def _split_generators(self, unused_dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i in range(30):
        yield i, {"x": np.asarray([i, i])}

  Counted.name = "counted"
  Counted(data_dir=directory, file_format="tfrecord").download_and_prepare()
  return dict(name="counted", split="train", data_dir=directory)


def test_streams_give_the_same_batches_wherever_they_start(tfrecords):
  make = lambda: _training(tfrecords, shuffle_buffer_size=10)
  everything = _take(make(), 15)
  ids = _ids(everything)
  for i in range(4):
    assert sorted(ids[30 * i:30 * (i + 1)]) == list(range(30))
  assert ids[:30] != ids[30:60]
  where = _sharding(devices=jax.devices()[:2])
  for a, b in zip(_take(make(), 3, 6, where), everything[6:]):
    np.testing.assert_array_equal(a, b)
  cached = _training(tfrecords, cache_raw=True)
  assert sorted(_ids(_take(cached, 15))[:30]) == list(range(30))


def test_streams_are_evaluated_completely(tfrecords):
  pipeline = input_pipeline.make_evaluation(
      tfrecords, "keep('x')", 16, sharding=_sharding())
  rows = [(int(x[0]), int(m)) for batch in pipeline for x, m in zip(
      np.asarray(batch["x"]), np.asarray(batch["_mask"]))]
  assert sorted(x for x, m in rows if m) == list(range(30)) and len(rows) == 32


def test_streams_cannot_replace_damaged_examples(tfrecords):
  with pytest.raises(config_lib.ConfigError, match="prepare_dataset counted"):
    _training(tfrecords, skip_errors=True)


# -- evaluation --------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 8, 21])
def test_evaluation_pads_and_masks(tmp_path, n):
  pipeline = input_pipeline.make_evaluation(
      _npz(tmp_path, n), "keep('x')", 8, sharding=_sharding())
  assert len(pipeline) == -(-n // 8) and pipeline.num_examples == n
  assert pipeline.batch_spec["_mask"].shape == (8,)
  for _ in range(2):  # It can be iterated repeatedly.
    batches = list(pipeline)
    assert len(batches) == len(pipeline)
    values = np.concatenate([np.asarray(b["x"]) for b in batches])[:, 0]
    mask = np.concatenate([np.asarray(b["_mask"]) for b in batches])
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < n)
    np.testing.assert_array_equal(values[mask > 0], np.arange(n))


def test_a_class_above_the_last_one_is_named_in_evaluation(tmp_path):
  fname = str(tmp_path / "data.npz")
  np.savez(fname, label=np.asarray([0, 1, 2, 9, 1]))
  pipeline = input_pipeline.make_evaluation(
      dict(name="bv:npz", fname=fname), "onehot(3, key='label')", 8,
      sharding=_sharding())
  with pytest.raises(input_pipeline.DataError, match=(
      r"data.npz record 3 cannot be used: (?s:.*)'label' is not in \[-1, 3\)"
      r"(?s:.*)\b9\n")):
    list(pipeline)


# -- data that is probably not what was meant --------------------------------


def test_one_class_and_batches_larger_than_the_data_are_noted(tmp_path):
  data = _npz(tmp_path, 24)
  assert not _training(data, batch_size=24).notes()
  note, = _training(data, batch_size=32).notes()
  assert note == ("A batch of 32 is larger than the data, 24 examples, so each "
                  "batch repeats examples.")
  note, = _training(dict(data, num_classes=1)).notes()
  assert note.startswith("config.input.data has one class only")


def test_names_of_classes_are_known_unless_sources_differ(tmp_path):
  digits = dict(data=dict(name="bv:digits", split="train"), pp="keep('label')")
  def names(**parts):
    return _training({name: 1 for name in parts}, **parts).class_names
  assert names(a=digits) == list("0123456789")
  assert names(a=digits, b=digits) == list("0123456789")
  fname = str(tmp_path / "data.npz")
  np.savez(fname, label=np.arange(9))
  assert names(a=digits, b=dict(
      data=dict(name="bv:npz", fname=fname), pp="keep('label')")) is None


def test_random_ops_are_refused_in_evaluation(tmp_path):
  with pytest.raises(config_lib.ConfigError, match="flip_lr.*the op is random"):
    input_pipeline.make_evaluation(
        _npz(tmp_path, 4), "reshape((1, 2, 1), key='x')|flip_lr(key='x')", 8,
        sharding=_sharding())


# -- the background thread ---------------------------------------------------


def test_closing_ends_the_thread_and_waits_are_measured(tmp_path):
  batches = _training(_npz(tmp_path, 30)).start(0, _sharding(), prefetch=1)
  next(batches)
  assert batches.wait_s > 0 and batches.first_batch == 0
  time.sleep(0.2)  # The thread now waits, because its queue is full.
  batches.close()
  batches.close()
  assert not batches._thread.is_alive()
  with pytest.raises(StopIteration):
    next(batches)


def test_tensorflow_stays_off_the_accelerators():
  assert not tf.config.get_visible_devices("GPU")
