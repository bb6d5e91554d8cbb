# pylint: disable=line-too-long
r"""VQGAN stage 2: a transformer over the codes of a trained fashion_mnist_f4.

COMMAND
  bash run.sh big_vision.train --config big_vision/proj/vqgan/configs/fashion_mnist_gpt.py:stage1=workdirs/fashion_mnist_f4 --workdir workdirs/fashion_mnist_gpt
  bash run.sh big_vision.tools.sample --workdir workdirs/fashion_mnist_gpt --pred "sample(top_k=64)" --label 5

  with the share of samples that an independent classifier recognizes, and a
  Frechet distance in its features:
  bash run.sh big_vision.train --config big_vision/proj/vqgan/configs/fashion_mnist_gpt.py:stage1=workdirs/fashion_mnist_f4,classifier=workdirs/fashion_mnist --workdir workdirs/fashion_mnist_gpt

EXPECTED (one CPU core, 28 min)
  After 4 epochs, one run: 2.71 bits per code, where the frequencies of the codes
  alone give 6.71. A classifier that is right on 91.6 % of the test images
  recognizes 77 % of the samples.

Arguments: stage1 (a workdir), conditional (on the class), classifier (a
workdir), epochs.
"""

from big_vision.configs import common
import ml_collections


def get_config(arg=None):
  arg = common.parse_arg(
      arg, stage1="workdirs/fashion_mnist_f4", conditional=True, classifier="",
      epochs=4)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.trainer = "proj.vqgan.stage2"
  config.stage1 = arg.stage1
  config.total_epochs = arg.epochs

  # The same images as in stage 1: codes depend on the position.
  pp = "decode(channels=1)|pad_to_shape((32, 32, 1), where='both')|value_range(-1, 1)|keep('image', 'label')"
  config.input = dict(
      data=dict(name="fashion_mnist", split="train"), batch_size=64, pp=pp)

  config.model = dict(
      num_classes=10 if arg.conditional else 0, width=64, depth=4, num_heads=4,
      dropout=0.1)
  config.pkeep = 0.95

  config.optax_name = "scale_by_adam"
  config.optax = dict(b1=0.9, b2=0.95)
  config.lr = 1e-3
  config.wd = 1e-5  # AdamW's 0.01.
  config.grad_clip_norm = 1.0
  config.schedule = dict(decay_type="cosine", warmup_percent=0.05)
  config.ema_decay = 0.999

  config.log_training_steps = 50
  config.ckpt_epochs = 1

  test = dict(data=dict(name="fashion_mnist", split="test"), pp_fn=pp,
              log_percent=0.25)
  drawn = dict(
      pred="sample", pred_kw=dict(top_k=64), skip_first=True, num_samples=512)
  config.evals = dict()
  config.evals.test = dict(type="proj.vqgan.bits_per_code", pred="nll", **test)
  config.evals.samples = dict(
      type="proj.vqgan.samples", **test, **drawn)
  if arg.classifier:
    config.evals.samples.update(classifier=arg.classifier, crop=28)
    config.evals.distance = dict(
        type="proj.vqgan.frechet", **test, **drawn, network=dict(
            name="classifier", workdir=arg.classifier, crop=28,
            layers=("pre_logits",)))
  return config
