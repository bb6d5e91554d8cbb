# pylint: disable=line-too-long
r"""A small ViT learns handwritten digits, or the pictures in a folder of yours.

COMMAND
  bash run.sh big_vision.train --config big_vision/configs/quickstart.py --workdir workdirs/quickstart

  on your own pictures, with one subfolder for each class:
  bash run.sh big_vision.train --config big_vision/configs/quickstart.py:data=PATH/TO/FOLDER --workdir workdirs/mine

EXPECTED (digits, 2 CPU cores)
  98.6 % on the held-out digits (98.61 % for each of the seeds 0, 1, 2), in
  1 min 27 s; 2 min 40 s to 3 min 36 s while other programs used the cores too.

Arguments: data ("digits" or a folder), epochs, and size (of the images, in
pixels). The defaults of the last two depend on the data. The digits are the
1,797 images of 8x8 pixels that come with scikit-learn; a fixed random fifth is
held out.
"""

from big_vision.configs import common
from big_vision.datasets import folder
import ml_collections


def get_config(arg=None):
  arg = common.parse_arg(arg, data="digits", epochs=0, size=0)
  config = ml_collections.ConfigDict()
  config.seed = 0

  if arg.data == "digits":
    config.num_classes = 10
    source, held_out = dict(name="bv:digits"), "test"
    # Scaled or shifted digits are still the same digits; mirrored ones are not.
    train = "value_range(-1, 1, 0, 16)|inception_crop(16, area_min=50, antialias=True)"
    test = "value_range(-1, 1, 0, 16)|resize(16)"
    patch = 4
    config.total_epochs = arg.epochs or 100
    config.input = dict(batch_size=128)
  else:
    found = folder.scan(arg.data)
    config.num_classes = len(found.class_names)
    source, held_out = dict(name="bv:folder", path=arg.data), found.held_out
    size = arg.size or min(128, max(32, min(found.image_size) // 32 * 32))
    train = f"decode|inception_crop({size}, area_min=30, antialias=True)|flip_lr|value_range(-1, 1)"
    test = f"decode|resize_small({size}, antialias=True)|central_crop({size})|value_range(-1, 1)"
    patch = size // 8
    config.total_epochs = arg.epochs or 50
    config.input = dict(batch_size=32)

  labels = f"onehot({config.num_classes}, key='label', key_result='labels')"
  keep = "keep('image', 'labels')"
  config.input.data = dict(**source, split="train")
  config.input.pp = f"{train}|{labels}|{keep}"

  config.model_name = "vit"
  config.model = dict(
      patch_size=(patch, patch), width=64, depth=4, num_heads=4, mlp_dim=256,
      pool_type="gap", posemb="sincos2d")

  config.loss = "softmax_xent"
  config.optax_name = "scale_by_adam"
  config.optax = dict(b2=0.99)
  config.grad_clip_norm = 1.0
  config.lr = 2e-3
  config.wd = 1e-3
  config.schedule = dict(decay_type="cosine", warmup_percent=0.1)

  config.log_training_epochs = 5
  config.ckpt_epochs = 25

  held_out = dict(data=dict(**source, split=held_out),
                  pp_fn=f"{test}|{labels}|{keep}")
  config.evals = dict()
  config.evals.test = dict(
      type="classification", loss_name="softmax_xent", log_epochs=25,
      **held_out)
  config.evals.samples = dict(
      type="predictions", outfile="{workdir}/predictions.json",
      skip_first=True, **held_out)
  return config
