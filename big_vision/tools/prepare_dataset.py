"""Prepares datasets, so that runs read them by index and without network.

  python -m big_vision.tools.prepare_dataset cifar10 oxford_flowers102
  python -m big_vision.tools.prepare_dataset fashion_mnist --data_dir DIR
  python -m big_vision.tools.prepare_dataset mnist --idx_dir DIR_WITH_IDX_FILES

A dataset that is not there is downloaded and stored as ArrayRecord. One that
was prepared as TFRecord gets ArrayRecord files beside those (delete them if you
like). mnist, fashion_mnist and kmnist can be made from the IDX files that their
authors publish, without network; fashion_mnist finds those of the Debian
package dataset-fashion-mnist by itself. Nothing half-done is left under the
final name, and what is there already is left as it is.
"""

import argparse
from collections.abc import Iterator, Sequence
import gzip
import os
import shutil
import struct
import sys
import tempfile
import zlib

import numpy as np

from big_vision import config as config_lib
from big_vision.datasets import core
from big_vision.datasets import tfds_source

_IDX_DATASETS = ("fashion_mnist", "kmnist", "mnist")
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_DEBIAN_IDX_DIRS = {"fashion_mnist": "/usr/share/datasets/fashion-mnist"}
_FORMATS = ("array_record", "tfrecord")


def main(args: Sequence[str] | None = None) -> int:
  """Prepares the datasets of the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
      prog="python -m big_vision.tools.prepare_dataset", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
      "names", nargs="+", metavar="NAME",
      help="name of a dataset of TensorFlow Datasets: name or name/config")
  parser.add_argument(
      "--data_dir", help="where datasets are stored; by default "
      "$TFDS_DATA_DIR, else ~/tensorflow_datasets")
  parser.add_argument(
      "--file_format", choices=_FORMATS, default="array_record",
      help="array_record (the default) can be read by index; tfrecord cannot")
  parser.add_argument(
      "--idx_dir", help="folder with the IDX files (plain or .gz) of "
      f"{', '.join(_IDX_DATASETS)}")
  args = parser.parse_args(args)
  if args.idx_dir and len(args.names) > 1:
    parser.error("--idx_dir holds one dataset; prepare them one at a time.")
  for name in args.names:
    try:
      print(prepare(name, args.data_dir, args.file_format, args.idx_dir))
    except (config_lib.ConfigError, core.DataError, OSError) as error:
      print(f"{name}: {error}", file=sys.stderr)
      return 1
  return 0


def prepare(
    name: str, data_dir: str | None = None, file_format: str = "array_record",
    idx_dir: str | None = None) -> str:
  """Makes dataset `name` readable in `file_format`.

  Args:
    name: "name", "name/config" or "name:1.0.0".
    data_dir: see `tfds_source.find_data_dir`.
    file_format: "array_record" or "tfrecord".
    idx_dir: folder of the IDX files to make it from, instead of downloading.

  Returns:
    What was done, for the user.

  Raises:
    ConfigError: there is no such dataset, or IDX files cannot make it.
    DataError: files are missing or damaged; names them.
    OSError: the download failed, or files cannot be written.
  """
  data_dir = tfds_source.find_data_dir(data_dir)
  os.makedirs(data_dir, exist_ok=True)
  try:
    prepared = tfds_source.find_prepared(name, data_dir)
  except tfds_source.NotPreparedError:
    pass
  else:
    return _convert(prepared, file_format)
  base_name = name.partition(":")[0]
  if not idx_dir and os.path.isdir(_DEBIAN_IDX_DIRS.get(base_name, "")):
    idx_dir = _DEBIAN_IDX_DIRS[base_name]
  if idx_dir:
    return _build_from_idx(base_name, data_dir, file_format, idx_dir)
  return _download(name, data_dir, file_format)


def _download(name: str, data_dir: str, file_format: str) -> str:
  """Lets TFDS download and store a dataset."""
  import tensorflow_datasets as tfds
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    names = tfds.list_builders(with_community_datasets=False)
    near = config_lib.nearest(name, names)
    raise config_lib.ConfigError(
        f"TensorFlow Datasets has no dataset of this name{near}; "
        "https://www.tensorflow.org/datasets/catalog lists them.") from error
  return _run(builder, file_format)


def _run(builder, file_format: str) -> str:
  """Generates a dataset; TFDS writes a temporary directory and renames it."""
  import tensorflow_datasets as tfds
  try:
    builder.download_and_prepare(
        file_format=file_format,
        download_config=tfds.download.DownloadConfig(
            try_download_gcs=False,
            compute_stats=tfds.download.ComputeStatsMode.SKIP))
  except AssertionError as error:
    # How TFDS says which files it cannot download, and where to put them.
    raise core.DataError(str(error)) from error
  sizes = {split: info.num_examples for split, info
           in builder.info.splits.items()}
  return f"{builder.info.full_name}: prepared {sizes} in {builder.data_dir}"


def _convert(prepared: tfds_source.Prepared, file_format: str) -> str:
  """Adds the files of another format to a prepared dataset."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import dataset_info
  directory = prepared.directory
  builder = tfds.builder_from_directory(directory)
  formats = tfds_source.stored_formats(builder.info)
  if file_format in formats:
    return f"{prepared}: already prepared as {file_format} in {directory}"
  readable = [f for f in formats if f in _FORMATS]
  if not readable:
    raise core.DataError(
        f"{directory} is stored as {formats}; it can be converted from "
        f"{_FORMATS} only.")
  # Inside the dataset's directory, so that the files can be renamed.
  temporary = tempfile.mkdtemp(prefix="incomplete.", dir=directory)
  try:
    for split in builder.info.splits.values():
      template = split.filename_template
      for i, count in enumerate(split.shard_lengths):
        source, target = (
            str(template.replace(filetype_suffix=f).sharded_filepath(
                shard_index=i, num_shards=split.num_shards))
            for f in (readable[0], file_format))
        _write(os.path.join(temporary, os.path.basename(target)), file_format,
               _read(source, readable[0], count))
    for fname in sorted(os.listdir(temporary)):
      os.replace(os.path.join(temporary, fname),
                 os.path.join(directory, fname))
    # Last, because from here on readers use the new files.
    info = dataset_info.read_proto_from_builder_dir(directory)
    info.alternative_file_formats.append(file_format)
    dataset_info.write_dataset_info_proto(info, temporary)
    os.replace(os.path.join(temporary, "dataset_info.json"),
               os.path.join(directory, "dataset_info.json"))
  finally:
    shutil.rmtree(temporary)
  return (f"{prepared}: converted from {readable[0]} to {file_format} in "
          f"{directory}")


