"""Fixtures with datasets in the layout of TFDS, and without network."""

import shutil
import socket

import pytest
from tests.datasets.tfds import tiny_dataset


@pytest.fixture(name="data_dirs", scope="session")
def _data_dirs(tmp_path_factory):
  """Returns {format: directory of the dataset "tiny"}; do not write there."""
  found = {}
  for file_format in "array_record", "tfrecord":
    found[file_format] = str(tmp_path_factory.mktemp(file_format))
    tiny_dataset.write_dataset(found[file_format], file_format)
  return found


@pytest.fixture(name="no_network", autouse=True)
def _no_network(monkeypatch):
  def refuse(*unused_args):
    raise AssertionError("A dataset that is prepared needs no network.")
  monkeypatch.setattr(socket.socket, "connect", refuse)
  monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(name="copies")
def _copies(data_dirs, tmp_path):
  """Returns {format: directory} of copies that a test may damage."""
  return {
      file_format: shutil.copytree(data_dir, tmp_path / file_format)
      for file_format, data_dir in data_dirs.items()}
