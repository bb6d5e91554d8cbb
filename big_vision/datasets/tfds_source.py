"""Datasets that TensorFlow Datasets (TFDS) prepared, read without network.

Stored as ArrayRecord they are read by index; stored as TFRecord they stream.
`python -m big_vision.tools.prepare_dataset NAME` prepares them as ArrayRecord.
"""

from collections.abc import Sequence
import contextlib
import contextvars
import fnmatch
import json
import os
import re
import resource
import shlex
import threading
from typing import NamedTuple

import numpy as np

from big_vision import config as config_lib
from big_vision.datasets import core

# Shards of which records alternate where a stream is shuffled; it makes up for
# a shuffle buffer that is smaller than the dataset.
_NUM_INTERLEAVED = 16
# What stands in for a record that cannot be read, before the reason. No
# serialized proto starts with zero.
_UNREADABLE = b"\0unreadable: "
# What a plan knows of datasets that are not prepared where it is made. The
# numbers are those of the datasets' authors and of TFDS' catalogue.
_NUM_EXAMPLES = {
    "imagenet2012": {"train": 1_281_167, "validation": 50_000},
    "imagenet2012_real": {"validation": 50_000},
    "imagenet_v2": {"test": 10_000},
    "imagenet21k": {"full": 14_197_122},
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "oxford_iiit_pet": {"train": 3_680, "test": 3_669},
    "oxford_flowers102": {"train": 1_020, "validation": 1_020, "test": 6_149},
}
# Names that were opened so; None where that is not wanted.
_DECLARED = contextvars.ContextVar("declared", default=None)


class NotPreparedError(config_lib.ConfigError):
  """No dataset of that name is stored."""


class Prepared(NamedTuple):
  """One dataset on disk; `str` of it is the name that selects it."""

  name: str
  config: str
  version: str
  directory: str

  def __str__(self):
    config = f"/{self.config}" if self.config else ""
    return f"{self.name}{config}:{self.version}"


