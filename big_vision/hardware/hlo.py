"""Measures the memory, traffic and collectives of compiled programs.

A program holds the work of one device. XLA's `cost_analysis` counts the body of
a loop once; the number of iterations is read from the program's text. The
arithmetic of all devices is counted before compiling, see `flops.py`.
"""

import collections
from collections.abc import Iterator
import dataclasses
import functools
import math
import re
from typing import NamedTuple

import jax

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all",
               "collective-permute")

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
# Opcodes without traffic of their own; that of the code they call is counted.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast",
         "while", "conditional", "call", "async-start", "async-update",
         "after-all", "partition-id", "replica-id", "iota")


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


class Collective(NamedTuple):
  """A transfer between devices, from the view of one device.

  Attributes:
    kind: One of COLLECTIVES.
    num_bytes: Size in bytes of its operands or its result, whichever is larger.
    group_size: Number of devices that exchange data with each other.
    count: Number of times it runs in one execution of the program.
    op_name: Path of the JAX operation that it comes from; "" if unknown.
  """
  kind: str
  num_bytes: float
  group_size: int
  count: int
  op_name: str

  @property
  def bytes_on_links(self) -> float:
    """Lower bound of the bytes that a device sends, over all executions.

    Among n devices, an all-gather, reduce-scatter or all-to-all of S bytes
    sends S (n - 1) / n, an all-reduce twice as much, and a permutation S.
    """
    if self.kind == "collective-permute":
      return self.num_bytes * self.count
    factor = 2 if self.kind == "all-reduce" else 1
    return (factor * self.num_bytes * (self.group_size - 1)
            / self.group_size * self.count)


@dataclasses.dataclass(frozen=True)
class Program:
  """Figures of a compiled program, per device.

  Attributes:
    compiled: Program, as `jax.jit(fn).lower(*args).compile()` returns it.
  """
  compiled: jax.stages.Compiled

  @property
  def peak_bytes(self) -> int:
    """Peak memory in bytes, arguments and results included."""
    return self.compiled.memory_analysis().peak_memory_in_bytes

  @property
  def argument_bytes(self) -> int:
    """Memory of the arguments in bytes; for a step, the state and a batch."""
    return self.compiled.memory_analysis().argument_size_in_bytes

  @functools.cached_property
  def bytes_accessed(self) -> float:
    """Bytes that all instructions together read and write.

    XLA counts the body of a loop once. Its figure is scaled by the ratio of our
    own counts with and without repetitions.
    """
    once = sum(self._traffic(i) for _, i in self._walk(repeat=False))
    repeated = sum(n * self._traffic(i) for n, i in self._walk())
    return self._cost("bytes accessed") * (repeated / once if once else 1)

  @functools.cached_property
  def collectives(self) -> list[Collective]:
    """All transfers between devices."""
    found = []
    for count, instruction in self._walk(into_fusions=True):
      kind = instruction.opcode.removesuffix("-start")
      if kind in COLLECTIVES:
        ins = sum(self._size(name) for name in instruction.operands)
        out = instruction.bytes_out
        # The result of an asynchronous start holds its operands too.
        if instruction.opcode.endswith("-start") and kind != "all-reduce":
          out -= ins
        found.append(Collective(
            kind=kind, num_bytes=max(ins, out),
            group_size=_group_size(instruction.text), count=count,
            op_name=instruction.op_name))
    return found

  def traffic(self) -> dict[str, float]:
    """Returns {JAX operation: bytes read and written}, the largest first.

    The bytes are our own count, not XLA's.
    """
    by_name = collections.Counter()
    for count, instruction in self._walk():
      by_name[instruction.op_name] += count * self._traffic(instruction)
    return dict(by_name.most_common())

  @functools.cached_property
  def _text(self) -> str:
    return self.compiled.as_text()

  def _cost(self, name: str) -> float:
    cost = self.compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return (cost or {}).get(name, 0.)

  @functools.cached_property
  def _computations(self) -> dict[str, list[Instruction]]:
    """{name: instructions}; the entry computation is also listed as ""."""
    computations = {}
    for line in self._text.splitlines():
      if head := _COMPUTATION.match(line):
        current = computations[head[2]] = []
        if head[1]:
          computations[""] = current
      elif match := _INSTRUCTION.match(line):
        current.append(_parse(match[1], match[2]))
    return computations

  @functools.cached_property
  def _sizes(self) -> dict[str, float]:
    return {i.name: i.bytes_out for instructions in
            self._computations.values() for i in instructions}

  def _size(self, name: str) -> float:
    return self._sizes.get(name, 0)

  def _traffic(self, instruction: Instruction) -> float:
    if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
      return 0
    return instruction.bytes_out + sum(map(self._size, instruction.operands))

  def _walk(self, name: str = "", count: int = 1, *, repeat: bool = True,
            into_fusions: bool = False) -> Iterator[tuple[int, Instruction]]:
    """Yields (number of executions, instruction) for the program's code.

    Args:
      name: Name of the computation to walk through; "" for the entry.
      count: Number of times that the computation runs.
      repeat: Whether to count iterations of loops.
      into_fusions: Whether to enter all called computations, not only those of
        control flow.
    """
    for instruction in self._computations.get(name, ()):
      yield count, instruction
      if instruction.opcode == "while":
        inner = count * (self._trip_count(instruction) if repeat else 1)
      elif into_fusions or instruction.opcode in (
          "call", "conditional", "async-start"):
        inner = count
      else:
        continue
      for called in instruction.called:
        yield from self._walk(
            called, inner, repeat=repeat, into_fusions=into_fusions)

  def _trip_count(self, loop: Instruction) -> int:
    """Returns the number of iterations of a `while`; 1 if it is unknown.

    The CPU compiler notes the number. The TPU compiler does not; there the
    condition of a scan is `i < n`, and n is its only constant.
    """
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
      return int(found[1])
    name = re.search(r"condition=%([\w.\-]+)", loop.text)[1]
    condition = self._computations[name]
    compare = [i for i in condition if i.opcode == "compare"]
    limits = [i for i in condition if i.opcode == "constant"]
    if (len(compare) != 1 or "direction=LT" not in compare[0].text
        or len(limits) != 1 or compare[0].operands[1:] != (limits[0].name,)):
      return 1
    limit = re.match(r"(\d+)\)", limits[0].text)
    return int(limit[1]) if limit else 1


def _num_bytes(shape: str) -> float:
  """Returns the bytes of all arrays in a shape or tuple, without padding."""
  return sum(
      _BYTES.get(dtype, 0) * math.prod(int(d) for d in dims.split(",") if d)
      for dtype, dims in _SHAPE.findall(shape))


def _parse(name: str, text: str) -> Instruction:
  """Parses the part of a line that follows "name = "."""
  found = _OPCODE.search(text, _end_of_tuple(text))
  opcode, start = found[1], found.end()
  operands = text[start:text.index(")", start)]
  called = []
  for one, several in _CALLED.findall(text, start):
    called += [one] if one else re.findall(r"%([\w.\-]+)", several)
  return Instruction(
      name=name, opcode=opcode, bytes_out=_num_bytes(text[:start]),
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


def _group_size(text: str) -> int:
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
