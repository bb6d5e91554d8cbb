"""What is said about config files that cannot be used."""

import re

from big_vision import config as config_lib
from big_vision.run import config_files
import pytest

_GOOD = """
import ml_collections
def get_config(arg="none"):
  return ml_collections.ConfigDict(dict(arg=arg))
"""
_NO_ARGUMENTS = _GOOD.replace('arg="none"', "").replace("arg=arg", "arg=0")


def _load(tmp_path, text, argument=""):
  path = tmp_path / "config.py"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return config_files.load(f"{path}{argument}")


def test_arguments_reach_the_config(tmp_path):
  assert _load(tmp_path, _GOOD).arg == "none"
  assert _load(tmp_path, _GOOD, ":a=1:b,c").arg == "a=1:b,c"
  assert _load(tmp_path, _NO_ARGUMENTS).arg == 0


@pytest.mark.parametrize("text, argument, message", [
    ("def get_config(:\n  pass", "",
     r"config.py line 1 is not valid Python: invalid syntax\n  def get_conf"),
    (b"x = '\xff'", "", "config.py line 1 is not valid Python: .*utf-8"),
    (b"x = 1\0", "", "config.py line 1 is not valid Python: .*null bytes"),
    ("x = 1", "", r"config.py does not define get_config\(\)"),
    ("get_config = 3", "", r"config.py does not define get_config\(\)"),
    ("def get_config(): pass", "", "returned NoneType; it must return an ml_"),
    ("def get_config(): return dict(a=1)", "", "returned dict; it must return"),
    (_NO_ARGUMENTS, ":lr=1", "takes no arguments, but '.*:lr=1' gives it some"),
    ("def get_config(arg): pass", "", "needs arguments: write .*py:arg="),
])
def test_mistakes(tmp_path, text, argument, message):
  with pytest.raises(config_lib.ConfigError, match=f"(?s){message}") as caught:
    _load(tmp_path, text, argument)
  assert str(caught.value).count("\n") <= 2


def test_a_mistake_in_a_module_that_it_imports_names_that_module(
    tmp_path, monkeypatch):
  (tmp_path / "helper_of_config.py").write_text("x = 1\ny = = 2\n")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(config_lib.ConfigError, match=(
      "helper_of_config.py line 2 is not valid Python: invalid syntax")):
    _load(tmp_path, "import helper_of_config")


@pytest.mark.parametrize("path", ["missing.py", ".", ""])
def test_files_that_do_not_exist(tmp_path, monkeypatch, path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(config_lib.ConfigError, match=re.escape(
      f"There is no config file {path!r}")):
    config_files.load(path)


def test_errors_of_its_code_pass_and_their_trace_begins_in_it(tmp_path):
  with pytest.raises(ZeroDivisionError) as caught:
    _load(tmp_path, "def get_config():\n  return 1 / 0")
  path = str(tmp_path / "config.py")
  trace = config_files.LoadingFailed(caught.value, path).trace()
  assert trace.tb_frame.f_code.co_filename == path and trace.tb_next is None