def find_data_dir(data_dir: str | None = None) -> str:
  """`data_dir`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
  return os.path.expanduser(
      data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def list_prepared(data_dir: str) -> list[Prepared]:
  """Everything that is prepared in `data_dir`, by name, newest version last."""
  import tensorflow as tf
  found = []
  for depth in ("*/*", "*/*/*"):
    for path in tf.io.gfile.glob(
        os.path.join(data_dir, depth, "dataset_info.json")):
      directory = os.path.dirname(path)
      name, *config, version = directory.split("/")[-depth.count("*"):]
      # What TFDS has not finished is in "incomplete.XXX_1.0.0".
      if re.fullmatch(r"\d+\.\d+\.\d+", version):
        found.append(Prepared(name, "".join(config), version, directory))
  def order(prepared):
    return *prepared[:2], [int(i) for i in prepared.version.split(".")]
  return sorted(found, key=order)


def find_prepared(dataset: str, data_dir: str) -> Prepared:
  """The newest prepared dataset that the name selects.

  Args:
    dataset: "name", "name/config", "name:1.0.0", "name/config:1.*.*". Without a
      config it is the dataset's default one, or the only one there is.
    data_dir: where to look.

  Raises:
    NotPreparedError: it is not there; says what is, and how to prepare it.
    ConfigError: `dataset` is not a name, or there are several configs.
  """
  name, config, version = _parse_name(dataset)
  everything = list_prepared(data_dir)
  found = [
      p for p in everything
      if p.name == name and (not config or p.config == config)
      and fnmatch.fnmatch(p.version, version or "*")]
  if not found:
    command = shlex.join([
        "python", "-m", "big_vision.tools.prepare_dataset", dataset,
        "--data_dir", data_dir])
    near = config_lib.nearest(name, {p.name for p in everything})
    raise NotPreparedError(
        f"The dataset {dataset!r} is not prepared in {data_dir}"
        f"{near}. There are: {[str(p) for p in everything]}. Other places are "
        "given by data_dir or the environment variable TFDS_DATA_DIR. To "
        f"prepare it, run:\n  {command}")
  configs = sorted({p.config for p in found})
  if len(configs) > 1:
    default = _default_config(os.path.join(data_dir, name))
    if default not in configs:
      raise config_lib.ConfigError(
          f"The dataset {dataset!r} has several configs in {data_dir}; choose "
          f"one of {[f'{name}/{config}' for config in configs]}.")
    found = [p for p in found if p.config == default]
  return found[-1]


def _parse_name(dataset: str) -> tuple[str, str | None, str | None]:
  """Name, config and version of "name/config:version"."""
  match = re.fullmatch(
      r"(?P<name>\w+)(/(?P<config>[\w\-.+]+))?(:(?P<version>[\d.*]+))?",
      dataset)
  if not match:
    raise config_lib.ConfigError(
        f"{dataset!r} is not a name of a dataset; write 'name', 'name/config', "
        "'name:1.0.0' or 'name/config:1.0.0'.")
  return match["name"], match["config"], match["version"]


def _default_config(directory: str) -> str | None:
  """The config that TFDS noted as the default one of a dataset."""
  import tensorflow as tf
  path = os.path.join(directory, ".config", "metadata.json")
  if not tf.io.gfile.exists(path):
    return None
  with tf.io.gfile.GFile(path) as file:
    return json.load(file).get("default_config_name")


def open_tfds(
    dataset: str, split: str, data_dir: str | None = None,
    skip_decode: Sequence[str] | None = None
) -> core.Source | core.StreamSource:
  """Opens a prepared TFDS dataset.

  Args:
    dataset: name as in `find_prepared`.
    split: in the syntax of TFDS: "train", "train[:98%]", "train+test[:100]".
    data_dir: see `find_data_dir`.
    skip_decode: features that stay as they are stored, encoded images above
      all. By default "image", where the dataset has it.

  Returns:
    A `Source` if it is stored as ArrayRecord, else a `StreamSource`.

  Raises:
    ConfigError: no such dataset, split or feature; says what there is.
    DataError: files of the split are missing; names one.
  """
  import tensorflow_datasets as tfds
  try:
    prepared = find_prepared(dataset, find_data_dir(data_dir))
  except NotPreparedError:
    missing = _DECLARED.get()
    source = missing is not None and _declare(dataset, split, skip_decode)
    if not source:
      raise
    missing.add(dataset)
    return source
  builder = tfds.builder_from_directory(prepared.directory)
  formats = stored_formats(builder.info)
  if "array_record" in formats:
    file_format, source_class = "array_record", ArrayRecordSource
  elif "tfrecord" in formats:
    file_format, source_class = "tfrecord", TFRecordSource
  else:
    raise config_lib.ConfigError(
        f"{prepared.directory} is stored as {formats}; only array_record and "
        "tfrecord can be read.")
  # TFDS refuses to open a dataset in its second format, hence by hand.
  splits = tfds.core.SplitDict([
      info.replace(filename_template=info.filename_template.replace(
          filetype_suffix=file_format))
      for info in builder.info.splits.values()])
  parts = _select(splits, split, str(prepared)).file_instructions
  if not parts:
    raise config_lib.ConfigError(f"{prepared}: split {split!r} is empty.")
  _check_files(parts)
  return source_class(parts, builder.info.features, skip_decode, str(prepared))


def _select(splits, split: str, name: str):
  """The part of the `tfds.core.SplitDict` that `split` names."""
  try:
    return splits[split]
  except (KeyError, ValueError, NotImplementedError) as error:
    sizes = {key: info.num_examples for key, info in splits.items()}
    raise config_lib.ConfigError(
        f"{name} has no split {split!r}{config_lib.nearest(split, sizes)}; "
        f"it has {sizes}, and parts of them such as 'train[:98%]' and "
        f"'train[100:]+test'. ({error})") from error


@contextlib.contextmanager
def declared_if_missing():
  """Within it, datasets that are not prepared open as what is known of them.

  Shapes, types and numbers of examples are true, there are no examples: it is
  for planning runs whose data is elsewhere. Yields the set of their names.
  """
  token = _DECLARED.set(set())
  try:
    yield _DECLARED.get()
  finally:
    _DECLARED.reset(token)


def _declare(dataset: str, split: str, skip_decode) -> "DeclaredSource | None":
  """A dataset that is not here, if its features and sizes are known."""
  import tensorflow_datasets as tfds
  name, config, _ = _parse_name(dataset)
  sizes = _NUM_EXAMPLES.get(name)
  if sizes is None or config:
    return None
  if name == "imagenet21k":  # Not in TFDS; users make it in this form.
    features = tfds.features.FeaturesDict({
        "image": tfds.features.Image(),
        "labels": tfds.features.Sequence(
            tfds.features.ClassLabel(num_classes=21_843))})
  else:
    features = tfds.builder_cls(name)().info.features
  splits = tfds.core.SplitDict([
      tfds.core.SplitInfo(
          name=key, shard_lengths=[count], num_bytes=0,
          filename_template=tfds.core.ShardedFileTemplate(
              data_dir=".", dataset_name=name, split=key,
              filetype_suffix="array_record"))
      for key, count in sizes.items()])
  parts = _select(splits, split, name).file_instructions
  return DeclaredSource(parts, features, skip_decode, name)


def stored_formats(info) -> list[str]:
  """Formats in which all of a `tfds.core.DatasetInfo`'s splits are stored."""
  return [info.file_format.value, *(
      f.value if hasattr(f, "value") else f
      for f in info.alternative_file_formats)]