def _read(path: str, file_format: str, count: int) -> Iterator[bytes]:
  """The records of a file; DataError unless they are `count`."""
  import tensorflow as tf
  number = 0
  try:
    if file_format == "tfrecord":
      records = tf.data.TFRecordDataset(path).as_numpy_iterator()
    else:
      from array_record.python import array_record_data_source
      records = array_record_data_source.ArrayRecordDataSource(path)
    for record in records:
      yield record
      number += 1
  except (tf.errors.OpError, ValueError, RuntimeError) as error:
    raise core.DataError(
        f"{path} record {number} cannot be read: {error}") from error
  if number != count:
    raise core.DataError(
        f"{path} has {number} records; the dataset's info counts {count}.")


def _write(path: str, file_format: str, records: Iterator[bytes]) -> None:
  """Writes records to a new file."""
  import tensorflow as tf
  if file_format == "tfrecord":
    with tf.io.TFRecordWriter(path) as writer:
      for record in records:
        writer.write(record)
    return
  from array_record.python import array_record_module
  # Groups of one record: reading a record then reads no other.
  writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()


def _build_from_idx(
    name: str, data_dir: str, file_format: str, idx_dir: str) -> str:
  """Stores IDX files as the dataset of TFDS that they are the source of."""
  import tensorflow_datasets as tfds
  if name not in _IDX_DATASETS:
    raise config_lib.ConfigError(
        f"IDX files make only {', '.join(_IDX_DATASETS)}, not {name!r}"
        f"{config_lib.nearest(name, _IDX_DATASETS)}; leave out --idx_dir to "
        "download it.")
  data = {split: _read_idx_split(idx_dir, *stems)
          for split, stems in _IDX_FILES.items()}

  parent = tfds.builder_cls(name)

  class IdxBuilder(parent, skip_registration=True):
    """TFDS's own builder (features, version, citation), but for the files."""

    __module__ = parent.__module__  # Is stored with the dataset.

    def _split_generators(self, unused_dl_manager):
      return {split: self._generate_examples(*arrays)
              for split, arrays in data.items()}

    def _generate_examples(self, images, labels):
      # The keys that TFDS uses: they decide in which order it stores examples.
      for i, (image, label) in enumerate(zip(images, labels)):
        yield i, {"image": image, "label": int(label)}

  IdxBuilder.name = name
  return f"{_run(IdxBuilder(data_dir=data_dir), file_format)} from {idx_dir}"


