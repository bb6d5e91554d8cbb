"""Trains every point of a config file's sweep, and tabulates their results.

  python -m big_vision.tools.sweep --config FILE.py --workdir DIR \\
      [--seeds 0,1,2] [--metrics "test/prec@1,*/loss"]

The config file defines `get_sweep()`, or `get_sweep(arg=None)` if it wants the
text after the colon of `--config FILE.py:arg`. It returns a list of dicts, one
for each point. A point holds values for keys that the config has. It may also
hold "arg", arguments for `get_config`, and "name":

  def get_sweep():
    return [{"lr": lr, "model.depth": depth}
            for lr in (1e-3, 3e-3) for depth in (4, 6)]

In a point's strings, "{point:NAME}" stands for the workdir of an earlier point
with the same seed, for example to resume from it.

Points are trained one after another, each by a process of its own, in DIR/NAME
or, with --seeds, in DIR/NAME/seed=N. The same command continues a sweep that
was stopped or killed: finished points are skipped, the others resume from their
last checkpoint. The table has the last value of each metric, or its mean,
minimum and maximum over the seeds. It is printed, and written to DIR/table.md
and DIR/table.csv.
"""

import argparse
from collections.abc import Mapping, Sequence
import contextlib
import csv
import fnmatch
import inspect
import io
import math
import os
import pprint
import re
import signal
import subprocess
import sys
from typing import Any, NamedTuple

import ml_collections

from big_vision import config as config_lib
from big_vision import ranges
from big_vision import files
from big_vision.run import command_line
from big_vision.run import config_files
from big_vision.run import interrupts
from big_vision.run import metrics
from big_vision.run import workdir as workdir_lib

# A file of this name marks a workdir in which training has ended.
_FINISHED = "finished"
_MAX_NAME = 120
_CONFIG_FILE = '''\
"""The config of one point of a sweep, written by big_vision.tools.sweep."""

from math import inf, nan  # noqa: F401

import ml_collections


def get_config():
  return ml_collections.ConfigDict(
{values})
'''


class Point(NamedTuple):
  """A run of a sweep.

  Attributes:
    name: Readable name, the same for all seeds.
    seed: Value of `config.seed`; None for the config's own.
    workdir: Directory of the run.
    config: Resolved config.
  """
  name: str
  seed: int | None
  workdir: str
  config: config_lib.Config


class Row(NamedTuple):
  """A metric of a point over its seeds."""
  point: str
  metric: str
  values: tuple[float, ...]


def load_points(config: str, workdir: str,
                seeds: Sequence[int] = ()) -> list[Point]:
  """Makes the config of every point, and checks all of them.

  Args:
    config: Path of the config file, optionally followed by ":" and arguments.
    workdir: Directory of the sweep.
    seeds: Seeds to train every point with; empty for the configs' own.

  Returns:
    The points in the order of `get_sweep()`, each with all of its seeds.

  Raises:
    ConfigError: The file has no valid sweep, a point overrides a key that its
      config does not have, or its workdir holds a run of another config.
  """
  path, _, base_arg = config.partition(":")
  module = config_files.load_module(path)
  points, workdirs = [], {}
  for place, overrides in enumerate(_read_sweep(module, path, base_arg)):
    name = _make_name(overrides)
    where = f"Point {place} ({name}) of {path}"
    if name in {point.name for point in points}:
      raise config_lib.ConfigError(
          f"{where}: an earlier point has the same name; set \"name\".")
    for seed in seeds or [None]:
      try:
        values = _make_config(
            module, base_arg, _fill(overrides, workdirs, seed), seed)
      except config_lib.ConfigError as error:
        raise config_lib.ConfigError(f"{where}: {error}") from error
      run = os.path.join(
          workdir, name, *([] if seed is None else [f"seed={seed}"]))
      point = Point(name=name, seed=seed, workdir=run,
                    config=config_lib.resolve(values))
      workdir_lib.check_config(run, point.config)
      points.append(point)
    workdirs |= {(p.name, p.seed): p.workdir for p in points}
  return points


def _read_sweep(module, path: str, arg: str) -> list[dict[str, Any]]:
  """Calls `get_sweep` and checks the form of its result."""
  get_sweep = getattr(module, "get_sweep", None)
  if get_sweep is None:
    raise config_lib.ConfigError(
        f"{path} has no sweep; define get_sweep(), which returns a list of "
        "dicts with the values that a point changes.")
  takes_arg = bool(inspect.signature(get_sweep).parameters)
  sweep = list(get_sweep(arg or None) if takes_arg else get_sweep())
  if not sweep or not all(isinstance(point, Mapping) for point in sweep):
    raise config_lib.ConfigError(
        f"get_sweep() of {path} must return a list of one or more dicts; it "
        f"returned {sweep!r}.")
  return [dict(point) for point in sweep]