def _check_files(parts) -> None:
  """DataError if a file that `parts` name is not there."""
  import tensorflow as tf
  listings = {}
  for part in parts:
    directory, base = os.path.split(part.filename)
    if directory not in listings:
      listings[directory] = set(tf.io.gfile.listdir(directory))
    if base not in listings[directory]:
      raise core.DataError(
          f"{part.filename} is missing, though the dataset's info counts "
          f"{part.examples_in_shard} records in it. Restore it, or delete "
          f"{directory} and prepare the dataset again.")


class _Records:
  """What reading by index and streaming share: where records are, and parsing.

  Attributes:
    parts: `tfds` FileInstructions: filename, skip, take, examples_in_shard.
    num_classes: of the feature "label" or "labels", if there is one.
    class_names: likewise.
  """

  def __init__(self, parts, features, skip_decode, name):
    import tensorflow_datasets as tfds
    self.parts = parts
    self._features = features
    if skip_decode is None:
      skip_decode = [key for key in ("image",) if key in features]
    if missing := [key for key in skip_decode if key not in features]:
      raise config_lib.ConfigError(
          f"skip_decode names {missing}, which {name} does not have; it has "
          f"{sorted(features)}.")
    self._decoders = {key: tfds.decode.SkipDecoding() for key in skip_decode}
    self.num_classes = self.class_names = None
    for key in ("label", "labels"):
      label = features[key] if key in features else None
      label = getattr(label, "feature", label)  # Of a sequence of labels.
      if isinstance(label, tfds.features.ClassLabel):
        self.num_classes = label.num_classes
        self.class_names = list(label.names)
        break

  def __len__(self):
    return sum(part.take for part in self.parts)

  def parse(self, record):
    """The example in a serialized `tf.train.Example`, string[]."""
    return self._features.deserialize_example(record, decoders=self._decoders)

  def describe_position(self, position: int) -> str:
    """The file and the record in it that `position` in all parts stands for."""
    for part in self.parts:
      if position < part.take:
        return f"{part.filename} record {part.skip + position}"
      position -= part.take
    raise IndexError(f"There are only {len(self)} records.")


class ArrayRecordSource(_Records, core.RecordSource):
  """A TFDS dataset that is stored as ArrayRecord."""

  def __init__(self, parts, features, skip_decode, name):
    super().__init__(parts, features, skip_decode, name)
    _allow_open_files(len(parts))
    self._ends = np.cumsum([part.take for part in parts])
    self._readers = {}
    self._lock = threading.Lock()

  def fetch(self, indices):
    import tensorflow as tf
    records = tf.numpy_function(
        self._fetch, [indices], tf.string, stateful=False)
    return tf.ensure_shape(records, indices.shape)

  def _fetch(self, indices: np.ndarray) -> np.ndarray:
    """object[n] of bytes; one call of the reader for every file."""
    records = np.empty(len(indices), dtype=object)
    which = np.searchsorted(self._ends, indices, side="right")
    for i in np.unique(which):
      places = np.flatnonzero(which == i)
      part = self.parts[i]
      numbers = indices[places] - self._ends[i] + part.take + part.skip
      try:
        records[places] = self._reader(part.filename).read(numbers.tolist())
      except Exception:  # The reader raises whatever it meets. Find out where.
        for place, number in zip(places, numbers):
          records[place] = self._fetch_one(part.filename, int(number))
    return records

  def _fetch_one(self, filename: str, number: int) -> bytes:
    try:
      return self._reader(filename).read([number])[0]
    except Exception as error:
      return _UNREADABLE + (
          f"{filename} record {number} cannot be read: {error}".encode())

  def _reader(self, filename: str):
    """The file's reader, opened when first used; threads may share it."""
    from array_record.python import array_record_module
    reader = self._readers.get(filename)
    if reader is None:
      with self._lock:
        if filename not in self._readers:
          # Reading ahead is useless in random order.
          self._readers[filename] = array_record_module.ArrayRecordReader(
              filename, options="readahead_buffer_size:0",
              file_reader_buffer_size=32768)
        reader = self._readers[filename]
    return reader

  def check_record(self, record):
    import tensorflow as tf
    start = tf.strings.substr(record, 0, len(_UNREADABLE))
    with tf.control_dependencies([
        tf.debugging.Assert(start != _UNREADABLE, [record])]):
      return tf.identity(record)

  def parse(self, record):
    return super().parse(self.check_record(record))

  def describe(self, index):
    return self.describe_position(index)


