"""The name that `prepare_dataset` has in older instructions; see there."""

import sys

from big_vision.tools import prepare_dataset

if __name__ == "__main__":
  sys.exit(prepare_dataset.main())
