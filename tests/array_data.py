"""Serves arrays in memory to evaluators, in place of files."""

from big_vision.evaluators import harness
import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest


def assert_is_key(rng):
  """Asserts, in a predict function, that it was given one key per batch."""
  assert jax.dtypes.issubdtype(rng.dtype, jax.dtypes.prng_key)
  assert rng.shape == ()


class ArrayPipeline:
  """Stands in for an `EvaluationPipeline`, over a dict of arrays."""

  def __init__(self, arrays, batch_size, sharding):
    self.num_examples = len(next(iter(arrays.values())))
    self.class_names = None
    self.num_passes = 0
    self.batches = []  # Every batch that was handed out, for tests to inspect.
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
def serve(monkeypatch):
  """Makes loaders open arrays: serve({"x": arrays}) makes data={"name": "x"}.

  "name/split" is the key of a data set with splits. Returns the dict of opened
  pipelines.
  """
  def serve_arrays(named):
    opened = {}
    def make_pipeline(loader, data, pp_fn):
      del pp_fn
      key = "/".join(data.values())
      opened[key] = ArrayPipeline(
          named[key], loader.batch_size, loader.batch_sharding)
      return opened[key]
    monkeypatch.setattr(harness.Loader, "_make_pipeline", make_pipeline)
    return opened
  return serve_arrays


@pytest.fixture
def loader(batch_sharding):
  """Returns a loader of batches of 16 on 8 devices."""
  return harness.Loader(batch_sharding, 16)


@pytest.fixture
def num_compiled():
  """Returns a function that counts the programs compiled in this test."""
  events = []
  def listen(event, duration, **kw):
    del duration, kw
    if event == "/jax/core/compile/backend_compile_duration":
      events.append(event)
  jax.monitoring.register_event_duration_secs_listener(listen)
  yield lambda: len(events)
  jax.monitoring.unregister_event_duration_listener(listen)
