"""Prepares datasets, so that runs read them by index and without a network.

  python -m big_vision.tools.prepare_dataset cifar10 oxford_flowers102
  python -m big_vision.tools.prepare_dataset fashion_mnist --data_dir DIR
  python -m big_vision.tools.prepare_dataset mnist --idx_dir DIR_WITH_IDX_FILES

A missing dataset is downloaded and stored as ArrayRecord. A dataset that was
prepared as TFRecord gets ArrayRecord files beside its TFRecord files, which you
may then delete. mnist, fashion_mnist and kmnist can be made without a network
from the IDX files that their authors publish; fashion_mnist finds the files of
the Debian package dataset-fashion-mnist by itself. Existing files are not
changed, and an interrupted run leaves nothing under the final name.
"""

import argparse
from collections.abc import Iterator, Sequence
import gzip
import math
import os
import shutil
import struct
import sys
import tempfile
import zlib

import numpy as np

from big_vision import config as config_lib
from big_vision.datasets import core
from big_vision.datasets import data_files
from big_vision.datasets.tfds import prepared as prepared_lib
from big_vision.run import command_line
from big_vision.run import console

_IDX_DATASETS = ("fashion_mnist", "kmnist", "mnist")
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_DEBIAN_IDX_DIRS = {"fashion_mnist": "/usr/share/datasets/fashion-mnist"}
_FORMATS = ("array_record", "tfrecord")
# Twice the largest file that is known, the images of EMNIST.
_MAX_IDX_BYTES = 2 ** 30


def main(args: Sequence[str] | None = None) -> int:
  """Prepares the datasets of the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
      prog="python -m big_vision.tools.prepare_dataset", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
      "names", nargs="+", metavar="NAME",
      help="dataset of TensorFlow Datasets: name or name/config")
  parser.add_argument(
      "--data_dir", type=os.path.expanduser,
      help="directory of datasets; by default "
      "$TFDS_DATA_DIR, else ~/tensorflow_datasets")
  parser.add_argument(
      "--file_format", choices=_FORMATS, default="array_record",
      help="array_record (the default) can be read by index; tfrecord cannot")
  parser.add_argument(
      "--idx_dir", type=os.path.expanduser,
      help="folder with the IDX files (plain or .gz) of "
      f"{', '.join(_IDX_DATASETS)}")
  args = parser.parse_args(args)
  os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # No GPU is needed.
  with console.dropping_native_logs():
    import tensorflow  # noqa: F401  pylint: disable=unused-import
  if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")  # Bars are for people only.
  if args.idx_dir and len(args.names) > 1:
    parser.error("--idx_dir holds one dataset; prepare them one at a time.")
  for name in args.names:
    try:
      print(prepare(name, args.data_dir, args.file_format, args.idx_dir))
    except (config_lib.ConfigError, core.DataError, OSError) as error:
      print(f"{name}: {error}", file=sys.stderr)
      return command_line.exit_code_of(error)
  return 0


def prepare(
    name: str, data_dir: str | None = None, file_format: str = "array_record",
    idx_dir: str | None = None) -> str:
  """Makes dataset `name` readable in `file_format`.

  Args:
    name: Name of the dataset: "name", "name/config" or "name:1.0.0".
    data_dir: Directory of datasets, see `tfds.prepared.find_data_dir`.
    file_format: Format to store, "array_record" or "tfrecord".
    idx_dir: Folder with IDX files to make the dataset from, instead of
      downloading it.

  Returns:
    A line that tells the user what was done.

  Raises:
    ConfigError: There is no such dataset, or it cannot be made from IDX files.
    DataError: Files are missing or damaged; the error names them.
    OSError: The download failed, or files cannot be written.
  """
  data_dir = prepared_lib.find_data_dir(data_dir)
  os.makedirs(data_dir, exist_ok=True)
  try:
    prepared = prepared_lib.find_prepared(name, data_dir)
  except prepared_lib.NotPreparedError:
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
  """Downloads and stores a dataset with TFDS."""
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
    # The error says which files TFDS cannot download, and where to put them.
    raise core.DataError(str(error)) from error
  sizes = {split: info.num_examples for split, info
           in builder.info.splits.items()}
  return f"{builder.info.full_name}: prepared {sizes} in {builder.data_dir}"


def _convert(prepared: prepared_lib.Prepared, file_format: str) -> str:
  """Adds the files of another format to a prepared dataset."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import dataset_info
  directory = prepared.directory
  builder = tfds.builder_from_directory(directory)
  formats = prepared_lib.stored_formats(builder.info)
  if file_format in formats:
    return f"{prepared}: already prepared as {file_format} in {directory}"
  readable = [f for f in formats if f in _FORMATS]
  if not readable:
    raise core.DataError(
        f"{directory} is stored as {formats}; it can be converted from "
        f"{_FORMATS} only.")
  # The temporary directory is on the same disk, so files can be renamed.
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
    # The info is replaced last: from here on readers use the new files.
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
  """Yields a file's records; raises DataError unless there are `count`."""
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
  # Groups of one record, so that reading a record reads no others.
  writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()


