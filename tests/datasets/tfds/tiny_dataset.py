"""A small dataset written by TFDS, and what its examples must be."""

import os

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

SIZES = {"train": 23, "test": 7}  # Train has shards of 5, 5, 5, 5, 3.


def make_example(split, i):
  rng = np.random.default_rng([i, len(split)])
  return {"image": rng.integers(0, 256, (4, 6 + i % 3, 3), dtype=np.uint8),
          "label": i % 3, "number": np.float32(i / 7),
          "zeros": f"{split}{i}\0\0"}


def write_dataset(data_dir, file_format, name="tiny", version="1.2.0"):
  """Lets TFDS write a dataset in its own layout."""
  features = tfds.features.FeaturesDict({
      "image": tfds.features.Image(shape=(4, None, 3)),
      "label": tfds.features.ClassLabel(names=["x", "y", "z"]),
      "number": np.float32, "zeros": tfds.features.Text()})
  directory = os.path.join(data_dir, *name.split("/"), version)
  os.makedirs(directory)
  name, _, config = name.partition("/")
  identity = tfds.core.dataset_info.DatasetIdentity(
      name=name, version=tfds.core.Version(version), data_dir=directory,
      module_name="", config_name=config)
  writer = tfds.core.SequentialWriter(
      tfds.core.DatasetInfo(builder=identity, features=features),
      max_examples_per_shard=5, file_format=file_format)
  writer.initialize_splits(list(SIZES))
  for split, size in SIZES.items():
    writer.add_examples({split: [make_example(split, i) for i in range(size)]})
  writer.close_all()


def check_example(example, split, i, decoded=False):
  want = make_example(split, i)
  image = example["image"] if decoded else tf.io.decode_png(example["image"])
  np.testing.assert_array_equal(image, want["image"])
  assert example["label"] == want["label"]
  assert example["label"].dtype == np.int64
  assert example["number"] == want["number"]
  assert example["zeros"].decode() == want["zeros"]


def read(source, indices):
  return list(tf.data.Dataset.from_tensor_slices(
      np.array(indices, np.int64)).map(source.read).as_numpy_iterator())


def numbers(source, seed, count, buffer_size=4, first=0):
  """Returns the numbers of the examples that a stream yields."""
  records = source.stream(seed, buffer_size, first).map(
      lambda record: source.parse(record)["number"])
  return [round(7 * float(x)) for x in records.take(count).as_numpy_iterator()]
