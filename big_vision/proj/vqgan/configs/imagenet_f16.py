# pylint: disable=line-too-long
r"""VQGAN stage 1 on ImageNet, 256 x 256: 16 x 16 codes of 1,024 or 16,384.

COMMAND
  python -m big_vision.train --config big_vision/proj/vqgan/configs/imagenet_f16.py:codes=1024,lpips=gs://BUCKET/lpips_vgg.npz --workdir gs://BUCKET/vqgan_f16
  python -m big_vision.train --config big_vision/proj/vqgan/configs/imagenet_f16.py:codes=16384,lpips=gs://BUCKET/lpips_vgg.npz --workdir gs://BUCKET/vqgan_f16_16384

EXPECTED
  Not measured by this project. Published by CompVis/taming-transformers, on the
  validation set: reconstruction FID 7.94 with 1,024 codes, 4.98 with 16,384.

The paper's learning rate is 4.5e-6 for each example of the batch; config.lr is
that times the batch size. `lpips` is a file that proj/vqgan/lpips.py describes;
without it there is no perceptual loss, and reconstructions will be blurred.

Arguments: codes, lpips, batch_size, steps, runlocal (a few steps of a tiny model).
"""

from big_vision.configs import common
import ml_collections


def get_config(arg=None):
  arg = common.parse_arg(
      arg, codes=1024, lpips="", batch_size=96, steps=500_000, runlocal=False)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.trainer = "proj.vqgan.stage1"
  config.total_steps = arg.steps
  size = 256 if not arg.runlocal else 64

  keep = "value_range(-1, 1)|keep('image')"
  config.input = dict(
      data=dict(name="imagenet2012", split="train"),
      batch_size=arg.batch_size if not arg.runlocal else 8,
      pp=f"decode|resize_small({size})|random_crop({size})|flip_lr|{keep}")

  config.model = dict(
      width=128, mults=(1, 1, 2, 2, 4), depth=2, attn_factors=(16,),
      z_width=256, quantizer=f"vq(num_codes={arg.codes}, width=256)")
  if arg.runlocal:
    config.model.update(width=32, depth=1)

  adam = dict(optax_name="scale_by_adam", optax=dict(b1=0.5, b2=0.9))
  config.update(adam)
  config.lr = 4.5e-6 * config.input.batch_size
  config.gan = dict(
      start_steps=250_001, weight=0.8, loss="hinge",
      model=dict(width=64, depth=3),
      optimizer=dict(lr=config.lr, **adam))
  if arg.lpips:
    config.perceptual = dict(name="lpips", fname=arg.lpips, weight=1.0)

  config.log_training_steps = 50
  config.ckpt_steps = 2000

  val = dict(
      data=dict(name="imagenet2012", split="validation"),
      pp_fn=f"decode|resize_small({size})|central_crop({size})|{keep}",
      pred="reconstruct", log_steps=20_000)
  config.evals = dict()
  config.evals.val = dict(type="proj.vqgan.reconstruction", **val)
  config.evals.codes = dict(type="proj.vqgan.codebook_usage", **val)
  config.evals.disc = dict(
      type="proj.vqgan.discriminator_accuracy", **{**val, "pred": "judge"})
  return config
