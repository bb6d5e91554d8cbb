"""Stand-ins for datasets that are not prepared on the machine that plans."""

from collections.abc import Sequence
import contextlib
import contextvars

from big_vision.datasets import core
from big_vision.datasets.tfds import prepared as prepared_lib
from big_vision.datasets.tfds import records as records_lib

# Numbers of examples, as the authors of the datasets and TFDS' catalogue state.
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
# Names of datasets opened as stand-ins; None where stand-ins are not wanted.
_DECLARED = contextvars.ContextVar("declared", default=None)


@contextlib.contextmanager
def declared_if_missing():
  """Opens datasets that are not prepared as stand-ins, within the context.

  A stand-in has the dataset's shapes, dtypes and number of examples, but no
  examples. It serves to plan runs whose data is on other machines.

  Yields:
    The set of names of the datasets that were opened as stand-ins so far.
  """
  token = _DECLARED.set(set())
  try:
    yield _DECLARED.get()
  finally:
    _DECLARED.reset(token)


def open_declared(
    dataset: str, split: str, skip_decode: Sequence[str] | None
) -> "DeclaredSource | None":
  """Opens the stand-in of a dataset that is not prepared.

  Args:
    dataset: Name of the dataset, see `prepared.find_prepared`.
    split: Split in the syntax of TFDS.
    skip_decode: Features to leave as they are stored; see `opening.open_tfds`.

  Returns:
    The source; None outside of `declared_if_missing`, or if the dataset's sizes
    are unknown.
  """
  declared = _DECLARED.get()
  if declared is None:
    return None
  import tensorflow_datasets as tfds
  name, config, _ = prepared_lib.parse_name(dataset)
  sizes = _NUM_EXAMPLES.get(name)
  if sizes is None or config:
    return None
  if name == "imagenet21k":  # TFDS lacks it; users make it in this form.
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
  parts = records_lib.select_split(splits, split, name).file_instructions
  source = DeclaredSource(
      parts=parts, features=features, skip_decode=skip_decode, name=name)
  declared.add(dataset)
  return source


class DeclaredSource(records_lib.StoredRecords, core.Source):
  """The stand-in of a TFDS dataset whose files are elsewhere.

  See `declared_if_missing`. Reading can be traced, but fails when it runs.
  """

  def read(self, index):
    import tensorflow as tf
    # The record depends on `index`: TensorFlow would parse a constant while
    # tracing.
    return self.parse(tf.strings.as_string(index))

  def describe(self, index):
    return f"{self.describe_position(index)}, which is not on this machine"
