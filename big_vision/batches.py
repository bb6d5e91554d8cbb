"""Puts global batches on the devices, in the background.

Each process makes the rows that its own devices need; together these rows form
one global array.
"""

from collections.abc import Iterator
import queue
import threading
import time

import jax
import numpy as np

# Seconds to wait for a reader to stop.
_CLOSE_S = 10.0


class Batches:
  """Iterates over global batches, which a background thread makes.

  Args:
    dataset: Tf.data.Dataset of this process's rows of each batch.
    first_batch: Number of the first batch.
    rows: int[r], positions of `dataset`'s rows in a global batch.
    sharding: Sharding of the batches' first axis.
    batch_size: Number of examples over all devices.
    prefetch: Number of batches that may wait on the devices.
    explain: Function (error, positions) -> error to raise instead.
    describe: Function (position, attempt) -> place where the example is stored.

  Attributes:
    first_batch: Number of the first batch.
    num_skipped: Number of damaged examples that this process has replaced.
    wait_s: Seconds that the consumer has waited for batches.
  """

  def __init__(self, dataset, *, first_batch, rows, sharding, batch_size,
               prefetch, explain, describe):
    self.first_batch = first_batch
    self.num_skipped = 0
    self.wait_s = 0.0
    self._rows, self._sharding, self._batch_size = rows, sharding, batch_size
    self._explain, self._describe = explain, describe
    self._queue = queue.Queue(maxsize=max(1, prefetch))
    self._stop = threading.Event()
    self._thread = threading.Thread(
        target=self._fill, args=(dataset,), name="input", daemon=True)
    self._thread.start()

  def __iter__(self) -> Iterator[dict[str, jax.Array]]:
    return self

  def __next__(self):
    if self._stop.is_set():
      raise StopIteration
    start = time.monotonic()
    batch, skipped = self._queue.get()
    self.wait_s += time.monotonic() - start
    if isinstance(batch, BaseException):
      self.close()
      raise batch
    self.num_skipped += skipped
    return batch

  def close(self):
    """Stops the background thread; safe to call again.

    A thread that does not stop within a few seconds is abandoned.
    """
    self._stop.set()
    give_up = time.monotonic() + _CLOSE_S
    while self._thread.is_alive() and time.monotonic() < give_up:
      try:
        self._queue.get_nowait()
      except queue.Empty:
        pass
      self._thread.join(timeout=0.05)

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()

  def _fill(self, dataset):
    """Reads batches, puts them on the devices and into the queue."""
    number = self.first_batch
    try:
      iterator = iter(dataset)
      while not self._stop.is_set():
        positions = number * self._batch_size + self._rows
        try:
          host = {key: value.numpy() for key, value in next(iterator).items()}
        except StopIteration:
          return
        except Exception as error:  # pylint: disable=broad-exception-caught
          if self._stop.is_set():
            return
          raise self._explain(error, positions) from error
        skipped = self._count_skipped(host.pop("_attempt", None), positions)
        batch = {key: self._to_devices(value) for key, value in host.items()}
        self._put((batch, skipped))
        number += 1
    except BaseException as error:  # pylint: disable=broad-exception-caught
      self._put((error, 0))

  def _put(self, item):
    while not self._stop.is_set():
      try:
        return self._queue.put(item, timeout=0.1)
      except queue.Full:
        pass

  def _count_skipped(self, attempts, positions) -> int:
    """Prints which examples were replaced; returns their number."""
    if attempts is None:
      return 0
    for position, count in zip(positions, attempts):
      for attempt in range(count):
        print("Skipped a damaged example: "
              f"{self._describe(int(position), attempt)}", flush=True)
    return int(attempts.sum())

  def _to_devices(self, local):
    """Makes the global array, of which this process has the rows `local`."""
    shape = (self._batch_size,) + local.shape[1:]
    shards = []
    for device, index in self._sharding.addressable_devices_indices_map(
        shape).items():
      start, stop, _ = index[0].indices(self._batch_size)
      begin = np.searchsorted(self._rows, start)
      shards.append(
          jax.device_put(local[begin:begin + stop - start], device))
    return jax.make_array_from_single_device_arrays(
        shape, self._sharding, shards)


def local_rows(sharding, batch_size) -> np.ndarray:
  """Returns the rows of a global batch that this process needs, ascending."""
  rows = set()
  for index in sharding.addressable_devices_indices_map(
      (batch_size,)).values():
    rows.update(range(*index[0].indices(batch_size)))
  return np.asarray(sorted(rows), np.int64)
