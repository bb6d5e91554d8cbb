"""The report is valid HTML, loads nothing, and shows everything."""

import html.parser
import json

from big_vision import config as config_lib
from big_vision.run import workdir as workdir_lib
from big_vision.tools import report
import pytest


class _Parser(html.parser.HTMLParser):

  def __init__(self, text):
    super().__init__()
    self.tags, self.links, self.text = [], [], ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.links += [v for k, v in attrs if k in ("src", "href") and v]

  def handle_data(self, data):
    self.text += data


def _workdir(root, name, config, rows, predictions=None):
  path = root / name
  path.mkdir()
  workdir_lib.store_config(str(path), config_lib.Config(config))
  (path / "metrics.jsonl").write_text(
      "".join(json.dumps(row) + "\n" for row in rows))
  if predictions:
    (path / "predictions.json").write_text(json.dumps(predictions))
  return str(path)


def _rows(offset=0.):
  return [{"step": 0, "val/prec@1": .1}] + [
      {"step": s, "training_loss": 1 / s + offset, "val/prec@1": .1 * s,
       "img/sec": 100. * s, "uptime": s} for s in (1, 2, 3)]


def test_a_report_of_one_run(tmp_path, capsys):
  predictions = {"class_names": ["cat", "<dog>"], "examples": [
      {"png_base64": "AAAA", "label": 1, "prediction": 0, "probability": .75}]}
  workdir = _workdir(tmp_path, "a<b>", {"lr": 1}, _rows(), predictions)
  assert report.main([workdir]) == 0
  assert "report.html" in capsys.readouterr().out
  page = _Parser((tmp_path / "a<b>" / "report.html").read_text())
  assert page.links == ["data:image/png;base64,AAAA"]
  assert "a<b>" in page.text and "b" not in page.tags and "dog" not in page.tags
  for words in ("val/prec@1", "training_loss", "0.3000", "200", "3s",
                "cat 75%", "is <dog>"):
    assert words in page.text, words
  assert page.tags.count("svg") == 4  # uptime, speed, loss, accuracy.


def test_a_report_of_several_runs_shows_how_they_differ(tmp_path):
  runs = [
      _workdir(tmp_path, "one", {"lr": 1, "model": {"width": 8}}, _rows()),
      _workdir(tmp_path, "two", {"lr": 2, "model": {"width": 8}, "wd": 3},
               _rows(.5) + [{"step": 4, "training_loss": "nan"}]),
      _workdir(tmp_path, "three", {"lr": 1, "model": {"width": 8}}, [])]
  out = tmp_path / "all.html"
  assert report.main([*runs, "--out", str(out)]) == 0
  text = out.read_text()
  page = _Parser(text)
  assert not page.links and "nan" not in page.text
  for words in ("lr", "wd", "absent", *runs):
    assert words in page.text
  assert "model.width" not in page.text
  assert text.count("<polyline") == 3 * 4
  for point in text.split('points="')[1:]:
    for pair in point.split('"')[0].split():
      x, y = map(float, pair.split(","))
      assert 0 <= x <= 380 and 0 <= y <= 220


def test_a_directory_without_a_run_is_named(tmp_path, capsys):
  assert report.main([str(tmp_path)]) == 2
  assert "no config.json" in capsys.readouterr().err


@pytest.mark.parametrize("file, text, message", [
    ("config.json", b"[1, 2]", "config.json is not a config in JSON: it holds "
     "a list"),
    ("config.json", b"\xff\xfe", "config.json is not a config in JSON"),
    ("metrics.jsonl", b"[1]\n{}\n", "metrics.jsonl line 1 is damaged"),
    ("metrics.jsonl", b'{"loss": 1}\n{}\n', "line 1 is damaged (it has no s"),
    ("metrics.jsonl", b'{"step": "x"}\n{}\n', "metrics.jsonl line 1 is dama"),
    ("metrics.jsonl", b'{"step": 1, "a": [2]}\n{}\n', "line 1 is damaged"),
    ("metrics.jsonl", b"\xff\n{}\n", "metrics.jsonl line 1 is damaged"),
    ("predictions.json", b"{", "predictions.json does not hold predictions"),
    ("predictions.json", b"[]", "predictions.json does not hold predictions"),
    ("predictions.json", b"{}", "predictions.json does not hold predictions"),
    ("predictions.json", b'{"examples": [{"label": 1, "prediction": "x", '
     b'"probability": "y"}]}', "predictions.json does not hold predictions")])
def test_broken_workdirs_are_named(tmp_path, capsys, file, text, message):
  workdir = _workdir(tmp_path, "run", {"lr": 1}, _rows())
  (tmp_path / "run" / file).write_bytes(text)
  assert report.main([workdir]) == 2
  said = capsys.readouterr().err
  assert message in said and workdir in said and "Traceback" not in said


def test_a_report_that_cannot_be_written(tmp_path, capsys):
  workdir = _workdir(tmp_path, "run", {"lr": 1}, _rows())
  assert report.main([workdir, "--out", str(tmp_path / "no" / "a.html")]) == 2
  assert "a.html cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("low, high, expected", [
    (0, 1, [0, .5, 1]), (0, 1123, [0, 500, 1000]),
    (2.1, 2.9, [2.2, 2.4, 2.6, 2.8]), (-3, 3, [-2, 0, 2])])
def test_ticks_are_round(low, high, expected):
  assert report._ticks(low, high) == pytest.approx(expected)
