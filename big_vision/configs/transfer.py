# pylint: disable=line-too-long
r"""Fine-tunes a published model, or one of yours, on a small dataset.

COMMAND
  python -m big_vision.train --config big_vision/configs/transfer.py:model=vit-i21k-augreg-b/32,dataset=cifar10,crop=resmall_crop --workdir workdirs/transfer --config.lr=0.03

  from your own weights (.npz or .safetensors):
  python -m big_vision.train --config big_vision/configs/transfer.py:dataset=cifar100,init=PATH.npz,variant=S/16 --workdir workdirs/transfer

EXPECTED
  Published, not measured by this project, B/32 AugReg on the test sets: CIFAR-10
  98.55 %, CIFAR-100 91.35 %, Pets 93.78 %, Flowers 99.43 %.

The checkpoint with the best accuracy on the part of the training set that is
held out, "val", is kept in WORKDIR/checkpoints_best.

Arguments: model (one of MODELS), or init and variant; dataset (one of DATASETS);
crop (inception_crop or resmall_crop); batch_size; steps; runlocal (a few steps
of a tiny model).
"""

from big_vision.configs import common
import ml_collections

# Argument: name that `vit.load` knows, arguments of the model.
MODELS = {
    "vit-i21k-augreg-b/32": (
        "howto-i21k-B/32", dict(variant="B/32", pool_type="tok")),
    "vit-i21k-augreg-l/16": (
        "howto-i21k-L/16", dict(variant="L/16", pool_type="tok")),
    "vit-s16": ("i1k-s16-300ep", dict(
        variant="S/16", pool_type="gap", posemb="sincos2d", rep_size=True)),
}
# Argument: number of classes; splits for training, validation, test.
DATASETS = {
    "cifar10": (10, "train[:98%]", "train[98%:]", "test"),
    "cifar100": (100, "train[:98%]", "train[98%:]", "test"),
    "oxford_iiit_pet": (37, "train[:90%]", "train[90%:]", "test"),
    "oxford_flowers102": (102, "train[:90%]", "train[90%:]", "test"),
    "imagenet2012": (1000, "train[:99%]", "train[99%:]", "validation"),
}


def get_config(arg=None):
  arg = common.parse_arg(
      arg, model="vit-i21k-augreg-b/32", init="", variant="",
      dataset="cifar10", crop="resmall_crop", batch_size=512, steps=10_000,
      runlocal=False)
  num_classes, train, val, test = DATASETS[arg.dataset]
  init, model = MODELS[arg.model]
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.num_classes = num_classes
  config.total_steps = arg.steps if not arg.runlocal else 10
  config.loss = "softmax_xent"

  high, low = (448, 384) if arg.dataset == "imagenet2012" else (256, 224)
  crop = {
      "inception_crop": f"inception_crop({low})",
      "resmall_crop": f"resize_small({high})|random_crop({low})"}[arg.crop]
  pp_common = (
      f"|value_range(-1, 1)|onehot({num_classes}, key='label', "
      "key_result='labels')|keep('image', 'labels')")
  config.input = dict(
      data=dict(name=arg.dataset, split=train),
      batch_size=arg.batch_size if not arg.runlocal else 8,
      pp=f"decode|{crop}|flip_lr{pp_common}")

  config.log_training_steps = 10
  config.ckpt_steps = 1000
  config.keep_best = dict(metric="val/prec@1", mode="max")

  config.model_name = "vit"
  if arg.runlocal:
    config.model = dict(variant="mu/32", pool_type="tok")
  else:
    config.model = model
    if arg.variant:
      config.model.variant = arg.variant
    config.model_init = arg.init or init
    config.model_load = dict(dont_load=["head/kernel", "head/bias"])

  config.optax_name = "big_vision.momentum_hp"
  config.grad_clip_norm = 1.0
  config.wd = None  # Decay towards zero would undo the pre-training.
  config.lr = 0.003
  config.schedule = dict(decay_type="cosine", warmup_steps=500)

  def get_eval(split):
    return dict(
        type="classification", data=dict(name=arg.dataset, split=split),
        pp_fn=f"decode|resize({low}){pp_common}", loss_name=config.loss,
        log_steps=100)
  config.evals = dict(val=get_eval(val), test=get_eval(test))
  return config
