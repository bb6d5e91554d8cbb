# pylint: disable=line-too-long
r"""MLP-Mixer on ImageNet-1k, from scratch (arXiv:2105.01601).

COMMAND
  python -m big_vision.train --config big_vision/configs/mlp_mixer_i1k.py --workdir gs://BUCKET/mlp_mixer_i1k
  python -m big_vision.tools.plan --config big_vision/configs/mlp_mixer_i1k.py --topology v5e:4x8

  five times shorter:
  python -m big_vision.train --config big_vision/configs/mlp_mixer_i1k.py:epochs=60 --workdir gs://BUCKET/mlp_mixer_i1k_60ep

EXPECTED
  Published, not measured by this project: B/16 76.3 % on the validation set
  after 300 epochs, 2 h 11 min on a TPU v3-128; 70.5 % after 60 epochs, 27 min.

Arguments: variant, batch_size, epochs, runlocal (a few steps of a tiny model).
"""

from big_vision.configs import common
import ml_collections


def get_config(arg=None):
  arg = common.parse_arg(
      arg, variant="B/16", batch_size=4096, epochs=300, runlocal=False)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total_epochs = arg.epochs
  config.num_classes = 1000
  config.loss = "sigmoid_xent"
  config.init_head_bias = -6.9  # The logit of 1 in 1,000.

  labels = "onehot(1000, key='{lbl}', key_result='labels')|keep('image', 'labels')"
  config.input = dict(
      data=dict(name="imagenet2012", split="train[:99%]"),
      batch_size=arg.batch_size if not arg.runlocal else 8,
      cache_raw=not arg.runlocal,
      pp="decode_jpeg_and_inception_crop(224)|flip_lr|randaug(2, 15)"
         "|value_range(-1, 1)|" + labels.format(lbl="label"))
  pp_eval = "decode|resize_small(256)|central_crop(224)|value_range(-1, 1)|"

  config.log_training_steps = 50
  config.ckpt_steps = 1000

  config.model_name = "mlp_mixer"
  # The published numbers are of branches dropped without rescaling; "inverted"
  # keeps the expectation the same in evaluation.
  config.model = dict(
      variant=arg.variant, stoch_depth=0.1, stoch_depth_mode="bigvision")
  if arg.runlocal:
    config.model.update(
        width=32, depth=2, tokens_mlp_dim=16, channels_mlp_dim=128)

  config.grad_clip_norm = 1.0
  config.optax_name = "scale_by_adam"
  config.lr = 1e-3
  config.wd = 1e-4  # In units of the loop: AdamW's 0.1, times lr.
  config.schedule = dict(
      warmup_steps=10_000, decay_type="linear", linear_end=1e-5)
  config.mixup = dict(p=0.5)

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
