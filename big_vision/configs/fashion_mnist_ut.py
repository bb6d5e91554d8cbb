# pylint: disable=line-too-long
r"""A Universal Transformer on Fashion-MNIST: tokens halt when they are done.

One block of the size of `fashion_mnist.py`'s, applied up to 8 times. What a
step costs is `ponder`, the weight of the ponder cost: the larger it is, the
fewer steps tokens take (`fashion_mnist_ut.py:ponder=0.1`). The mean number of
steps is logged as training_mean_steps. Training computes all 8, evaluation
stops when all tokens of the batch have halted.

COMMAND
  apt-get install dataset-fashion-mnist
  bash run.sh big_vision.tools.prepare_dataset fashion_mnist
  bash run.sh big_vision.train --config big_vision/configs/fashion_mnist_ut.py --workdir workdirs/fashion_mnist_ut

EXPECTED
  Not measured: no run of this length has been made.
"""

from big_vision import config as bvcc
from big_vision.configs import fashion_mnist


def get_config(arg=None):
  arg = bvcc.parse_arg(arg, epochs=20, ponder=0.01)
  config = fashion_mnist.get_config(f"epochs={arg.epochs}")
  config.aux_losses = dict(ponder_cost=arg.ponder)
  config.model_name = "universal_transformer"
  config.model = dict(
      patch_size=(4, 4), width=64, num_heads=4, mlp_dim=256, max_steps=8,
      norm="pre", pool_type="gap", posemb="sincos2d")
  return config
