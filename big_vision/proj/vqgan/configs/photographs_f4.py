# pylint: disable=line-too-long
r"""VQGAN stage 1 on crops of the photographs in scikit-learn and scikit-image.

COMMAND
  pip install scikit-image
  bash run.sh big_vision.train --config big_vision/proj/vqgan/configs/photographs_f4.py --workdir workdirs/photographs_f4

EXPECTED (one CPU core, 24 min)
  After 200 epochs, one run: PSNR 27.5 dB on held-out crops, 0.34 of the images'
  sharpness, 98 % of 256 codes used.

These few colour photographs suffice to show that colours are reconstructed, not
to learn what photographs look like. The held-out crops are from photographs of
which training sees other crops.

Arguments: quantizer (vq, ema or fsq), gan (False leaves out the discriminator),
epochs.
"""

from big_vision.configs import common
import ml_collections

QUANTIZERS = dict(
    vq="vq(num_codes=256, width=32)", ema="ema(num_codes=256, width=32)",
    fsq="fsq(levels=(8, 8, 4))")


def get_config(arg=None):
  arg = common.parse_arg(arg, quantizer="ema", gan=True, epochs=200)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.trainer = "proj.vqgan.stage1"
  config.total_epochs = arg.epochs

  keep = "value_range(-1, 1)|keep('image')"
  config.input = dict(
      data=dict(name="bv:photographs", split="train", size=80), batch_size=16,
      pp=f"random_crop(64)|flip_lr|{keep}")

  config.model = dict(
      width=8, mults=(1, 2, 4), depth=1, attn_factors=(4,), z_width=64,
      quantizer=QUANTIZERS[arg.quantizer])

  adam = dict(optax_name="scale_by_adam", optax=dict(b1=0.5, b2=0.9))
  config.update(adam)
  config.lr = 1e-3
  config.schedule = dict(decay_type="cosine", warmup_percent=0.02, end=0.1)
  config.grad_clip_norm = 1.0
  if arg.gan:
    config.gan = dict(
        start_percent=0.3, weight=0.2, loss="hinge",
        model=dict(width=16, depth=2), optimizer=dict(lr=1e-3, **adam))

  config.log_training_steps = 50
  config.ckpt_percent = 0.1

  test = dict(data=dict(name="bv:photographs", split="test", size=80),
              pp_fn=f"central_crop(64)|{keep}", pred="reconstruct",
              log_percent=0.25)
  config.evals = dict()
  config.evals.test = dict(type="proj.vqgan.reconstruction", **test)
  config.evals.codes = dict(type="proj.vqgan.codebook_usage", **test)
  return config
