"""Data for evaluators without files: pipelines over arrays in memory."""

from big_vision.evaluators import harness
import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest


class ArrayPipeline:
  """What `input_pipeline.make_evaluation` returns, over a dict of arrays."""

  def __init__(self, arrays, batch_size, sharding):
    self.num_examples = len(next(iter(arrays.values())))
    self.num_passes = 0
    self.batches = []  # Every batch handed out, to look at afterwards.
    self._arrays = arrays
    self._batch_size = batch_size
    self._sharding = sharding

  def __iter__(self):
    self.num_passes += 1
    for start in range(0, self.num_examples, self._batch_size):
      part = {
          key: value[start:start + self._batch_size]
          for key, value in self._arrays.items()}
      part["_mask"] = np.ones(len(next(iter(part.values()))), np.float32)
      batch = {}
      for key, value in part.items():
        missing = self._batch_size - len(value)
        value = np.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1))
        batch[key] = jax.device_put(value, self._sharding)
      self.batches.append(batch)
      yield batch


@pytest.fixture
def batch_sharding():
  assert jax.device_count() == 8
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  return NamedSharding(mesh, P("data"))


@pytest.fixture
def serve(monkeypatch, batch_sharding):
  """serve({"name": arrays}) makes `data={"name": "name"}` mean these arrays.

  "name/split" is the key of a data set with splits. Returns the dict into which
  the opened pipelines go.
  """
  def serve_arrays(named):
    opened = {}
    def open_data(data, pp_fn, batch_size, sharding, pp_modules=None):
      del pp_fn, pp_modules
      key = "/".join(data.values())
      if key not in opened:
        opened[key] = ArrayPipeline(named[key], batch_size, sharding)
      return opened[key]
    monkeypatch.setattr(harness, "open_data", open_data)
    return opened
  return serve_arrays


@pytest.fixture
def num_compiled():
  """A function that tells how many programs XLA has compiled in this test."""
  events = []
  def listen(event, duration, **kw):
    del duration, kw
    if event == "/jax/core/compile/backend_compile_duration":
      events.append(event)
  jax.monitoring.register_event_duration_secs_listener(listen)
  yield lambda: len(events)
  jax.monitoring.unregister_event_duration_listener(listen)
