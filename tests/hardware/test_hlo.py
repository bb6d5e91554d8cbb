"""Tests of hlo.py, on pieces of text in XLA's notations."""

from big_vision.hardware import hlo
import pytest


@pytest.mark.parametrize("text, size", [
    ("replica_groups={{0,1,2},{3,4,5}}, x", 3),
    ("replica_groups=[2,4]<=[8], x", 4),
    ("replica_groups=[4,2]<=[2,4]T(1,0), x", 2),
    ("replica_groups=mesh['axis_0'=16,'axis_1'=2] {'axis_0','axis_1'}, x", 32),
    ("replica_groups=mesh['axis_0'=16,'axis_1'=2] {'axis_1'}, x", 2),
    ("replica_groups=mesh['axis_0'=16] {'axis_0':(4)2}, x", 2),
    ("no groups", 1)])
def test_group_size_reads_every_notation_of_xla(text, size):
  assert hlo.group_size(text) == size


def test_num_bytes_of_shapes_and_tuples():
  assert hlo.num_bytes("(f32[2,3]{1,0:T(8,128)}, bf16[4], token[])") == (
      24 + 8)
  assert hlo.num_bytes("f32[]") == 4
  assert hlo.num_bytes("s4[3]") == 1.5
