# pylint: disable=line-too-long
r"""ViT-S/16 on ImageNet-1k: the plain baseline of arXiv:2205.01580.

COMMAND
  python -m big_vision.train --config big_vision/configs/vit_s16_i1k.py --workdir gs://BUCKET/vit_s16_i1k
  python -m big_vision.tools.plan --config big_vision/configs/vit_s16_i1k.py --topology v5e:2x4

  on every worker of a TPU slice:
  bash big_vision/run_tpu.sh big_vision.train --config big_vision/configs/vit_s16_i1k.py --workdir gs://BUCKET/vit_s16_i1k

EXPECTED
  Published, not measured by this project: 76.5 % on the validation set after
  90 epochs, 6-7 h on a TPU v3-8.

Arguments: batch_size, epochs, runlocal (a few steps of a tiny model).
"""

from big_vision.configs import common
import ml_collections


def get_config(arg=None):
  arg = common.parse_arg(arg, batch_size=1024, epochs=90, runlocal=False)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total_epochs = arg.epochs
  config.num_classes = 1000
  config.loss = "softmax_xent"

  labels = "onehot(1000, key='{lbl}', key_result='labels')|keep('image', 'labels')"
  config.input = dict(
      data=dict(name="imagenet2012", split="train[:99%]"),
      batch_size=arg.batch_size if not arg.runlocal else 8,
      cache_raw=not arg.runlocal,
      pp="decode_jpeg_and_inception_crop(224)|flip_lr|randaug(2, 10)"
         "|value_range(-1, 1)|" + labels.format(lbl="label"))
  pp_eval = "decode|resize_small(256)|central_crop(224)|value_range(-1, 1)|"

  config.log_training_steps = 50
  config.ckpt_steps = 1000

  config.model_name = "vit"
  config.model = dict(
      variant="S/16" if not arg.runlocal else "mu/16", rep_size=True,
      pool_type="gap", posemb="sincos2d",
      attention="fused")

  config.grad_clip_norm = 1.0
  config.optax_name = "scale_by_adam"
  config.optax = dict(mu_dtype="bfloat16")
  config.lr = 1e-3
  config.wd = 1e-4  # In units of the loop: AdamW's 0.1, times lr.
  config.schedule = dict(warmup_steps=10_000, decay_type="cosine")
  config.mixup = dict(p=0.2)

  def get_eval(split, dataset="imagenet2012", lbl="label"):
    return dict(
        type="classification", data=dict(name=dataset, split=split),
        pp_fn=pp_eval + labels.format(lbl=lbl), loss_name=config.loss,
        log_steps=2500)
  config.evals = dict()
  config.evals.train = get_eval("train[:2%]")
  config.evals.minival = get_eval("train[99%:]")
  config.evals.val = get_eval("validation")
  config.evals.v2 = get_eval("test", dataset="imagenet_v2")
  config.evals.real = get_eval(
      "validation", dataset="imagenet2012_real", lbl="real_label")
  return config
