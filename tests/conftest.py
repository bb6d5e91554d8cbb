"""Runs tests on 8 simulated CPU devices, set before jax is imported."""

import fcntl
import io
import os
import pathlib
import shutil
import tempfile
import zlib

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") +
    " --xla_force_host_platform_device_count=8")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Programs that tests have in common are compiled once for all of pytest's
# workers and the processes that tests start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _CACHE = tempfile.TemporaryDirectory(prefix="big_vision_compiled_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import numpy as np
from PIL import Image
import pytest


def _make_imagenet_like(directory):
  """Writes tiny datasets with the names and the format of the real ones."""
  import tensorflow_datasets as tfds

  generator = np.random.default_rng(0)

  def jpeg(size):
    image = generator.integers(0, 256, (*size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG")
    return stream.getvalue()

  def build(dataset, splits, image_feature, **labels):
    features = {key: feature for key, (feature, _) in labels.items()}

    class ImagenetLike(tfds.core.GeneratorBasedBuilder, skip_registration=True):
      VERSION = tfds.core.Version("1.0.0")

      def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(
                {"image": image_feature, **features}))

      def _split_generators(self, unused_dl_manager):
        return {split: self._generate_examples(count)
                for split, count in splits.items()}

      def _generate_examples(self, count):
        shape = image_feature.shape
        for i in range(count):
          image = (io.BytesIO(jpeg((40 + i % 3, 60 - i % 5)))
                   if None in shape else
                   generator.integers(0, 256, shape, np.uint8))
          yield i, {"image": image, **{
              key: make(i) for key, (_, make) in labels.items()}}

    ImagenetLike.name = dataset
    ImagenetLike(
        data_dir=directory, file_format="array_record").download_and_prepare()

  encoded = tfds.features.Image(encoding_format="jpeg")
  one = lambda k: (tfds.features.ClassLabel(num_classes=k), lambda i: i % k)
  several = lambda k: (tfds.features.Sequence(
      tfds.features.ClassLabel(num_classes=k)), lambda i: [i % k, 7 * i % k])
  build("imagenet2012", {"train": 100, "validation": 10}, encoded,
        label=one(1000))
  build("imagenet_v2", {"test": 10}, encoded, label=one(1000))
  build("imagenet2012_real", {"validation": 10}, encoded,
        original_label=one(1000), real_label=several(1000))
  build("imagenet21k", {"full": 20}, encoded, labels=several(21843))
  build("fashion_mnist", {"train": 100, "test": 10}, tfds.features.Image(
      shape=(28, 28, 1), encoding_format="png"), label=one(10))
  for k in (10, 100):
    build(f"cifar{k}", {"train": 100, "test": 10}, tfds.features.Image(
        shape=(32, 32, 3), encoding_format="png"), label=one(k))
  build("oxford_iiit_pet", {"train": 74, "test": 37}, encoded, label=one(37))


@pytest.fixture(scope="session")
def imagenet_like(tmp_path_factory):
  """Returns a TFDS directory with generated ImageNet-shaped records.

  It is made once for all of pytest's workers. Without workers, the folder
  outlives the session, so its name must change with the code that fills it.
  """
  version = zlib.crc32(pathlib.Path(__file__).read_bytes())
  root = tmp_path_factory.getbasetemp().parent / f"imagenet_like_{version:08x}"
  root.mkdir(exist_ok=True)
  with open(root / "lock", "w", encoding="utf-8") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (root / "done").exists():
      _make_imagenet_like(str(root / "data"))
      (root / "done").touch()
  return str(root / "data")


@pytest.fixture
def bucket(monkeypatch):
  """Returns the address of a store in memory that cannot rename or append."""
  from etils.epath import gpath
  from fsspec.implementations import memory

  class Bucket(memory.MemoryFileSystem):
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
      return super()._strip_protocol(path.removeprefix("s3://"))

    def mv(self, *unused, **unused_kw):
      raise AssertionError("Renaming copies a file, and is not atomic.")
  store = Bucket(skip_instance_cache=True)
  monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
  monkeypatch.setattr(type(gpath._PREFIX_TO_BACKEND["s3"]), "_get_filesystem",
                      lambda self, name: store)
  return "s3://bucket"


@pytest.fixture
def disk_calls(monkeypatch):
  """Records (call, path) of all renames, syncs and removals, in their order."""
  calls = []
  fsync, replace, rmtree = os.fsync, os.replace, shutil.rmtree

  def recorded_fsync(descriptor):
    fsync(descriptor)
    calls.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))

  def recorded_replace(source, target):
    replace(source, target)
    calls.append(("rename", os.fspath(target)))
  def recorded_rmtree(path, *args, **kw):
    calls.append(("remove", os.fspath(path)))
    rmtree(path, *args, **kw)
  monkeypatch.setattr(shutil, "rmtree", recorded_rmtree)
  monkeypatch.setattr(os, "fsync", recorded_fsync)
  monkeypatch.setattr(os, "replace", recorded_replace)
  return calls
