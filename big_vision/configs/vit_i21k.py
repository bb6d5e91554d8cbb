# pylint: disable=line-too-long
r"""ViT pre-training on ImageNet-21k, as in AugReg (arXiv:2106.10270).

COMMAND
  python -m big_vision.train --config big_vision/configs/vit_i21k.py:variant=B/16 --workdir gs://BUCKET/vit_i21k
  python -m big_vision.tools.plan --config big_vision/configs/vit_i21k.py:variant=B/16 --topology v5e:8x8

  the largest variant, as planned for 1,024 chips:
  python -m big_vision.tools.plan --config big_vision/configs/vit_i21k.py:variant=e/14,batch_size=16384,dtype=bfloat16,preset=fsdp,split=8,remat=dots_with_no_batch_dims_saveable --topology v5p:8x8x16

EXPECTED
  No number of this config is published, and this project measured none.

TFDS does not have ImageNet-21k: prepare it yourself as a dataset "imagenet21k"
with one split, "full", whose "labels" hold the indices of an image's classes,
one or several of 21,843. Few-shot accuracy needs imagenet2012, cifar100 and
oxford_iiit_pet; `fewshot=False` leaves it out. A step that is not finite rolls
the run back to its last checkpoint, at most twice.

Arguments: variant, batch_size, epochs, dtype (of activations), preset (of
sharding), split (number of devices along a second mesh axis, so that fsdp also
splits arrays whose sizes are not multiples of the number of all devices), remat
(a rematerialization policy; blocks are then scanned), fewshot, runlocal (a few
steps of a tiny model).
"""

from big_vision.configs import common
from big_vision.configs import common_i1k
import ml_collections


def get_config(arg=None):
  arg = common.parse_arg(
      arg, variant="B/16", batch_size=4096, epochs=300, dtype="float32",
      preset="replicate", split=1, remat="none", fewshot=True, runlocal=False)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total_epochs = arg.epochs
  config.num_classes = 21_843
  config.loss = "sigmoid_xent"
  config.init_head_bias = -10.0  # The logit of 1 in 22,000.

  pp_common = (
      "|value_range(-1, 1)|onehot(21843, key='labels')|keep('image', 'labels')")
  config.input = dict(
      data=dict(name="imagenet21k", split="full[51200:]"),
      batch_size=arg.batch_size if not arg.runlocal else 8,
      pp="decode_jpeg_and_inception_crop(224)|flip_lr|randaug(2, 15)"
         + pp_common)

  config.log_training_steps = 50
  config.ckpt_steps = 1000
  config.max_rollbacks = 2

  config.model_name = "vit"
  config.model = dict(
      variant=arg.variant if not arg.runlocal else "mu/16", rep_size=True,
      pool_type="tok", dropout=0.1, attention="fused", dtype_mm=arg.dtype,
      scan=arg.remat != "none", remat_policy=arg.remat)
  config.sharding_preset = arg.preset
  if arg.split > 1:
    config.mesh = [("data", -1), ("more", arg.split)]

  config.grad_clip_norm = 1.0
  config.optax_name = "scale_by_adam"
  config.optax = dict(mu_dtype="bfloat16")
  config.lr = 1e-3
  config.wd = 1e-4  # Not multiplied by lr: AdamW's 0.1.
  config.schedule = dict(warmup_steps=10_000, decay_type="cosine")
  config.mixup = dict(p=0.2)

  config.evals = dict()
  config.evals.minival = dict(
      type="classification",
      data=dict(name="imagenet21k", split="full[:51200]"),
      pp_fn="decode|resize_small(256)|central_crop(224)" + pp_common,
      loss_name=config.loss, log_steps=1000)
  if arg.fewshot:
    config.evals.fewshot = common_i1k.get_fewshot(runlocal=arg.runlocal)
  return config
