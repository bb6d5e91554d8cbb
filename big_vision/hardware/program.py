"""Measures the memory, traffic and collectives of compiled programs.

A program holds the work of one device. XLA's `cost_analysis` counts the body of
a loop once; the number of iterations is read from the program's text. The
arithmetic of all devices is counted before compiling, see `flops.py`.
"""

import collections
from collections.abc import Iterator
import dataclasses
import functools
from typing import NamedTuple

import jax

from big_vision.hardware import hlo

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all",
               "collective-permute")

# Opcodes without traffic of their own; that of the code they call is counted.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast",
         "while", "conditional", "call", "async-start", "async-update",
         "after-all", "partition-id", "replica-id", "iota")


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
      if instruction.name in self._scattered:
        kind = "reduce-scatter"
      if kind in COLLECTIVES and instruction.name not in self._continued:
        ins = sum(self._size(name) for name in instruction.operands)
        out = instruction.bytes_out
        # The result of an asynchronous start holds its operands too.
        if instruction.opcode.endswith("-start") and kind != "all-reduce":
          out -= ins
        found.append(Collective(
            kind=kind, num_bytes=max(ins, out),
            group_size=hlo.group_size(instruction.text), count=count,
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

  def _cost(self, name: str) -> float:
    cost = self.compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return (cost or {}).get(name, 0.)

  @functools.cached_property
  def _computations(self) -> dict[str, list[hlo.Instruction]]:
    return hlo.parse(self.compiled.as_text())

  @functools.cached_property
  def _scattered(self) -> set[str]:
    """Returns the names of the all-reduces that are really reduce-scatters.

    The TPU compiler writes a reduce-scatter as a fusion of an all-reduce and
    the slice that the device keeps. Outside a fusion, an all-reduce whose
    result is sliced is a real one.
    """
    names = set()
    for body in self._fused():
      for instruction in body:
        users = {i.opcode for i in body if instruction.name in i.operands}
        if instruction.opcode == "all-reduce" and users == {"dynamic-slice"}:
          names.add(instruction.name)
    return names

  @functools.cached_property
  def _continued(self) -> set[str]:
    """Returns the names of the collectives that another one has started.

    The TPU compiler spreads a transfer over the computations that hide it, a
    chain of fusions. Each of them shows the whole transfer; only the first
    passes it to "AsyncCollectiveStart".
    """
    names = set()
    for body in self._fused():
      started = {name for i in body if "AsyncCollectiveStart" in i.text
                 for name in i.operands}
      names |= {i.name for i in body if i.opcode in COLLECTIVES
                and "chain_id=" in i.text and i.name not in started}
    return names

  def _fused(self) -> Iterator[list[hlo.Instruction]]:
    """Yields the instructions of each fusion."""
    for instructions in self._computations.values():
      for instruction in instructions:
        if instruction.opcode == "fusion":
          yield from (self._computations[name] for name in instruction.called)

  @functools.cached_property
  def _sizes(self) -> dict[str, float]:
    return {i.name: i.bytes_out for instructions in
            self._computations.values() for i in instructions}

  def _size(self, name: str) -> float:
    return self._sizes.get(name, 0)

  def _traffic(self, instruction: hlo.Instruction) -> float:
    if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
      return 0
    return instruction.bytes_out + sum(map(self._size, instruction.operands))

  def _walk(
      self, name: str = "", count: int = 1, *, repeat: bool = True,
      into_fusions: bool = False) -> Iterator[tuple[int, hlo.Instruction]]:
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
        inner = count
        if repeat:
          inner *= hlo.trip_count(instruction, self._computations)
      elif into_fusions or instruction.opcode in (
          "call", "conditional", "async-start"):
        inner = count
      else:
        continue
      for called in instruction.called:
        yield from self._walk(
            called, inner, repeat=repeat, into_fusions=into_fusions)