def _build_from_idx(
    name: str, data_dir: str, file_format: str, idx_dir: str) -> str:
  """Stores IDX files as a TFDS dataset."""
  import tensorflow_datasets as tfds
  if name not in _IDX_DATASETS:
    raise config_lib.ConfigError(
        f"IDX files are known for {', '.join(_IDX_DATASETS)}, not for {name!r}"
        f"{config_lib.nearest(name, _IDX_DATASETS)}; leave out --idx_dir to "
        "download it.")
  data = {split: _read_idx_split(idx_dir, *stems)
          for split, stems in _IDX_FILES.items()}

  parent = tfds.builder_cls(name)

  class IdxBuilder(parent, skip_registration=True):
    """TFDS's own builder (features, version, citation) with other files."""

    __module__ = parent.__module__  # TFDS stores it with the data.

    def _split_generators(self, unused_dl_manager):
      return {split: self._generate_examples(*arrays)
              for split, arrays in data.items()}

    def _generate_examples(self, images, labels):
      # These are the keys that TFDS uses; they set the order of examples.
      for i, (image, label) in enumerate(zip(images, labels)):
        yield i, {"image": image, "label": int(label)}

  IdxBuilder.name = name
  return f"{_run(IdxBuilder(data_dir=data_dir), file_format)} from {idx_dir}"


def _read_idx_split(
    idx_dir: str, images_stem: str, labels_stem: str
) -> tuple[np.ndarray, np.ndarray]:
  """Reads images, uint8[n, 28, 28, 1], and labels, uint8[n]."""
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
  """Finds the file `stem`, plain or .gz."""
  for fname in (f"{stem}.gz", stem):
    if os.path.exists(path := os.path.join(idx_dir, fname)):
      return path
  found = sorted(os.listdir(idx_dir)) if os.path.isdir(idx_dir) else (
      "no such folder")
  raise core.DataError(
      f"There is no {os.path.join(idx_dir, stem)}[.gz]; {idx_dir}: {found}.")


def read_idx(path: str, num_dims: int) -> np.ndarray:
  """Reads an array from an IDX file.

  Args:
    path: Path of the file; decompressed if it ends in ".gz".
    num_dims: Number of dimensions that the array must have.

  Returns:
    uint8[...] with `num_dims` dimensions.

  Raises:
    DataError: The file is damaged, not an IDX file, or larger than 1 GiB.

  Source: http://yann.lecun.com/exdb/mnist, "the IDX file format".
  """
  try:
    with data_files.open_file(path, _MAX_IDX_BYTES) as file:
      if path.endswith(".gz"):
        file = gzip.GzipFile(fileobj=file)
      shape = _read_idx_header(file, path, num_dims)
      size = math.prod(shape)
      if size > _MAX_IDX_BYTES:
        raise core.DataError(
            f"{path} says that it has {' x '.join(map(str, shape))} = {size:,} "
            f"bytes; at most {_MAX_IDX_BYTES:,} are read.")
      # One byte more, to notice if there are too many, but not all of them:
      # they may be a decompression bomb.
      data = file.read(size + 1)
  except (OSError, EOFError, zlib.error) as error:
    raise core.DataError(f"{path} cannot be read: {error}") from error
  if len(data) != size:
    raise core.DataError(
        f"{path} has {len(data)} bytes of data{' or more' * (len(data) > size)}"
        f", but its header says {' x '.join(map(str, shape))} = {size}.")
  return np.frombuffer(data, np.uint8).reshape(shape)


def _read_idx_header(file, path: str, num_dims: int) -> tuple[int, ...]:
  """Reads the header of an open IDX file; returns the array's shape."""
  magic = bytes([0, 0, 8, num_dims])  # Type 8 is uint8.
  header = file.read(4 + 4 * num_dims)
  if header[:4] != magic or len(header) < 4 + 4 * num_dims:
    raise core.DataError(
        f"{path} begins with {header[:4].hex()}; an IDX file of uint8 in "
        f"{num_dims} dimensions begins with {magic.hex()}.")
  return struct.unpack(f">{num_dims}I", header[4:])


if __name__ == "__main__":
  command_line.run_tool(main)
