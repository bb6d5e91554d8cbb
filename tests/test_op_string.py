"""Tests the parsing of "op|op(args)"."""

from big_vision import config as config_lib
from big_vision import op_string
import pytest


def test_pipes_in_quotes_and_brackets_do_not_split():
  ops = op_string.parse(
      "a| b('x|y', \"it's|\") ||c(d={'k|': [1, (2, -3)]}, e=None)|f('\\'|')|g")
  assert [op[:3] for op in ops] == [
      ("a", (), {}), ("b", ("x|y", "it's|"), {}),
      ("c", (), {"d": {"k|": [1, (2, -3)]}, "e": None}),
      ("f", ("'|",), {}), ("g", (), {})]
  assert ops[1].text == "b('x|y', \"it's|\")"
  assert op_string.parse("") == []


@pytest.mark.parametrize("string, message", [
    ("a|b(", "Cannot read 'b\\('"), ("a|b(x)", "not Python literals"),
    ("a({[]: 1})", "not Python literals"), ("a(b=1, b=2)", "given twice"),
    ("3", "not an op"), ("a.b()", "not an op"), ("a(**{'b': 1})", "`\\*\\*`"),
    ("a b", "Cannot read 'a b' in 'a b'")])
def test_errors_quote_the_invalid_piece(string, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    op_string.parse(string)
