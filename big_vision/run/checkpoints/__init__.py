"""Saves and restores the state of a run, and detects damaged checkpoints.

orbax writes and reads the arrays. Around it, a step counts only if its folder
proves that it is complete: orbax committed it, our own `meta` item describes
it, and every leaf matches a digest taken before it was written. On its own,
orbax restores flipped bits silently, takes any folder called "7" for a step,
keeps counting steps whose save failed, and cleans up by removing everything
that is not a committed checkpoint. Each of these has a test.

  manager.py    Checkpoints: saving and restoring a run
  best.py       Best: keeping the best checkpoint by a metric
  reading.py    metadata and arrays of any checkpoint
  digests.py    checksums, which reveal damage
  folders.py    which folders are steps; cleaning up after killed saves
  agreement.py  all processes decide and raise together
  errors.py     errors, and which of them mean damage

Paths may be on any file system that `etils.epath` supports, such as gs://.
"""

from big_vision.run.checkpoints.best import Best
from big_vision.run.checkpoints.errors import (
    CheckpointDamaged, CheckpointMismatch, StorageError)
from big_vision.run.checkpoints.folders import list_steps
from big_vision.run.checkpoints.manager import Checkpoints
from big_vision.run.checkpoints.reading import read_arrays, read_meta

__all__ = [
    "Best", "CheckpointDamaged", "CheckpointMismatch", "Checkpoints",
    "StorageError", "list_steps", "read_arrays", "read_meta"]
