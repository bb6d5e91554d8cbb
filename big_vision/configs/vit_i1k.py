# pylint: disable=line-too-long
r"""ViT on ImageNet-1k with the augmentation and regularization of AugReg.

COMMAND
  python -m big_vision.train --config big_vision/configs/vit_i1k.py:variant=B/16,aug=medium1 --workdir gs://BUCKET/vit_i1k
  python -m big_vision.tools.plan --config big_vision/configs/vit_i1k.py:variant=B/16,aug=medium1 --topology v5e:4x8

EXPECTED
  Published, not measured by this project: B/16 about 79 % on the validation set
  after 300 epochs.

Arguments: variant, aug (none, light1, light2, medium1, medium2, strong1 or
strong2, as in arXiv:2106.10270), batch_size, epochs, runlocal (a few steps of a
tiny model).
"""

from big_vision.configs import common
from big_vision.configs import common_i1k
import ml_collections

# From arXiv:2106.10270: (layers, magnitude) of RandAugment, alpha of mixup.
AUGMENTATION = dict(
    none=((0, 0), 0.0), light1=((2, 0), 0.0), light2=((2, 10), 0.2),
    medium1=((2, 15), 0.2), medium2=((2, 15), 0.5), strong1=((2, 20), 0.5),
    strong2=((2, 20), 0.8))


def get_config(arg=None):
  arg = common.parse_arg(
      arg, variant="B/16", aug="medium1", batch_size=4096, epochs=300,
      runlocal=False)
  (layers, magnitude), mixup = AUGMENTATION[arg.aug]
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total_epochs = arg.epochs
  config.num_classes = 1000
  config.loss = "sigmoid_xent"
  config.init_head_bias = -6.9  # The logit of 1 in 1,000.

  randaug = f"|randaug({layers}, {magnitude})" if layers else ""
  config.input = common_i1k.get_input(
      f"decode_jpeg_and_inception_crop(224)|flip_lr{randaug}",
      batch_size=arg.batch_size, runlocal=arg.runlocal)

  config.log_training_steps = 50
  config.ckpt_steps = 1000

  config.model_name = "vit"
  config.model = dict(
      variant=arg.variant if not arg.runlocal else "mu/16", rep_size=True,
      pool_type="tok", attention="fused")

  config.grad_clip_norm = 1.0
  config.optax_name = "scale_by_adam"
  config.optax = dict(mu_dtype="bfloat16")
  config.lr = 1e-3
  config.wd = 1e-4  # Not multiplied by lr: AdamW's 0.1.
  config.schedule = dict(warmup_steps=10_000, decay_type="cosine")
  if mixup:
    config.mixup = dict(p=mixup)

  config.evals = common_i1k.get_evals(
      config.loss, log_steps=2500, names=("train", "minival", "val", "real"))
  return config