def _make_name(overrides: Mapping[str, Any]) -> str:
  """Makes a directory name that says what a point changes."""
  name = overrides.get("name") or ",".join(
      str(value) if key == "arg" else f"{key}={value}"
      for key, value in overrides.items()) or "default"
  # No colon: it would end the path of the config file.
  name = re.sub(r"[^\w.,=+@-]+", "_", name).strip("._")
  if not name or len(name) > _MAX_NAME:
    raise config_lib.ConfigError(
        f"The name {name!r} of a point must have 1 to {_MAX_NAME} characters; "
        "set \"name\".")
  return name


def _fill(overrides, workdirs, seed):
  """Replaces "{point:NAME}" by the workdir of that point."""
  def replace(match):
    key = match[1], seed
    if key not in workdirs:
      raise config_lib.ConfigError(
          f"{match[0]} must name an earlier point; these are "
          f"{sorted({name for name, _ in workdirs})}.")
    return workdirs[key]
  return {key: re.sub(r"\{point:([^}]*)\}", replace, value)
          if isinstance(value, str) else value
          for key, value in overrides.items()}


def _make_config(module, base_arg, overrides, seed):
  """Makes the config of a point, before it is resolved."""
  overrides = dict(overrides)
  overrides.pop("name", None)
  arg = ",".join(filter(None, [base_arg, overrides.pop("arg", None)]))
  config = module.get_config(arg) if arg else module.get_config()
  for key, value in overrides.items():
    *parents, last = key.split(".")
    place, path = config, "config"
    for part in [*parents, last]:
      if not isinstance(place, ml_collections.ConfigDict) or part not in place:
        known = (sorted(place) if isinstance(place, ml_collections.ConfigDict)
                 else [])
        raise config_lib.ConfigError(
            f"the override {key!r} names {path}.{part}, which does not exist"
            f"{config_lib.nearest(part, known)}. {path} has {known}.")
      parent, place, path = place, place[part], f"{path}.{part}"
    try:
      parent[last] = value
    except TypeError as error:
      raise config_lib.ConfigError(
          f"the override {key}={value!r} does not have the type of "
          f"{place!r}.") from error
  if seed is not None:
    config_lib.check(seed, "--seeds", ranges.Seed)
    with config.unlocked():
      config.seed = seed
  return config


def train_points(points: Sequence[Point]) -> dict[str, int]:
  """Trains the points that are not finished, one after another.

  A point that fails does not keep the others from being trained.

  Returns:
    The exit code of every run that failed, by its workdir.

  Raises:
    SystemExit: A signal stopped the sweep; the code is that of the run.
  """
  failed = {}
  for i, point in enumerate(points, start=1):
    title = f"[{i}/{len(points)}] {point.workdir}"
    if _is_finished(point):
      print(f"{title}: already finished", flush=True)
      continue
    print(title, flush=True)
    code, stopped = _run(_command(point))
    if code == 0:
      files.write_text(os.path.join(point.workdir, _FINISHED), "")
    if stopped:
      print("The sweep was stopped; the same command continues it.", flush=True)
      raise SystemExit(code or 128 + stopped)
    if code:
      failed[point.workdir] = code
      print(f"{title}: failed with exit code {code}", flush=True)
  return failed


def _is_finished(point: Point) -> bool:
  return os.path.exists(os.path.join(point.workdir, _FINISHED))


def _command(point: Point) -> list[str]:
  """Writes the point's config; returns the command that trains it."""
  os.makedirs(point.workdir, exist_ok=True)
  path = os.path.join(point.workdir, "config.py")
  values = pprint.pformat(point.config.to_dict(), indent=1, width=72)
  files.write_text(path, _CONFIG_FILE.format(
      values="\n".join("      " + line for line in values.splitlines())))
  return [sys.executable, "-m", "big_vision.train", "--config", path,
          "--workdir", point.workdir]


def _run(command: Sequence[str]) -> tuple[int, int]:
  """Runs a command; returns its exit code and the signal that stopped it.

  The command runs in a session of its own and gets signals to stop only from
  this function, and only once, so that it has time to save its state.
  """
  received = []
  with contextlib.ExitStack() as stack:
    process = None

    def forward(number, frame):
      del frame
      received.append(number)
      if process is not None:
        process.send_signal(number)

    for number in interrupts.stop_signals():
      stack.callback(signal.signal, number, signal.signal(number, forward))
    process = subprocess.Popen(command, start_new_session=True)
    if received:
      process.send_signal(received[0])
    code = process.wait()
  return code, received[0] if received else 0


