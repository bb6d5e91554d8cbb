# pylint: disable=line-too-long
r"""A small ViT on Fashion-MNIST, read through TFDS.

COMMAND
  apt-get install dataset-fashion-mnist
  bash run.sh big_vision.tools.prepare_dataset fashion_mnist
  bash run.sh big_vision.train --config big_vision/configs/fashion_mnist.py --workdir workdirs/fashion_mnist

EXPECTED (2 CPU cores)
  91.6 % on the test set (one run), in 64 min while other programs used the cores
  too. At the speed measured without them, 390 images/s, it would be 51 min.
  Both times are without the evaluators "train" and "knn", which were added
  later.

The evaluator "train" measures the loss on training images without augmentation,
"knn" the representation, by the labels of the 20 nearest training images.
"""

from big_vision.configs import common
import ml_collections


def get_config(arg=None):
  arg = common.parse_arg(arg, epochs=20)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total_epochs = arg.epochs
  config.num_classes = 10
  config.loss = "softmax_xent"

  pp_common = (
      "value_range(-1, 1)|onehot(10, key='label', key_result='labels')"
      "|keep('image', 'labels')")
  # Not flipped: all shoes point to the left.
  config.input = dict(
      data=dict(name="fashion_mnist", split="train"), batch_size=128,
      pp="decode(channels=1)|pad_to_shape((30, 30, 1), where='both')"
         f"|random_crop(28)|{pp_common}")

  config.model_name = "vit"
  config.model = dict(
      patch_size=(4, 4), width=64, depth=6, num_heads=4, mlp_dim=256,
      pool_type="gap", posemb="learn")

  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = 2e-3
  config.wd = 1e-4
  config.schedule = dict(decay_type="cosine", warmup_percent=0.05)

  config.log_training_steps = 50
  config.ckpt_epochs = 1

  pp_eval = f"decode(channels=1)|central_crop(28)|{pp_common}"
  test = dict(name="fashion_mnist", split="test")
  config.evals = dict()
  config.evals.test = dict(
      type="classification", data=test, pp_fn=pp_eval,
      loss_name="softmax_xent", log_epochs=1)
  config.evals.train = dict(
      type="mean", pred="loss", pp_fn=pp_eval, log_epochs=1,
      data=dict(name="fashion_mnist", split="train[:20%]"))
  config.evals.knn = dict(
      type="knn", representation_layer="pre_logits", skip_first=True,
      data=test, data_train=dict(name="fashion_mnist", split="train"),
      pp_fn="decode(channels=1)|central_crop(28)|value_range(-1, 1)|keep('image', 'label')")
  return config
