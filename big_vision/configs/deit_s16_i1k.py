# pylint: disable=line-too-long
r"""ViT-S/16 on ImageNet-1k with the regularization of DeiT (arXiv:2012.12877).

COMMAND
  python -m big_vision.train --config big_vision/configs/deit_s16_i1k.py --workdir gs://BUCKET/deit_s16_i1k
  python -m big_vision.tools.plan --config big_vision/configs/deit_s16_i1k.py --topology v5e:2x4

EXPECTED
  Published, not measured by this project: 79.8 % on the validation set after
  300 epochs.

Each step mixes its images either by mixup or by CutMix. The published recipe
also has random erasing and repeated augmentation, which are missing here, and
another variant of RandAugment.

Arguments: batch_size, epochs, runlocal (a few steps of a tiny model).
"""

from big_vision.configs import common
from big_vision.configs import common_i1k
import ml_collections


def get_config(arg=None):
  arg = common.parse_arg(arg, batch_size=1024, epochs=300, runlocal=False)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total_epochs = arg.epochs
  config.num_classes = 1000
  config.loss = "softmax_xent"

  config.input = common_i1k.get_input(
      "decode_jpeg_and_inception_crop(224)|flip_lr|randaug(2, 9)",
      batch_size=arg.batch_size, runlocal=arg.runlocal, label_smoothing=0.1)
  config.mixup = dict(p=0.8)
  config.cutmix = dict(p=1.0)

  config.log_training_steps = 50
  config.ckpt_steps = 1000

  config.model_name = "vit"
  config.model = dict(
      variant="S/16" if not arg.runlocal else "mu/16", pool_type="tok",
      stoch_depth=0.1, attention="fused")

  config.optax_name = "scale_by_adam"
  config.lr = 5e-4 / 512 * config.input.batch_size
  config.wd = 0.05 * config.lr  # AdamW's decay is multiplied by lr.
  config.schedule = dict(warmup_epochs=5, decay_type="cosine")

  config.evals = common_i1k.get_evals(config.loss, log_steps=2500)
  return config
