"""Datasets that TensorFlow Datasets (TFDS) prepared, read without network.

Datasets stored as ArrayRecord are read by index; those stored as TFRecord are
streamed. `python -m big_vision.tools.prepare_dataset NAME` prepares a dataset
as ArrayRecord.
"""
