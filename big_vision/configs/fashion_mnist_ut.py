# pylint: disable=line-too-long
r"""A Universal Transformer on Fashion-MNIST: tokens halt when they are done.

One block of the size of `fashion_mnist.py`'s, applied up to 8 times. What a
step costs is `ponder`, the weight of the ponder cost: the larger it is, the
fewer steps tokens take (`fashion_mnist_ut.py:ponder=0.1`). The mean number of
steps is logged as training_mean_steps. Training computes all 8, evaluation
stops when all tokens of the batch have halted.

COMMAND
  apt-get install dataset-fashion-mnist
  bash run.sh big_vision.tools.prepare_dataset fashion_mnist
  bash run.sh big_vision.train --config big_vision/configs/fashion_mnist_ut.py --workdir workdirs/fashion_mnist_ut

EXPECTED
  Not measured: no run of this length has been made.
"""

from big_vision import config as bvcc
import ml_collections


def get_config(arg=None):
  arg = bvcc.parse_arg(arg, epochs=10, ponder=0.01)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total_epochs = arg.epochs
  config.num_classes = 10
  config.loss = "softmax_xent"
  config.aux_losses = dict(ponder_cost=arg.ponder)

  pp_common = (
      "value_range(-1, 1)|onehot(10, key='label', key_result='labels')"
      "|keep('image', 'labels')")
  config.input = dict(
      data=dict(name="fashion_mnist", split="train"), batch_size=256,
      pp="decode(channels=1)|pad_to_shape((32, 32, 1), where='both')"
         f"|random_crop(28)|flip_lr|{pp_common}")

  config.model_name = "universal_transformer"
  config.model = dict(
      patch_size=(7, 7), width=96, num_heads=3, mlp_dim=384, max_steps=8,
      norm="pre", pool_type="gap", posemb="sincos2d")

  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = 1e-4
  config.schedule = dict(decay_type="cosine", warmup_percent=0.1)

  config.log_training_steps = 50
  config.ckpt_epochs = 1

  config.evals = dict()
  config.evals.test = dict(
      type="classification",
      data=dict(name="fashion_mnist", split="test"),
      pp_fn=f"decode(channels=1)|central_crop(28)|{pp_common}",
      loss_name="softmax_xent", log_epochs=1)
  return config
