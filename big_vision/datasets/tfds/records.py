"""Where the records of a split are stored, and how they are parsed."""

import os

from big_vision import config as config_lib
from big_vision.datasets import core
from big_vision.datasets import data_files


class StoredRecords:
  """Knows where the records of a split are, and parses them.

  Reading by index and streaming share this class.

  Args:
    parts: `tfds` FileInstructions: filename, skip, take, examples_in_shard.
    features: `tfds.features.FeaturesDict` of the dataset.
    skip_decode: Features to leave as they are stored; None for "image", where
      the dataset has it.
    name: Name of the dataset, for messages.

  Attributes:
    parts: As given.
    num_classes: Number of classes of the feature "label" or "labels"; None if
      it has neither.
    class_names: Names of these classes; None if it has neither.

  Raises:
    ConfigError: `skip_decode` names a feature that the dataset lacks.
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
      # A sequence of labels keeps the label's feature inside.
      label = getattr(label, "feature", label)
      if isinstance(label, tfds.features.ClassLabel):
        self.num_classes = label.num_classes
        self.class_names = list(label.names)
        break

  def __len__(self):
    return sum(part.take for part in self.parts)

  def parse(self, record):
    """Parses a serialized `tf.train.Example`, string[]."""
    return self._features.deserialize_example(record, decoders=self._decoders)

  def describe_position(self, position: int) -> str:
    """Returns "FILE record NUMBER" for a position in the joined parts."""
    for part in self.parts:
      if position < part.take:
        return f"{part.filename} record {part.skip + position}"
      position -= part.take
    raise IndexError(f"There are only {len(self)} records.")


def select_split(splits, split: str, name: str):
  """Selects a part of a dataset's splits.

  Args:
    splits: `tfds.core.SplitDict` of the dataset.
    split: Split in the syntax of TFDS, like "train[:98%]+test".
    name: Name of the dataset, for messages.

  Returns:
    `tfds.core.SplitInfo` or the like, with `file_instructions`.

  Raises:
    ConfigError: There is no such split; the error lists the splits and their
      sizes.
  """
  try:
    return splits[split]
  except (KeyError, ValueError, NotImplementedError) as error:
    sizes = {key: info.num_examples for key, info in splits.items()}
    raise config_lib.ConfigError(
        f"{name} has no split {split!r}{config_lib.nearest(split, sizes)}; "
        f"it has {sizes}, and parts of them such as 'train[:98%]' and "
        f"'train[100:]+test'. ({error})") from error


def check_files(parts) -> None:
  """Raises DataError if a file of `parts` is missing or not a regular file."""
  unreadable = data_files.find_unreadable(
      [part.filename for part in parts], max_bytes=None)
  if unreadable:
    position, problem = unreadable
    part = parts[position]
    raise core.DataError(
        f"{part.filename} {problem}, though the dataset's info counts "
        f"{part.examples_in_shard} records in it. Restore it, or delete "
        f"{os.path.dirname(part.filename)} and prepare the dataset again.")
