"""A deliberate mistake and the test that must notice it."""

from typing import NamedTuple


class Mutation(NamedTuple):
  """One mistake, made by replacing a piece of text in one file.

  Attributes:
    file: Path of the file below the repository.
    old: Text that occurs exactly once in the file.
    new: Text that replaces it.
    test: Pytest node that passes without the mistake and fails with it. The
      narrowest one that does: it should take seconds.
  """
  file: str
  old: str
  new: str
  test: str
