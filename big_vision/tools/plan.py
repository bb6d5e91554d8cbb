"""Plans a run: its memory, FLOPs, transfers, time and price, before it starts.

  python -m big_vision.tools.plan --config FILE.py --topology v5e:16x16
  python -m big_vision.tools.plan --config FILE.py --devices 8 --chip h100

With --topology, the TPU's own compiler compiles the real training step for that
slice (`pip install big_vision[plan]`; no TPU is needed): memory, traffic and
collectives are those of the run. With --devices, the step is compiled for as
many simulated CPU devices: placement, FLOPs and collectives are real, but the
memory of activations is not that of a GPU and is not shown.

A run whose step changes over time, such as a GAN whose discriminator starts
late, has several phases. Each is compiled and reported; time and price are sums
over all phases.

A problem that would stop the launch (an unknown key, a batch that does not
divide, an axis that the mesh lacks) stops the plan with exit code 2. So does a
step that does not fit, after a search for changes that make it fit. A dataset
that is not prepared on this machine is replaced by its declared shapes and
size, and the report says so.

  python -m big_vision.tools.plan --table CONFIG.py [CONFIG.py ...]

plans several configs with the commands in their headers (the line with
`tools.plan`) and prints a row of Markdown for each.
"""

import ast
from collections.abc import Sequence
import os
import re
import shlex
import sys

from absl import flags
import jax

from big_vision import config as config_lib
from big_vision.datasets.tfds import declared
from big_vision.hardware import targets
from big_vision.run import command_line
from big_vision.run import config_files
from big_vision.run import exit_codes
from big_vision.tools.planning import plans
from big_vision.tools.planning import remedies
from big_vision.tools.planning import reports
from big_vision.tools.planning import sizes


def header_command(path: str) -> list[str]:
  """Returns the arguments of the plan command in a config's header.

  Raises:
    ConfigError: The header has no such command.
  """
  with open(path, encoding="utf-8") as file:
    head = ast.get_docstring(ast.parse(file.read())) or ""
  found = re.search(r"^ *python -m big_vision\.tools\.plan (.*)$", head, re.M)
  if not found:
    raise config_lib.ConfigError(
        f"The header of {path} has no line `python -m big_vision.tools.plan "
        "...`.")
  return shlex.split(found[1])


def row_name(command: Sequence[str]) -> str:
  """Returns "FILE.py:arg=value" of a command's config, without its folder."""
  config = next(argument.removeprefix("--config=")
                for argument in command if ".py" in argument)
  path, colon, arg = config.partition(":")
  return f"{os.path.basename(path)}{colon}{arg}"


def _print_remedy(config, hardware) -> None:
  """Tries remedies until all phases fit, and prints each outcome."""
  print("What would make it fit, tried in this order:", flush=True)
  for description, values in remedies.list_remedies(config):
    try:
      plan = plans.make_plan(
          config_lib.resolve(remedies.with_values(config, values)), hardware)
    except (plans.DoesNotFitError, config_lib.ConfigError) as error:
      print(f"  {description}: no. {error}", flush=True)
      continue
    print(f"  {description}: yes, {sizes.format_bytes(plan.peak_bytes)}.",
          flush=True)
    return
  print("  A larger slice, a smaller config.input.batch_size or model.")


def _hardware() -> targets.Hardware:
  args = flags.FLAGS
  if (args.topology is None) == (args.devices is None):
    raise config_lib.ConfigError(
        "The plan needs either --topology=v5e:4x4 or --devices=8 "
        "--chip=h100.")
  if args.topology is not None:
    return targets.describe_topology(args.topology, args.num_slices)
  return targets.describe_devices(args.devices, args.chip or "cpu")


def _print_table(paths: Sequence[str]):
  print(reports.TABLE_HEAD)
  for path in paths:
    command = header_command(path)
    # Each header's flags replace those of the config before it.
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["plan", *command])
    hardware = _hardware()
    try:
      plan = plans.make_plan(config_lib.resolve(flags.FLAGS.config), hardware)
    except plans.DoesNotFitError:
      plan = None
    print(reports.table_row(row_name(command), plan, hardware), flush=True)


def define_flags():
  """Defines the command's flags; importing this module must not."""
  config_files.define_flag(
      "Config to plan: FILE.py or FILE.py:arg=value,...")
  flags.DEFINE_string(
      "topology", None, "TPU slice, such as v5e:16x16, v5p:8x8x16 or v6e:4x4.")
  flags.DEFINE_integer(
      "num_slices", 1, "Number of such slices.", lower_bound=1)
  flags.DEFINE_integer(
      "devices", None, "Number of simulated devices, in place of --topology.",
      lower_bound=1)
  flags.DEFINE_string(
      "chip", None, "Chip that they stand for: h100, h200, a100 or cpu.")
  flags.DEFINE_float(
      "price", None, "Price of a chip for an hour.", lower_bound=0)
  flags.DEFINE_bool(
      "table", False, "Print one row for each config file on the command line.")


def main(argv):
  """Prints the plan that the flags ask for."""
  args = flags.FLAGS
  # Ignore any accelerator of this machine: nothing runs on it.
  jax.config.update("jax_platforms", "cpu")
  with (command_line.exit_with_code(
      {plans.DoesNotFitError: exit_codes.CONFIG}),
        declared.declared_if_missing() as missing):
    if args.table:
      _print_table(argv[1:])
      return
    command_line.check_no_arguments(argv)
    if args.config is None:
      raise config_lib.ConfigError("The plan needs --config or --table.")
    hardware = _hardware()
    try:
      plan = plans.make_plan(config_lib.resolve(args.config), hardware)
    except plans.DoesNotFitError as error:
      print(f"It does not fit {hardware.name}: {error}", file=sys.stderr)
      _print_remedy(args.config, hardware)
      raise
    for line in reports.report(plan, hardware, args.price):
      print(line)
    if missing:
      print(f"\nNot prepared here: {sorted(missing)}. Their shapes and sizes "
            "are as declared; the run needs the data.")


if __name__ == "__main__":
  define_flags()
  command_line.run(main, takes_arguments=True)