class DeclaredSource(_Records, core.Source):
  """A TFDS dataset of which only the declaration is known.

  See `declared_if_missing`. Reading can be traced, and fails if it is run.
  """

  def read(self, index):
    import tensorflow as tf
    # Of `index`: parsing a constant would be tried while it is traced.
    return self.parse(tf.strings.as_string(index))

  def describe(self, index):
    return f"{self.describe_position(index)}, which is not here"


def _allow_open_files(count: int) -> None:
  """Raises this process's limit of open files so that it can open `count`.

  Every file stays open, and the limit is often 1,024: the files of ImageNet.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = count + 512  # What the rest of a run may need.
  if soft == resource.RLIM_INFINITY or soft >= wanted:
    return
  if hard == resource.RLIM_INFINITY:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
  elif hard >= wanted:
    # All of it, since other datasets may follow.
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
  else:
    raise core.DataError(
        f"The dataset has {count} files, but this process may open only {hard} "
        f"(ulimit -Hn). Raise that limit to {wanted}, or prepare the dataset "
        "in fewer files.")


class TFRecordSource(_Records, core.StreamSource):
  """A TFDS dataset that is stored as TFRecord."""

  def stream(self, seed, buffer_size, first=0):
    import tensorflow as tf
    filenames = tf.constant([part.filename for part in self.parts])
    skips = tf.constant([part.skip for part in self.parts], tf.int64)
    takes = tf.constant([part.take for part in self.parts], tf.int64)

    def read_part(i):
      records = tf.data.TFRecordDataset(tf.gather(filenames, i))
      take = tf.gather(takes, i)
      records = records.skip(tf.gather(skips, i)).take(take)
      # A file that was cut between two records reads as if it were whole.
      return records.apply(tf.data.experimental.assert_cardinality(take))

    if seed is None:
      records = tf.data.Dataset.range(len(self.parts)).flat_map(read_part)
      return records.skip(first)

    def read_epoch(epoch):
      # The seed of this function's own graph, so that the order does not depend
      # on who else in the process called tf.random.set_seed.
      tf.random.set_seed(1)
      rng = tf.stack([tf.cast(seed, tf.int64), epoch])
      order = tf.random.experimental.stateless_shuffle(
          tf.range(len(self.parts), dtype=tf.int64), rng, alg="philox")
      shuffle_seed = tf.random.stateless_uniform(
          [], rng, None, None, tf.int64, alg="philox")
      records = tf.data.Dataset.from_tensor_slices(order).interleave(
          read_part, cycle_length=_NUM_INTERLEAVED, block_length=1,
          num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
      return records.shuffle(
          buffer_size, seed=shuffle_seed, reshuffle_each_iteration=False)

    first_epoch, first = divmod(first, len(self))
    epochs = tf.data.Dataset.counter(first_epoch)
    return epochs.flat_map(read_epoch).skip(first)

  def describe(self, record):
    for part in self.parts:
      for number, stored in _read_file(part):
        if stored == record:
          return f"{part.filename} record {number}"
    return f"a record of {len(record)} bytes that is in none of the files"

  def check(self):
    for filename in sorted({part.filename for part in self.parts}):
      part = next(p for p in self.parts if p.filename == filename)
      count = sum(1 for _ in _read_file(part))
      if count != part.examples_in_shard:
        raise core.DataError(
            f"{filename} has {count} records; the dataset's info counts "
            f"{part.examples_in_shard}. Restore the file, or delete the "
            "dataset and prepare it again.")


def _read_file(part):
  """Yields (number, record) of a whole TFRecord file."""
  import tensorflow as tf
  records = tf.data.TFRecordDataset(part.filename).as_numpy_iterator()
  number = 0
  while True:
    try:
      record = next(records)
    except StopIteration:
      return
    except tf.errors.OpError as error:
      raise core.DataError(
          f"{part.filename} is damaged at record {number} of "
          f"{part.examples_in_shard}: {error.message}") from error
    yield number, record
    number += 1
