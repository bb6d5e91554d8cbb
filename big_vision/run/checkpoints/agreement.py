"""Makes all processes of a run see the same directory and raise together.

A process that raises alone leaves the others waiting in their next collective.
"""

from collections.abc import Callable
import json
import sys
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from big_vision.run.checkpoints import errors


def from_first(fn: Callable[[], Any]):
  """Calls `fn` on the first process and returns its result on all of them.

  File systems of different hosts may show a change at different times, so
  decisions that depend on a directory are taken by one process.

  Args:
    fn: Function without arguments whose result JSON can hold.

  Raises:
    StorageError: `fn` raised it or an OSError; every process raises.
  """
  answer = problem = None
  if jax.process_index() == 0:
    try:
      answer = fn()
    except (errors.StorageError, OSError) as error:
      # A process that runs alone raises the original error with its traceback.
      # Otherwise the other processes wait for an answer, which is sent first.
      if jax.process_count() == 1 and isinstance(error, errors.StorageError):
        raise
      problem = [isinstance(error, errors.CheckpointDamaged), str(error)]
  if jax.process_count() > 1:
    sent = json.dumps([answer, problem]).encode()
    # Pad to multiples of 4 KiB, because every new size compiles a program.
    size = int(multihost_utils.broadcast_one_to_all(
        np.int32(-(-len(sent) // 4096) * 4096)))
    received = multihost_utils.broadcast_one_to_all(
        np.frombuffer(sent[:size].ljust(size), np.uint8))
    answer, problem = json.loads(np.asarray(received).tobytes())
  if problem:
    is_damaged, message = problem
    raise (errors.CheckpointDamaged if is_damaged else errors.StorageError)(
        message)
  return answer


def raise_together(path, error: errors.StorageError | None):
  """Raises on all processes if one of them has an error.

  A StorageError wins over CheckpointDamaged: if one process has a transient
  problem, the others may see its consequence as damage.

  Args:
    path: Folder of the checkpoint, named in the error of the other processes.
    error: Error of this process, or None.
  """
  kinds = [None, errors.CheckpointDamaged, errors.StorageError]
  own = kinds.index(error and type(error))
  worst = maximum(own)
  if error is not None and jax.process_index() > 0:
    print(error, file=sys.stderr, flush=True)
  if worst > own:
    error = kinds[worst](
        f"{path} could not be read by another process, which printed why.")
  if error is not None:
    raise error


def maximum(value: int) -> int:
  """Returns the largest `value` of all processes."""
  if jax.process_count() == 1:
    return value
  return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def barrier(name: str):
  """Waits until all processes have called this function."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"checkpoint {name}")
