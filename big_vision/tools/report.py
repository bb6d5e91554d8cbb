"""Writes an HTML page about one or several runs, which needs no network.

  python -m big_vision.tools.report WORKDIR... [--out report.html]

It shows the last and best values of the runs, the differences between their
configs, a curve of every metric, and sample predictions if a run has stored
some.
"""

import argparse
import html
import json
import math
import os
import statistics
import sys

from big_vision import config as config_lib
from big_vision import files
from big_vision.run import command_line
from big_vision.run import metrics
from big_vision.run import progress
from big_vision.run import workdir as workdir_lib

_COLORS = ("#0b6bcb", "#d1490c", "#1a7f37", "#8250df", "#bf8700", "#cf222e",
           "#0a7ea4", "#57606a")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; margin: 2em auto;
       max-width: 1160px; padding: 0 1em; background: #fff; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; padding: 3px 14px 3px 0; vertical-align: top;
         border-bottom: 1px solid #d8dee4; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.charts { display: grid; gap: 18px;
          grid-template-columns: repeat(auto-fill, minmax(350px, 1fr)); }
figure { margin: 0; } figcaption { font-weight: 600; font-size: 14px; }
svg { width: 100%; height: auto; }
svg text { font: 11px system-ui; fill: #57606a; }
.key { display: inline-block; width: 12px; height: 12px; margin-right: 6px;
       border-radius: 2px; }
.samples { display: flex; flex-wrap: wrap; gap: 12px; }
.samples div { text-align: center; font-size: 12px; width: 92px; }
.samples img { width: 84px; height: 84px; image-rendering: pixelated; }
.wrong { color: #cf222e; }
"""


class Run:
  """Config, metrics and sample predictions of a run.

  Args:
    workdir: Directory of the run.

  Raises:
    FileNotFoundError: `workdir` is not the directory of a run.
    ValueError: The metrics are damaged.
  """

  def __init__(self, workdir: str):
    self.name = os.path.normpath(workdir)
    config = workdir_lib.load_config(workdir)
    if config is None:
      raise FileNotFoundError(
          f"{workdir} has no config.json: it is not the workdir of a run.")
    self.config = config.to_dict()
    self.rows = metrics.read_metrics(workdir)
    self.samples = None
    path = files.as_path(workdir) / "predictions.json"
    if path.exists():
      try:
        self.samples = _samples(json.loads(path.read_bytes()))
      except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold predictions ({type(error).__name__}: "
            f"{error}). Remove it, or evaluate again.") from error

  def curve(self, name: str) -> list[tuple[float, float]]:
    """Returns (step, value) for the finite values of a metric."""
    return [(row["step"], row[name]) for row in self.rows
            if name in row and math.isfinite(row[name])]


def draw_report(runs: list[Run]) -> str:
  """Returns the report of `runs` as an HTML document."""
  names = sorted({name for run in runs for row in run.rows for name in row}
                 - {"step"}, key=_order)
  charts = "".join(_chart(name, runs) for name in names
                   if any(len(run.curve(name)) > 1 for run in runs))
  body = [f"<h1>{len(runs)} run{'s' * (len(runs) > 1)}</h1>", _summary(runs)]
  if len(runs) > 1:
    body += ["<h2>Differences between their configs</h2>", _differences(runs)]
  body += ["<h2>Curves</h2>", f"<div class=charts>{charts}</div>"
           if charts else "<p>No metrics were written yet.</p>"]
  for run in runs:
    if run.samples:
      body += [f"<h2>Predictions of {html.escape(run.name)}</h2>",
               run.samples]
  return ("<!doctype html><html lang=en><meta charset=utf-8>"
          f"<title>Report</title><style>{_STYLE}</style><body>"
          f"{''.join(body)}</body></html>\n")


def _order(name: str):
  """Sorts evaluators first, then training, speed and all other costs."""
  if name.startswith("z/") or "/" not in name and not name.startswith(
      ("training", "l2_", "global_schedule")):
    return 3, name
  if name in ("img/sec", "img/sec/core"):
    return 2, name
  return (1 if name.startswith(("training", "l2_", "global_")) else 0), name


def _key(i: int) -> str:
  color = _COLORS[i % len(_COLORS)]
  return f'<span class=key style="background:{color}"></span>'


def _summary(runs):
  """Makes a table with the last and best values of each run."""
  names = sorted({name for run in runs for row in run.rows for name in row
                  if _order(name)[0] == 0 and run.curve(name)})
  head = "".join(f"<th>{html.escape(name)}<br>last (best)" for name in names)
  rows = []
  for i, run in enumerate(runs):
    speeds = [value for _, value in run.curve("img/sec")]
    uptime = [value for _, value in run.curve("uptime")]
    cells = [
        f"{run.rows[-1]['step'] if run.rows else 0:,}",
        f"{statistics.median(speeds):,.0f}" if speeds else "",
        progress.format_seconds(uptime[-1]) if uptime else ""]
    for name in names:
      values = [value for _, value in run.curve(name)]
      best = (min if name.endswith("loss") else max)(values) if values else None
      cells.append(f"{values[-1]:.4f} ({best:.4f})" if values else "")
    rows.append(f"<tr><td>{_key(i)}{html.escape(run.name)}" + "".join(
        f"<td class=number>{cell}" for cell in cells))
  return (f"<table><tr><th>run<th>steps<th>images/s<th>time{head}"
          f"{''.join(rows)}</table>")


def _differences(runs):
  """Makes a table of the config keys in which the runs differ."""
  flat = [config_lib.flatten(run.config) for run in runs]
  rows = []
  for key in sorted(set().union(*flat)):
    shown = [repr(values[key]) if key in values else "absent"
             for values in flat]
    if len(set(shown)) > 1:
      rows.append(f"<tr><td>{html.escape(key)}" + "".join(
          f"<td>{html.escape(value)}" for value in shown))
  if not rows:
    return "<p>Their configs are equal.</p>"
  head = "".join(f"<th>{_key(i)}{html.escape(run.name)}"
                 for i, run in enumerate(runs))
  return f"<table><tr><th>key{head}{''.join(rows)}</table>"


def _ticks(low: float, high: float) -> list[float]:
  """Returns about four round numbers in [low, high]."""
  step = 10 ** math.floor(math.log10((high - low) / 3))
  step *= max(k for k in (1, 2, 5) if (high - low) / (step * k) >= 2)
  first = math.ceil(low / step)
  return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _chart(name: str, runs) -> str:
  """Draws one metric of all runs as SVG."""
  width, height, left, bottom, top = 380, 220, 52, 24, 8
  curves = [run.curve(name) for run in runs]
  points = [point for curve in curves for point in curve]
  steps, values = zip(*points)
  right = max(max(steps), 1)
  low, high = min(values), max(values)
  if low == high:
    margin = abs(low) * 0.1 or 1.0
    low, high = low - margin, high + margin
  at_x = lambda step: left + (width - left - 10) * step / right
  at_y = lambda value: height - bottom - (
      height - bottom - top) * (value - low) / (high - low)
  parts = []
  for tick in _ticks(low, high):
    y = at_y(tick)
    parts.append(f'<path d="M{left} {y:.1f}H{width - 10}" stroke="#e6e9ec"/>'
                 f'<text x={left - 6} y={y + 4:.1f} text-anchor=end>{tick:.4g}'
                 "</text>")
  for tick in _ticks(0, right):
    parts.append(f'<text x={at_x(tick):.1f} y={height - 6} text-anchor=middle>'
                 f"{tick:,.4g}</text>")
  for i, curve in enumerate(curves):
    color = _COLORS[i % len(_COLORS)]
    line = " ".join(f"{at_x(s):.1f},{at_y(v):.1f}" for s, v in curve)
    label = html.escape(f"{runs[i].name}: {curve[-1][1]:.6g} at step "
                        f"{curve[-1][0]:,}") if curve else ""
    parts.append(f'<polyline points="{line}" fill=none stroke="{color}" '
                 f"stroke-width=1.6><title>{label}</title></polyline>")
    if len(curve) < 40:
      parts += [f'<circle cx={at_x(s):.1f} cy={at_y(v):.1f} r=2.6 '
                f'fill="{color}"><title>{html.escape(runs[i].name)}: {v:.6g} '
                f"at step {s:,}</title></circle>" for s, v in curve]
  return (f"<figure><figcaption>{html.escape(name)}</figcaption>"
          f'<svg viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'
          "</figure>")


def _samples(predictions) -> str:
  """Shows images with the predictions of the model."""
  names = predictions.get("class_names")
  show = lambda label: html.escape(str(names[label] if names else label))
  cells = []
  for example in predictions["examples"]:
    right = example["label"] == example["prediction"]
    text = f"{show(example['prediction'])} {example['probability']:.0%}"
    if not right:
      text = f"<span class=wrong>{text}</span><br>is {show(example['label'])}"
    cells.append(f'<div><img alt="" src="data:image/png;base64,'
                 f'{html.escape(example["png_base64"])}"><br>{text}</div>')
  return f"<div class=samples>{''.join(cells)}</div>"


def main(args=None) -> int:
  parser = argparse.ArgumentParser(
      prog="python -m big_vision.tools.report", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("workdir", nargs="+", type=os.path.expanduser)
  parser.add_argument("--out", type=os.path.expanduser,
                      help="default: report.html in the first workdir")
  options = parser.parse_args(args)
  try:
    runs = [Run(workdir) for workdir in options.workdir]
  except (FileNotFoundError, ValueError) as error:
    print(error, file=sys.stderr)
    return 2
  out = options.out or os.path.join(options.workdir[0], "report.html")
  try:
    files.write_text(out, draw_report(runs))
  except OSError as error:
    if error.errno in files.DISK_ERRORS:
      raise
    print(f"{out} cannot be written: {error}", file=sys.stderr)
    return 2
  print(f"Wrote {out}; open it in a browser.")
  return 0


if __name__ == "__main__":
  command_line.run_tool(main)
