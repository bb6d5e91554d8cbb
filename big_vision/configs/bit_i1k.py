# pylint: disable=line-too-long
r"""BiT, a ResNet with GroupNorm, on ImageNet-1k (arXiv:1912.11370).

COMMAND
  python -m big_vision.train --config big_vision/configs/bit_i1k.py --workdir gs://BUCKET/bit_i1k
  python -m big_vision.tools.plan --config big_vision/configs/bit_i1k.py --topology v5e:8x8

  as a ResNeXt-50 32x4d:
  python -m big_vision.train --config big_vision/configs/bit_i1k.py:groups=32,group_width=4 --workdir gs://BUCKET/resnext_i1k

EXPECTED
  Published, not measured by this project: R50x1 takes 32 min for 90 epochs on
  a TPU v3-128. No accuracy was published with this config.

Arguments: depth (26, 50, 101, 152 or 200), width, groups, group_width (see
`models/bit.py`), batch_size, epochs, runlocal (a few steps of a tiny model).
"""

from big_vision.configs import common
from big_vision.configs import common_i1k
import ml_collections


def get_config(arg=None):
  arg = common.parse_arg(
      arg, depth=50, width=1.0, groups=1, group_width=None, batch_size=4096,
      epochs=90, runlocal=False)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total_epochs = arg.epochs
  config.num_classes = 1000
  config.loss = "softmax_xent"

  config.input = common_i1k.get_input(
      "decode_jpeg_and_inception_crop(224)|flip_lr",
      batch_size=arg.batch_size, runlocal=arg.runlocal)

  config.log_training_steps = 50
  config.ckpt_steps = 1000

  config.model_name = "bit"
  if arg.runlocal:
    config.model = dict(depth=(1, 1), width=0.5)
  else:
    config.model = dict(
        depth=arg.depth, width=arg.width, groups=arg.groups,
        group_width=arg.group_width)

  config.grad_clip_norm = 1.0
  config.optax_name = "big_vision.momentum_hp"
  # Both are proportional to the batch size; tune them when changing it.
  config.lr = 0.1 / 256 * config.input.batch_size
  config.wd = 1e-4 / 256 * config.input.batch_size
  config.schedule = dict(warmup_steps=1000, decay_type="cosine")

  config.evals = common_i1k.get_evals(config.loss, log_steps=1000)
  return config
