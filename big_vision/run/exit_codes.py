"""Exit codes: what the shell, SLURM or Kubernetes sees when a run ends."""

DONE = 0
# An error that nobody expected; it is printed with its traceback.
ERROR = 1
# The config or the command line is invalid.
CONFIG = 2
# The loss or a norm is NaN or infinite.
NON_FINITE = 3
# The run hangs, or one of its processes is lost.
HUNG = 4
# A checkpoint cannot be written or read.
STORAGE = 5
# A record cannot be read or decoded.
DATA = 6
# Ctrl-C and SIGTERM, as shells count them: 128 + the number of the signal.
INTERRUPTED = 130
PREEMPTED = 143
