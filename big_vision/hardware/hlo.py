"""Reads XLA's text of compiled programs: instructions, sizes and loops."""

from collections.abc import Mapping, Sequence
import math
import re
from typing import NamedTuple

# Bytes of an element by XLA's name of its type; others ("token") have none.
_BYTES = dict(pred=1, s4=.5, u4=.5, s8=1, u8=1, s16=2, u16=2, f16=2, bf16=2,
              s32=4, u32=4, f32=4, s64=8, u64=8, f64=8, c64=8, c128=16)
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"  (?:ROOT )?%([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")
_CALLED = re.compile(
    r"(?:calls|body|condition|to_apply|true_computation|false_computation)="
    r"%([\w.\-]+)|branch_computations=\{([^}]*)\}")


class Instruction(NamedTuple):
  """An instruction, which is a line of a program's text.

  Attributes:
    name: Name, unique in the program.
    opcode: Operation, such as "fusion" or "all-reduce".
    bytes_out: Size of its result in bytes.
    operands: Names of the instructions whose results it reads.
    called: Names of the computations that it calls.
    text: Rest of the line, from the operands on.
  """
  name: str
  opcode: str
  bytes_out: float
  operands: tuple[str, ...]
  called: tuple[str, ...]
  text: str

  @property
  def op_name(self) -> str:
    """Path of the JAX operation that it comes from; "" if unknown."""
    found = re.search(r'op_name="([^"]*)"', self.text)
    return found[1] if found else ""


def parse(text: str) -> dict[str, list[Instruction]]:
  """Returns {name of a computation: its instructions}; the entry is also "".
  """
  computations = {}
  for line in text.splitlines():
    if head := _COMPUTATION.match(line):
      current = computations[head[2]] = []
      if head[1]:
        computations[""] = current
    elif match := _INSTRUCTION.match(line):
      current.append(_parse_instruction(match[1], match[2]))
  return computations


def num_bytes(shape: str) -> float:
  """Returns the bytes of all arrays in a shape or tuple, without padding."""
  return sum(
      _BYTES.get(dtype, 0) * math.prod(int(d) for d in dims.split(",") if d)
      for dtype, dims in _SHAPE.findall(shape))


def _parse_instruction(name: str, text: str) -> Instruction:
  """Parses the part of a line that follows "name = "."""
  found = _OPCODE.search(text, _end_of_tuple(text))
  opcode, start = found[1], found.end()
  operands = text[start:text.index(")", start)]
  called = []
  for one, several in _CALLED.findall(text, start):
    called += [one] if one else re.findall(r"%([\w.\-]+)", several)
  return Instruction(
      name=name, opcode=opcode, bytes_out=num_bytes(text[:start]),
      operands=tuple(re.findall(r"%([\w.\-]+)", operands)),
      called=tuple(called), text=text[start:])


def _end_of_tuple(text: str) -> int:
  """Returns the index at which a tuple shape ends; 0 for other shapes."""
  depth = 0
  for place, char in enumerate(text if text[0] == "(" else ""):
    depth += (char == "(") - (char == ")")
    if not depth:
      return place
  return 0


def group_size(text: str) -> int:
  """Returns the number of devices in a group of `replica_groups`."""
  if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text):
    return int(found[2])
  if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
    return found[1].count(",") + 1
  # The mesh's axes with their sizes, then the axes (or parts of axes, such as
  # "axis":(1)2) along which the group extends.
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    return math.prod(
        int(part or sizes[name]) for name, part in re.findall(
            r"'(\w+)'(?::\(\d+\)(\d+))?", found[2]))
  return 1


def trip_count(
    loop: Instruction,
    computations: Mapping[str, Sequence[Instruction]]) -> int:
  """Returns the number of iterations of a `while`; 1 if it is unknown.

  The CPU compiler notes the number. The TPU compiler does not; there the
  condition of a scan is `i < n`, and n is its only constant.

  Args:
    loop: Instruction with the opcode "while".
    computations: The program, from `parse`.
  """
  if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
    return int(found[1])
  name = re.search(r"condition=%([\w.\-]+)", loop.text)[1]
  condition = computations[name]
  compare = [i for i in condition if i.opcode == "compare"]
  limits = [i for i in condition if i.opcode == "constant"]
  if (len(compare) != 1 or "direction=LT" not in compare[0].text
      or len(limits) != 1 or compare[0].operands[1:] != (limits[0].name,)):
    return 1
  limit = re.match(r"(\d+)\)", limits[0].text)
  return int(limit[1]) if limit else 1