def tabulate(points: Sequence[Point], patterns: Sequence[str]) -> list[Row]:
  """Reads the last value of every metric that matches one of `patterns`.

  Args:
    points: Points to read; those that are not finished are left out.
    patterns: Names of metrics, or shell patterns such as "test/*".

  Returns:
    Rows ordered by point, then by pattern, then by name, with numbers in names
    compared by value.
  """
  found = {}
  for point in filter(_is_finished, points):
    last = _last_values(point)
    for name in _select(last, patterns):
      found.setdefault((point.name, name), []).append(float(last[name]))
  places = {point.name: i for i, point in reversed([*enumerate(points)])}
  names = _select({name for _, name in found}, patterns)
  return [Row(point=point, metric=name, values=tuple(found[point, name]))
          for point, name in sorted(found, key=lambda key: (
              places[key[0]], names.index(key[1])))]


def list_metrics(points: Sequence[Point]) -> list[str]:
  """Lists the names of all metrics of the points that are finished."""
  return sorted({name for point in filter(_is_finished, points)
                 for name in _last_values(point)} - {"step"})


def _last_values(point: Point) -> dict[str, float]:
  last = {}
  for row in metrics.read_metrics(point.workdir):
    last |= row
  return last


def _select(names, patterns):
  """Returns the names that match, in the order of the patterns."""
  natural = lambda name: [
      int(part) if part.isdigit() else part
      for part in re.split(r"(\d+)", name)]
  return list(dict.fromkeys(
      name for pattern in patterns for name in sorted(names, key=natural)
      if fnmatch.fnmatchcase(name, pattern)))


def to_markdown(rows: Sequence[Row]) -> str:
  """Formats a table with a line for each point and a column for each metric."""
  points = list(dict.fromkeys(row.point for row in rows))
  names = list(dict.fromkeys(row.metric for row in rows))
  cells = {(row.point, row.metric): _format(row.values) for row in rows}
  lines = [["point", *names], ["---"] * (len(names) + 1)]
  lines += [[point, *(cells.get((point, name), "") for name in names)]
            for point in points]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _format(values):
  if len(values) == 1:
    return f"{values[0]:.6g}"
  return (f"{math.fsum(values) / len(values):.6g} "
          f"({min(values):.6g} to {max(values):.6g}, n={len(values)})")


def to_csv(rows: Sequence[Row]) -> str:
  """Formats a line for each point and metric: mean, minimum, maximum, count."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["point", "metric", "mean", "min", "max", "num_seeds"])
  for row in rows:
    writer.writerow([row.point, row.metric, math.fsum(row.values) / len(
        row.values), min(row.values), max(row.values), len(row.values)])
  return text.getvalue()


def _write_tables(rows: Sequence[Row], workdir: str):
  for name, text in (("table.md", to_markdown(rows)),
                     ("table.csv", to_csv(rows))):
    files.write_text(os.path.join(workdir, name), text)


def main(args=None) -> int:
  parser = argparse.ArgumentParser(
      prog="python -m big_vision.tools.sweep", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
      "--config", required=True, help="FILE.py or FILE.py:arg=value,...")
  parser.add_argument("--workdir", required=True, type=os.path.expanduser,
                      help="directory of the sweep")
  parser.add_argument(
      "--seeds", default="", help="seeds for every point, such as 0,1,2")
  parser.add_argument(
      "--metrics", default="*/prec@1,training_loss",
      help="names or shell patterns of the table's columns (%(default)s)")
  options = parser.parse_args(args)
  try:
    seeds = [int(seed) for seed in options.seeds.split(",") if seed]
  except ValueError:
    parser.error(f"--seeds {options.seeds} is not a list of integers.")
  if ":" in options.workdir or len(set(seeds)) < len(seeds):
    parser.error("--workdir must not have a colon, nor --seeds a duplicate.")
  try:
    points = load_points(options.config, options.workdir, seeds)
  except config_lib.ConfigError as error:
    print(error, file=sys.stderr)
    return 2
  failed = train_points(points)
  for workdir, code in failed.items():
    print(f"Not in the table: {workdir} failed with exit code {code}.")
  rows = tabulate(points, options.metrics.split(","))
  if not rows and len(failed) < len(points):
    print(f"No metric matches --metrics {options.metrics}; the table is not "
          f"written. There are {list_metrics(points)}.", file=sys.stderr)
    return 2
  _write_tables(rows, options.workdir)
  print(f"\n{to_markdown(rows)}\nThe table is in {options.workdir}/table.md "
        "and table.csv.")
  return 1 if failed else 0


if __name__ == "__main__":
  command_line.run_tool(main)
