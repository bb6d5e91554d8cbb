"""Opens a dataset that TFDS prepared, in the best of its stored formats."""

from collections.abc import Sequence

from big_vision import config as config_lib
from big_vision.datasets import core
from big_vision.datasets.tfds import array_record
from big_vision.datasets.tfds import declared
from big_vision.datasets.tfds import prepared as prepared_lib
from big_vision.datasets.tfds import records as records_lib
from big_vision.datasets.tfds import tfrecord


def open_tfds(
    dataset: str, split: str, data_dir: str | None = None,
    skip_decode: Sequence[str] | None = None
) -> core.Source | core.StreamSource:
  """Opens a prepared TFDS dataset.

  Args:
    dataset: Name of the dataset, see `prepared.find_prepared`.
    split: Split in the syntax of TFDS: "train", "train[:98%]",
      "train+test[:100]".
    data_dir: Directory of datasets, see `prepared.find_data_dir`.
    skip_decode: Features to leave as they are stored, such as encoded images.
      By default "image", where the dataset has it.

  Returns:
    A `Source` if the dataset is stored as ArrayRecord, else a `StreamSource`.

  Raises:
    ConfigError: There is no such dataset, split or feature; the error lists
      what exists.
    DataError: Files of the split are missing; the error names one.
  """
  import tensorflow_datasets as tfds
  try:
    prepared = prepared_lib.find_prepared(
        dataset, prepared_lib.find_data_dir(data_dir))
  except prepared_lib.NotPreparedError:
    source = declared.open_declared(dataset, split, skip_decode)
    if source is None:
      raise
    return source
  builder = tfds.builder_from_directory(prepared.directory)
  formats = prepared_lib.stored_formats(builder.info)
  if "array_record" in formats:
    file_format, source_class = "array_record", array_record.ArrayRecordSource
  elif "tfrecord" in formats:
    file_format, source_class = "tfrecord", tfrecord.TFRecordSource
  else:
    raise config_lib.ConfigError(
        f"{prepared.directory} is stored as {formats}; only array_record and "
        "tfrecord can be read.")
  # TFDS refuses to open a dataset in its second format, so its file names are
  # made here.
  splits = tfds.core.SplitDict([
      info.replace(filename_template=info.filename_template.replace(
          filetype_suffix=file_format))
      for info in builder.info.splits.values()])
  parts = records_lib.select_split(
      splits, split, str(prepared)).file_instructions
  if not parts:
    raise config_lib.ConfigError(f"{prepared}: split {split!r} is empty.")
  records_lib.check_files(parts)
  return source_class(
      parts=parts, features=builder.info.features, skip_decode=skip_decode,
      name=str(prepared))