def _read_idx_split(
    idx_dir: str, images_stem: str, labels_stem: str
) -> tuple[np.ndarray, np.ndarray]:
  """uint8[n, 28, 28, 1] images, uint8[n] labels; DataError names the file."""
  images_path = _find_idx(idx_dir, images_stem)
  labels_path = _find_idx(idx_dir, labels_stem)
  images = read_idx(images_path, num_dims=3)
  labels = read_idx(labels_path, num_dims=1)
  if images.shape[1:] != (28, 28):
    raise core.DataError(
        f"{images_path} has images of {images.shape[1:]} pixels; they must be "
        "(28, 28).")
  if len(images) != len(labels):
    raise core.DataError(
        f"{images_path} has {len(images)} images, but {labels_path} has "
        f"{len(labels)} labels.")
  if labels.size and labels.max() > 9:
    raise core.DataError(
        f"{labels_path} record {labels.argmax()} is label {labels.max()}; "
        "labels are in 0..9.")
  return images[..., None], labels


def _find_idx(idx_dir: str, stem: str) -> str:
  """The file `stem`, plain or .gz."""
  for fname in (f"{stem}.gz", stem):
    if os.path.exists(path := os.path.join(idx_dir, fname)):
      return path
  found = sorted(os.listdir(idx_dir)) if os.path.isdir(idx_dir) else (
      "no such folder")
  raise core.DataError(
      f"{os.path.join(idx_dir, stem)}[.gz] is not there; {idx_dir}: {found}.")


def read_idx(path: str, num_dims: int) -> np.ndarray:
  """An array of an IDX file.

  Args:
    path: the file; is decompressed if it ends in ".gz".
    num_dims: how many dimensions it must have.

  Returns:
    uint8[...], `num_dims` dimensions.

  Raises:
    DataError: the file is damaged or something else; names it.

  Source: http://yann.lecun.com/exdb/mnist, "the IDX file format".
  """
  try:
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
      data = file.read()
  except (OSError, EOFError, zlib.error) as error:
    raise core.DataError(f"{path} cannot be read: {error}") from error
  header_size = 4 + 4 * num_dims
  magic = bytes([0, 0, 8, num_dims])  # Type 8 is uint8.
  if data[:4] != magic or len(data) < header_size:
    raise core.DataError(
        f"{path} begins with {data[:4].hex()}; an IDX file of uint8 in "
        f"{num_dims} dimensions begins with {magic.hex()}.")
  shape = struct.unpack(f">{num_dims}I", data[4:header_size])
  size = int(np.prod(shape, dtype=np.int64))
  if len(data) - header_size != size:
    raise core.DataError(
        f"{path} has {len(data) - header_size} bytes of data, but its header "
        f"says {' x '.join(map(str, shape))} = {size}.")
  return np.frombuffer(data, np.uint8, offset=header_size).reshape(shape)


if __name__ == "__main__":
  sys.exit(main())
