# pylint: disable=line-too-long
r"""ViT-S/16 on ImageNet-1k: the plain baseline of arXiv:2205.01580.

COMMAND
  python -m big_vision.train --config big_vision/configs/vit_s16_i1k.py --workdir gs://BUCKET/vit_s16_i1k
  python -m big_vision.tools.plan --config big_vision/configs/vit_s16_i1k.py --topology v5e:2x4

  on every worker of a TPU slice:
  bash big_vision/run_tpu.sh big_vision.train --config big_vision/configs/vit_s16_i1k.py --workdir gs://BUCKET/vit_s16_i1k

EXPECTED
  Published, not measured by this project: 76.5 % on the validation set after
  90 epochs, in 6 to 7 h on a TPU v3-8.

Arguments: batch_size, epochs, runlocal (a few steps of a tiny model).
"""

from big_vision.configs import common
from big_vision.configs import common_i1k
import ml_collections


def get_config(arg=None):
  arg = common.parse_arg(arg, batch_size=1024, epochs=90, runlocal=False)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total_epochs = arg.epochs
  config.num_classes = 1000
  config.loss = "softmax_xent"

  config.input = common_i1k.get_input(
      "decode_jpeg_and_inception_crop(224)|flip_lr|randaug(2, 10)",
      batch_size=arg.batch_size, runlocal=arg.runlocal)

  config.log_training_steps = 50
  config.ckpt_steps = 1000

  config.model_name = "vit"
  config.model = dict(
      variant="S/16" if not arg.runlocal else "mu/16", rep_size=True,
      pool_type="gap", posemb="sincos2d", attention="fused")

  config.grad_clip_norm = 1.0
  config.optax_name = "scale_by_adam"
  config.optax = dict(mu_dtype="bfloat16")
  config.lr = 1e-3
  config.wd = 1e-4  # Not multiplied by lr: AdamW's 0.1.
  config.schedule = dict(warmup_steps=10_000, decay_type="cosine")
  config.mixup = dict(p=0.2)

  config.evals = common_i1k.get_evals(config.loss, log_steps=2500)
  return config
