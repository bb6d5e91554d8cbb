"""Reads the flags of every command, and turns its errors into exit codes."""

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
import inspect
import os
import re
import sys
import textwrap
import traceback
from typing import Any

from absl import app
from absl import flags
import ml_collections

from big_vision import config as config_lib
from big_vision import files
from big_vision import input_pipeline
from big_vision import state as state_lib
from big_vision.run import checkpoints
from big_vision.run import config_files
from big_vision.run import console
from big_vision.run import ending
from big_vision.run import exit_codes
from big_vision.run import interrupts
from big_vision.run import metrics
from big_vision.run import peers
from big_vision.run import watchdog

_EXIT_CODES = {
    config_lib.ConfigError: exit_codes.CONFIG,
    flags.Error: exit_codes.CONFIG,
    state_lib.NonFiniteError: exit_codes.NON_FINITE,
    checkpoints.StorageError: exit_codes.STORAGE,
    metrics.MetricsDamaged: exit_codes.STORAGE,
    input_pipeline.DataError: exit_codes.DATA,
}
_HELP = {"-h", "-?", "-help", "--help", "--helpshort", "--helpfull"}


def run(main: Callable[[Sequence[str]], Any], *, takes_arguments: bool = False):
  """Runs a command that has absl flags, and ends the process.

  Args:
    main: Function of the program's name and the positional arguments.
    takes_arguments: Whether there may be positional arguments.
  """
  console.protect()
  console.quiet_libraries()
  app.run(main, flags_parser=functools.partial(
      parse_flags, takes_arguments=takes_arguments))


def run_tool(main: Callable[[], int]):
  """Runs a command that parses its own arguments, and ends the process."""
  console.protect()
  console.quiet_libraries()
  with exit_with_code():
    sys.exit(main())


class _PathParser(flags.ArgumentParser):

  def parse(self, argument: str) -> str:
    return os.path.expanduser(argument)  # The shell leaves --flag=~/x as it is.

  def flag_type(self) -> str:
    return "path"


def define_workdir(help_text: str):
  """Defines --workdir, which is required."""
  flags.DEFINE(_PathParser(), "workdir", None, help_text)
  flags.mark_flag_as_required("workdir")


def parse_flags(
    argv: Sequence[str], takes_arguments: bool = False) -> list[str]:
  """Parses flags strictly.

  A mistake on the command line or in the config file ends the process with a
  message and the exit code of `exit_with_code`.

  Args:
    argv: Command line, the program's name first.
    takes_arguments: Whether there may be positional arguments.

  Returns:
    The positional arguments, preceded by the program's name.
  """
  if _HELP & set(argv[1:]):
    print(_help())
    sys.exit(exit_codes.DONE)
  try:
    arguments = flags.FLAGS(argv)
    if not takes_arguments:
      check_no_arguments(arguments)
    return arguments
  except (flags.Error, config_lib.ConfigError,
          config_files.LoadingFailed) as error:
    sys.exit(_report(error)[0])
  except Exception as error:  # pylint: disable=broad-exception-caught
    print(_explain_override(argv, error), file=sys.stderr)
    sys.exit(exit_codes.CONFIG)


def check_no_arguments(argv: Sequence[str]):
  """Raises ConfigError if there are positional arguments."""
  if len(argv) > 1:
    raise config_lib.ConfigError(
        f"Unexpected argument {argv[1]!r}: a flag and its value are written "
        "--flag=value, a key of the config --config.key=value.")


def _help() -> str:
  """Returns the command's docstring and its flags."""
  lines = [inspect.getdoc(sys.modules["__main__"]) or "", "\nUsage: flags are"]
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    if module == sys.argv[0] or module.startswith(("big_vision", "__main__")):
      for flag in defined:
        lines.append(textwrap.fill(
            f"--{flag.name}: {flag.help}", width=80, initial_indent="  ",
            subsequent_indent="      "))
  return "\n".join(lines)


def _explain_override(argv: Sequence[str], error: Exception) -> str:
  """Returns a message for a --config.KEY=VALUE that does not suit the config.

  Raises:
    Exception: `error`, if it comes from elsewhere.
  """
  ours = (os.path.dirname(ml_collections.__file__),
          os.path.dirname(os.path.dirname(flags.__file__)), __file__)
  if any(not frame.filename.startswith(ours)
         for frame in traceback.extract_tb(error.__traceback__)):
    raise error
  text = str(error)
  with contextlib.suppress(ValueError, SyntaxError):
    text = ast.literal_eval(text)  # A KeyError's message is a quoted string.
  name = re.match(r"'(\w+)'\s*", text)
  if not isinstance(error, (AttributeError, KeyError)) or not name:
    return f"The command line is invalid: {text}"
  path = next((path for argument in argv
               if name[1] in (path := argument.split("=")[0]).split(".")),
              name[1])
  return (f"The command line sets {path.lstrip('-')}, but the config has no "
          f"such key. {text[name.end():]}").rstrip()


@contextlib.contextmanager
def exit_with_code(
    more: Mapping[type[Exception], int] | None = None) -> Iterator[None]:
  """Ends the process with the exit code that belongs to an exception.

  Expected errors (an invalid config, unreadable data or checkpoints, a full
  disk, a loss that is not finite, a request to stop) print their message
  without a traceback. Any other error prints its traceback and exits with
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
  except KeyboardInterrupt:
    print("Stopped by Ctrl-C before the first step; nothing is saved.",
          file=sys.stderr)
    sys.exit(exit_codes.INTERRUPTED)
  except Exception as error:  # pylint: disable=broad-exception-caught
    code, message = _report(error, more)
    if peers.this_process()[1] == 1 and code == exit_codes.STORAGE:
      # Libraries would try again to write at exit, and print their tracebacks.
      ending.end(code, message, is_said=True)
    if peers.this_process()[1] > 1:
      watchdog.fail_together(code, message, code != exit_codes.ERROR)
    sys.exit(code)


def exit_code_of(
    error: Exception, more: Mapping[type[Exception], int] | None = None
) -> int:
  """Returns the exit code of an error; see `exit_with_code`."""
  if isinstance(error, OSError) and error.errno in files.DISK_ERRORS:
    return exit_codes.STORAGE
  return next((code for kind, code in {**_EXIT_CODES, **(more or {})}.items()
               if isinstance(error, kind)), exit_codes.ERROR)


def _report(
    error: Exception, more: Mapping[type[Exception], int] | None = None
) -> tuple[int, str]:
  """Prints an error that ends the process; returns its exit code and message.

  Args:
    error: Error that was raised.
    more: See `exit_with_code`.
  """
  trace = error.__traceback__
  if isinstance(error, config_files.LoadingFailed):
    trace, error = error.trace(), error.error
  code = exit_code_of(error, more)
  if isinstance(error, OSError) and code == exit_codes.STORAGE:
    error = checkpoints.StorageError(
        f"A file could not be written or read: {error}. Once that is mended, "
        "the same command continues.")
  message = (str(error) if isinstance(error, flags.Error) else
             f"{type(error).__name__}: {_text(error)}")
  if code == exit_codes.ERROR:
    # Each of the errors that led to this one would print its own pages.
    traceback.print_exception(type(error), error, trace, chain=False)
  else:
    print(message, file=sys.stderr)
  return code, message


def _text(error: Exception) -> str:
  """Returns the message of an error; a KeyError's is quoted otherwise."""
  return str(error.args[0]) if (
      isinstance(error, KeyError) and len(error.args) == 1) else str(error)
