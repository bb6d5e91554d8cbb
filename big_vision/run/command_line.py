"""Reading the command line: errors become one sentence and exit code 2."""

from collections.abc import Sequence
import os
import sys
import traceback

from absl import flags
import ml_collections

from big_vision import config as config_lib


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses flags strictly; use it as `app.run(main, flags_parser=parse_flags)`.

  A mistake on the command line ends the process with exit code 2 and a message:
  an unknown flag, `--config.a.b=value` where the config has no `a.b`, or a
  value of the wrong type. Errors that a config file raises keep their
  traceback.

  Returns:
    The positional arguments, preceded by the program's name.
  """
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    message = str(error)
  except config_lib.ConfigError as error:
    message = str(error)
  except Exception as error:  # pylint: disable=broad-exception-caught
    ours = (os.path.dirname(ml_collections.__file__),
            os.path.dirname(os.path.dirname(flags.__file__)), __file__)
    if any(not frame.filename.startswith(ours)
           for frame in traceback.extract_tb(error.__traceback__)):
      raise
    message = (
        f"The command line sets a key that the config does not have: {error}"
        if isinstance(error, (AttributeError, KeyError)) else
        f"The command line is invalid: {error}")
  print(message, file=sys.stderr, flush=True)
  sys.exit(2)
