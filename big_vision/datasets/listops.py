"""ListOps, generated: nested lists of digits, each list with an operator.

  [MAX 2 9 [MIN 4 7 ] 0 ]   is 9

`generated` says how examples, splits and seeds are made.

In `VOCABULARY`, token 0 is padding, 1 to 10 are the digits 0 to 9, 11 to 14
open a list and name its operator, and 15 closes a list.
"""

import numpy as np

from big_vision import ranges
from big_vision.datasets import core
from big_vision.datasets import generated

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
VOCABULARY = ("", *"0123456789", *OPERATORS, "]")

_OPEN = 11  # The token of the first operator.
_CLOSE = VOCABULARY.index("]")
# Probability that an argument is a list and not a digit, from Long Range Arena.
_LIST_PROBABILITY = 0.25
_BLOCK = 256  # Number of random numbers that are drawn at a time.


def listops(
    split: str, num_examples: ranges.Count, seed: ranges.Seed = 0,
    min_length: ranges.Count = 500, max_length: ranges.Count = 2000,
    max_depth: ranges.Count = 10, max_args: ranges.Count = 10,
    min_depth: ranges.Count | None = None) -> core.Source:
  """Opens expressions of Long Range Arena's grammar, and their values.

  A list has an operator (the minimum, the maximum, the median rounded down, or
  the sum modulo 10) and 2 to `max_args` arguments; all operators and all
  numbers of arguments are equally likely. An argument is a list with
  probability 1/4, otherwise a digit; on level `max_depth` it is always a digit.
  The outermost list is on level 1. Expressions outside the wanted range of
  lengths or depths are discarded.

  Examples have
    "tokens": int32[max_length], tokens of `VOCABULARY` in 1..15, then padding,
      0; `to_string` writes them out.
    "mask": float32[max_length], 1 for tokens, 0 for padding.
    "label": int32[], the value, in 0..9.
    "difficulty": int32[], the depth, which is the level of the deepest digit;
      at least 2.

  Args:
    split: "train", "validation" or "test".
    num_examples: Number of examples; Long Range Arena has 96,000, 2,000 and
      2,000.
    seed: Seed of the examples; see `generated.GeneratedSource`.
    min_length: Smallest number of tokens, at least 4. Expressions of the lowest
      depth asked for must be able to have that many.
    max_length: Largest number of tokens.
    max_depth: Depth of the deepest expressions, at least 2.
    max_args: Largest number of arguments of a list, at least 2.
    min_depth: None to accept depths as they occur, which with the default
      lengths means depth 10 nearly always. Otherwise each depth from this one
      to `max_depth` is equally frequent, and expressions of depth d are drawn
      with d in place of `max_depth`.

  Raises:
    ConfigError: An option is out of its range, or such expressions are
      impossible or too rare. (An expression of depth d has at least 3 d - 2
      tokens.)

  Source: arXiv:2011.04006, whose grammar is that of arXiv:1804.06028. Examples
    are drawn by index instead of from one list without repetitions, both bounds
    of the length are included, and the parentheses that only turn lists into
    binary trees are omitted.
  """
  return _ListOps(
      split=split, num_examples=num_examples, seed=seed, min_length=min_length,
      max_length=max_length, max_depth=max_depth, max_args=max_args,
      min_depth=min_depth)


def to_string(tokens) -> str:
  """Writes int[n] out as, for example, "[MAX 2 9 ]", without padding."""
  return " ".join(VOCABULARY[token] for token in tokens if token)


def evaluate(tokens) -> int:
  """Returns the value, in 0..9, of an expression, int[n] without padding."""
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
  """Applies an operator to the values of its arguments."""
  if operator == "[MIN":
    return min(values)
  if operator == "[MAX":
    return max(values)
  if operator == "[SM":
    return sum(values) % 10
  # The median of an even number of values is the mean of the middle two,
  # rounded down.
  values = sorted(values)
  n = len(values)
  return (values[(n - 1) // 2] + values[n // 2]) // 2


class _ListOps(generated.GeneratedSource):
  """The source of `listops`."""

  def __init__(self, *, split, num_examples, seed, min_length, max_length,
               max_depth, max_args, min_depth):
    name = "bv:listops"
    generated.check_int(name, "max_length", max_length, 4)
    generated.check_int(name, "max_args", max_args, 2)
    # The deepest expression of a length has on every level a list of only the
    # next list and one digit, which takes 3 tokens a level.
    deepest = (max_length + 2) // 3
    generated.check_int(
        name, "max_depth", max_depth, 2, None if min_depth is None else deepest)
    if min_depth is not None:
      generated.check_int(name, "min_depth", min_depth, 2, max_depth)
    longest = max_args + 2
    for _ in range((max_depth if min_depth is None else min_depth) - 2):
      longest = 2 + max_args * longest
    generated.check_int(
        name, "min_length", min_length, 4, min(longest, max_length))
    self._any_depth = min_depth is None
    self._min_length, self._max_length = min_length, max_length
    self._max_args = max_args
    super().__init__(
        name=name, split=split, num_examples=num_examples, seed=seed,
        difficulties=([max_depth] if min_depth is None
                      else range(min_depth, max_depth + 1)),
        num_classes=10)

  def draw(self, rng, difficulty):
    shape, depth = _grow(rng, difficulty, self._max_args, self._max_length)
    if not self._min_length <= len(shape) <= self._max_length:
      return None
    if not self._any_depth and depth != difficulty:
      return None
    # A fitting shape is rare, so it is kept, and filled with other tokens until
    # the expression belongs to the split. The split is independent of the
    # shape, so this does not change the distribution.
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
    return {"tokens": generated.padded(problem, size),
            "mask": (np.arange(size) < len(problem)).astype(np.float32),
            "label": np.int32(evaluate(problem)),
            "difficulty": np.int32(1 + levels.max())}


def _grow(rng, max_depth, max_args, max_length):
  """Draws the shape of an expression, which is a list.

  Returns:
    List of tokens, in which every digit is 0 and every operator is the first
    one; it is cut off once it is longer than `max_length`.
    Depth of the expression.
  """
  def numbers():
    while True:
      yield from rng.random_sample(_BLOCK).tolist()
  numbers = numbers()
  # One random number decides whether an argument is a list. If it is, the
  # number is uniform below that probability, and so also decides how many
  # arguments the list has.
  per_number = (max_args - 1) / _LIST_PROBABILITY
  shape = [_OPEN]
  # Number of arguments that each open list still lacks, the outermost first.
  missing = [2 + int(next(numbers) * (max_args - 1))]
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
