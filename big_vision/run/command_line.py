"""Reads the flags of every command, and turns its errors into exit codes."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import os
import sys
import traceback

from absl import flags
import ml_collections

from big_vision import config as config_lib
from big_vision import input_pipeline
from big_vision import state as state_lib
from big_vision.run import checkpoints
from big_vision.run import console
from big_vision.run import exit_codes
from big_vision.run import interrupts
from big_vision.run import peers
from big_vision.run import watchdog

_EXIT_CODES = {
    config_lib.ConfigError: exit_codes.CONFIG,
    state_lib.NonFiniteError: exit_codes.NON_FINITE,
    checkpoints.StorageError: exit_codes.STORAGE,
    input_pipeline.DataError: exit_codes.DATA,
}


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses flags strictly; use it as `app.run(main, flags_parser=parse_flags)`.

  A mistake on the command line ends the process with exit code 2 and a message:
  an unknown flag, `--config.a.b=value` where the config has no `a.b`, or a
  value of the wrong type. Errors that a config file raises keep their
  traceback.

  Args:
    argv: Command line, the program's name first.

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
  sys.exit(exit_codes.CONFIG)


@contextlib.contextmanager
def exit_with_code(
    more: Mapping[type[Exception], int] | None = None) -> Iterator[None]:
  """Ends the process with the exit code that belongs to an exception.

  Expected errors (an invalid config, unreadable data or checkpoints, a loss
  that is not finite, a request to stop) print their message without a
  traceback. Any other error prints its traceback and exits with
  `exit_codes.ERROR`. With several processes, an error in one of them ends all.

  Args:
    more: Exit codes of further exceptions that this command expects.
  """
  try:
    yield
  except interrupts.Interrupted as error:
    console.say(str(error))
    watchdog.leave()
    sys.exit(error.exit_code)
  except Exception as error:  # pylint: disable=broad-exception-caught
    code = next((code for kind, code in {**_EXIT_CODES, **(more or {})}.items()
                 if isinstance(error, kind)), None)
    message = f"{type(error).__name__}: {error}"
    is_expected = code is not None
    if is_expected:
      print(message, file=sys.stderr, flush=True)
    else:
      traceback.print_exc()
      code = exit_codes.ERROR
    if peers.this_process()[1] > 1:
      watchdog.fail_together(code, message, is_expected)
    sys.exit(code)
