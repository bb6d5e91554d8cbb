"""Provides a run's compiled step and its batches, without the loop."""

from collections.abc import Iterator
import contextlib

from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import sharding
from big_vision import state as state_lib


@contextlib.contextmanager
def started(config: config_lib.Config) -> Iterator[tuple]:
  """Yields (built, state, update, batches), ready for the first step.

  `update` is what `state.make_update` returns. It donates its state: use only
  the one that it returned last.
  """
  built = build_lib.build(config)
  with sharding.use(built.mesh, built.rules), built.data.start(
      0, built.batch_sharding) as batches:
    state = state_lib.make(built.task, built.info, built.rng_init, built.shapes,
                           built.shardings)
    update = state_lib.make_update(
        built.task, built.rng_train, built.shardings, built.mesh)
    yield built, state, update, batches
