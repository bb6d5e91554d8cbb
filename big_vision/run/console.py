"""Prints messages for the person who watches a run."""

import jax


def say(message: str):
  """Prints `message` on the first process only, so that lines appear once."""
  if jax.process_index() == 0:
    print(message, flush=True)
