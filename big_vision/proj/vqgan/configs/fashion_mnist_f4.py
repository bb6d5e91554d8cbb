# pylint: disable=line-too-long
r"""VQGAN stage 1 on Fashion-MNIST, padded to 32 x 32: 8 x 8 codes per image.

COMMAND
  bash run.sh big_vision.tools.prepare_dataset fashion_mnist
  bash run.sh big_vision.train --config big_vision/proj/vqgan/configs/fashion_mnist_f4.py --workdir workdirs/fashion_mnist_f4

  with features of a classifier that configs/fashion_mnist.py trained:
  bash run.sh big_vision.train --config big_vision/proj/vqgan/configs/fashion_mnist_f4.py:classifier=workdirs/fashion_mnist --workdir workdirs/fashion_mnist_f4_features

EXPECTED (one CPU core, 27 and 23 min)
  After 3 epochs, one run each: PSNR 23.4 dB, 0.83 of the images' sharpness, all
  codes used; with gan=False 24.2 dB and 0.70.

Arguments: quantizer (vq, ema or fsq), gan (False leaves out the discriminator),
classifier (a workdir), epochs.
"""

from big_vision.configs import common
import ml_collections

QUANTIZERS = dict(
    vq="vq(num_codes=128, width=32)", ema="ema(num_codes=128, width=32)",
    fsq="fsq(levels=(8, 4, 4))")


def get_config(arg=None):
  arg = common.parse_arg(
      arg, quantizer="ema", gan=True, classifier="", epochs=3)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.trainer = "proj.vqgan.stage1"
  config.total_epochs = arg.epochs

  pp = "decode(channels=1)|pad_to_shape((32, 32, 1), where='both')|value_range(-1, 1)|keep('image')"
  config.input = dict(
      data=dict(name="fashion_mnist", split="train"), batch_size=64, pp=pp)

  config.model = dict(
      width=8, mults=(1, 2, 4), depth=1, attn_factors=(), z_width=64,
      quantizer=QUANTIZERS[arg.quantizer])

  adam = dict(optax_name="scale_by_adam", optax=dict(b1=0.5, b2=0.9))
  config.update(adam)
  config.lr = 1e-3
  config.schedule = dict(decay_type="cosine", warmup_percent=0.02, end=0.1)
  config.grad_clip_norm = 1.0

  if arg.gan:
    # 2 x 2 logits, each of which sees 34 x 34 pixels.
    config.gan = dict(
        start_percent=0.2, weight=0.2, loss="hinge",
        model=dict(width=16, depth=2), optimizer=dict(lr=1e-3, **adam))
  if arg.classifier:
    config.perceptual = dict(
        name="classifier", workdir=arg.classifier, crop=28, weight=1.0,
        layers=("encoder/block00/+mlp", "encoder/block02/+mlp"))

  config.log_training_steps = 50
  config.ckpt_epochs = 1

  test = dict(data=dict(name="fashion_mnist", split="test"), pp_fn=pp,
              pred="reconstruct", log_percent=0.25)
  config.evals = dict()
  config.evals.test = dict(type="proj.vqgan.reconstruction", **test)
  config.evals.codes = dict(type="proj.vqgan.codebook_usage", **test)
  if arg.gan:
    config.evals.disc = dict(
        type="proj.vqgan.discriminator_accuracy", **{**test, "pred": "judge"})
  if arg.classifier:
    config.evals.distance = dict(
        type="proj.vqgan.frechet", network=dict(
            name="classifier", workdir=arg.classifier, crop=28,
            layers=("pre_logits",)), **test)
  return config
