"""The older name of `prepare_dataset`, which it runs."""

import sys

from big_vision.tools import prepare_dataset

if __name__ == "__main__":
  sys.exit(prepare_dataset.main())
