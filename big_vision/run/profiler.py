"""Records a trace of some steps, and what the devices' memory holds.

`config.profile = dict(first_step=100, num_steps=3)` writes both to
`WORKDIR/profile`. XProf (`pip install xprof`) and Perfetto show the trace,
pprof shows `memory.prof`.
"""

import os

import jax

from big_vision import ranges


class Profiler:
  """Traces a range of steps; a context manager.

  Args:
    workdir: Directory of the run.
    first_step: First step to trace, from 1; None to trace nothing. The first
      step of a process compiles, so trace a later one.
    num_steps: Number of steps to trace.

  Raises:
    ValueError: `first_step` or `num_steps` is less than 1.
  """

  def __init__(self, workdir: str, *, first_step: ranges.Count | None = None,
               num_steps: ranges.Count = 3):
    if first_step is not None and (first_step < 1 or num_steps < 1):
      raise ValueError(
          f"Steps are counted from 1; got first_step={first_step}, "
          f"num_steps={num_steps}.")
    self._directory = os.path.join(workdir, "profile")
    self._first, self._num = first_step, num_steps
    self._runs = False

  def before(self, step: int, state):
    """Starts or ends the trace; call it before each step.

    Args:
      step: Step that comes next.
      state: State after the step before.
    """
    if step == self._first:
      jax.block_until_ready(state)  # Leaves earlier steps out.
      jax.profiler.start_trace(self._directory)
      self._runs = True
    elif self._runs and step == self._first + self._num:
      self._finish(state)

  def _finish(self, state):
    jax.block_until_ready(state)
    jax.profiler.stop_trace()
    self._runs = False
    if jax.process_index() == 0:
      jax.profiler.save_device_memory_profile(
          os.path.join(self._directory, "memory.prof"))

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    if self._runs:
      self._finish(())
