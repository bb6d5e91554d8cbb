"""Runs `prepare_dataset` by its older name."""

from big_vision.run import command_line
from big_vision.tools import prepare_dataset

if __name__ == "__main__":
  command_line.run_tool(prepare_dataset.main)
