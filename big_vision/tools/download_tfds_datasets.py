"""Runs `prepare_dataset` by its older name."""

import sys

from big_vision.tools import prepare_dataset

if __name__ == "__main__":
  sys.exit(prepare_dataset.main())
