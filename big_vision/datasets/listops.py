"""ListOps: nested lists of digits with an operator each; generated.

  [MAX 2 9 [MIN 4 7 ] 0 ]   is 9

Splits, seeds and reproducibility are those of `sequences.GeneratedSource`.

Vocabulary, `VOCABULARY`: 0 is padding, 1 to 10 are the digits 0 to 9, 11 to 14
open a list with its operator, 15 closes it.
"""

import numpy as np

from big_vision.datasets import core
from big_vision.datasets import sequences

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
VOCABULARY = ("", *"0123456789", *OPERATORS, "]")

_OPEN = 11  # The token of the first operator.
_CLOSE = VOCABULARY.index("]")
# Long Range Arena's: an argument is a list with this probability, else a digit.
_LIST_PROBABILITY = 0.25
_BLOCK = 256  # Random numbers that are drawn at a time.


def listops(
    split: str, num_examples: int, seed: int = 0, min_length: int = 500,
    max_length: int = 2000, max_depth: int = 10, max_args: int = 10,
    min_depth: int | None = None) -> core.Source:
  """Expressions of Long Range Arena's grammar, and their values.

  A list has an operator (the minimum, the maximum, the median rounded down, the
  sum modulo 10) and 2 to `max_args` arguments; all of these are equally likely.
  An argument is a list with probability 1/4 and else a digit, and always a
  digit on level `max_depth`, where the outermost list is on level 1. Of what
  grows so, expressions of other lengths and depths are dropped.

  Examples have
    "tokens": int32[max_length], in 1..15, then padding, 0; `VOCABULARY` tells
      what they stand for, `to_string` writes them.
    "mask": float32[max_length], 1 for tokens, 0 for padding.
    "label": int32[], the value, in 0..9.
    "difficulty": int32[], the depth: the level of the deepest digit, 2 at the
      least.

  Args:
    split: "train", "validation" or "test".
    num_examples: how many; Long Range Arena has 96,000, 2,000 and 2,000.
    seed: see `GeneratedSource`.
    min_length: fewest tokens, at least 4; so many must fit into an expression
      of the lowest depth that is asked for.
    max_length: most tokens.
    max_depth: Depth of the deepest expressions, at least 2.
    max_args: most arguments of one list, at least 2.
    min_depth: None for whatever depths grow; with the lengths above nearly all
      are of depth 10. Otherwise each depth from this one to `max_depth` is
      equally frequent; those of depth d grow as if it were the highest.

  Raises:
    ConfigError: an option out of its range, or expressions that are impossible,
      or hardly ever grow: of depth d, none has fewer than 3 d - 2 tokens.

  Source: arXiv:2011.04006; its grammar is that of arXiv:1804.06028. Differs:
    examples by index instead of one list without repetitions; both lengths are
    included; the parentheses that only make lists binary trees are left out.
  """
  return _ListOps(split, num_examples, seed, min_length, max_length, max_depth,
                  max_args, min_depth)


def to_string(tokens) -> str:
  """"[MAX 2 9 ]" of int[n]; padding is left out."""
  return " ".join(VOCABULARY[token] for token in tokens if token)


def evaluate(tokens) -> int:
  """The value of an expression, int[n] without padding; in 0..9."""
  open_lists, arguments = [], [[]]
  for token in map(int, tokens):
    if token == _CLOSE:
      values, operator = arguments.pop(), open_lists.pop()
      arguments[-1].append(_apply(operator, values))
    elif token >= _OPEN:
      open_lists.append(VOCABULARY[token])
      arguments.append([])
    else:
      arguments[-1].append(token - 1)
  return arguments[0][0]


def _apply(operator, values):
  if operator == "[MIN":
    return min(values)
  if operator == "[MAX":
    return max(values)
  if operator == "[SM":
    return sum(values) % 10
  # Of an even number, the mean of the middle two, rounded down.
  values = sorted(values)
  n = len(values)
  return (values[(n - 1) // 2] + values[n // 2]) // 2


class _ListOps(sequences.GeneratedSource):
  """The source of `listops`."""

  def __init__(self, split, num_examples, seed, min_length, max_length,
               max_depth, max_args, min_depth):
    name = "bv:listops"
    sequences.check_int(name, "max_length", max_length, 4)
    sequences.check_int(name, "max_args", max_args, 2)
    # A list on every level, with the next one and one digit: 3 tokens a level.
    deepest = (max_length + 2) // 3
    sequences.check_int(
        name, "max_depth", max_depth, 2, None if min_depth is None else deepest)
    if min_depth is not None:
      sequences.check_int(name, "min_depth", min_depth, 2, max_depth)
    longest = max_args + 2
    for _ in range((max_depth if min_depth is None else min_depth) - 2):
      longest = 2 + max_args * longest
    sequences.check_int(
        name, "min_length", min_length, 4, min(longest, max_length))
    self._any_depth = min_depth is None
    self._min_length, self._max_length = min_length, max_length
    self._max_args = max_args
    super().__init__(
        name, split, num_examples, seed,
        [max_depth] if min_depth is None else range(min_depth, max_depth + 1),
        num_classes=10)

  def draw(self, rng, difficulty):
    shape, depth = _grow(rng, difficulty, self._max_args, self._max_length)
    if not self._min_length <= len(shape) <= self._max_length:
      return None
    if not self._any_depth and depth != difficulty:
      return None
    # What is rare is the shape, so it is kept until what fills it belongs to
    # the split: the two are independent.
    tokens = np.array(shape, np.int64)
    is_digit, opens = tokens == 1, tokens == _OPEN
    while True:
      tokens[is_digit] = 1 + rng.randint(0, 10, is_digit.sum(), np.int64)
      tokens[opens] = _OPEN + rng.randint(
          0, len(OPERATORS), opens.sum(), np.int64)
      if self.belongs(tokens):
        return tokens

  def solve(self, problem, difficulty):
    levels = np.cumsum(problem >= _OPEN) - 2 * np.cumsum(problem == _CLOSE)
    size = self._max_length
    return {"tokens": sequences.padded(problem, size),
            "mask": (np.arange(size) < len(problem)).astype(np.float32),
            "label": np.int32(evaluate(problem)),
            "difficulty": np.int32(1 + levels.max())}


def _grow(rng, max_depth, max_args, max_length):
  """The shape of an expression, which is a list, and its depth.

  Returns:
    List of tokens, in which every digit is 0 and every operator the first. It
    breaks off where it is longer than `max_length`.
    The depth.
  """
  def numbers():
    while True:
      yield from rng.random_sample(_BLOCK).tolist()
  numbers = numbers()
  # One number decides whether there is a list and then, as what it is within
  # the probability of that, about its arguments.
  per_number = (max_args - 1) / _LIST_PROBABILITY
  shape = [_OPEN]
  missing = [2 + int(next(numbers) * (max_args - 1))]  # Of each open list.
  depth = 2
  while missing and len(shape) <= max_length:
    if len(missing) + 1 == max_depth:  # Only digits are left.
      shape += [1] * missing.pop() + [_CLOSE]
    elif not missing[-1]:
      missing.pop()
      shape.append(_CLOSE)
    else:
      missing[-1] -= 1
      number = next(numbers)
      if number < _LIST_PROBABILITY:
        shape.append(_OPEN)
        missing.append(2 + int(number * per_number))
        depth = max(depth, len(missing) + 1)
      else:
        shape.append(1)
  return shape, depth
