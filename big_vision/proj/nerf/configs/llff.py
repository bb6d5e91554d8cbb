# pylint: disable=line-too-long
r"""NeRF of photographs of forward-facing scenes, in the LLFF format.

COMMAND
  python -m big_vision.train --config big_vision/proj/nerf/configs/llff.py:scene=fern --workdir workdirs/nerf/fern

EXPECTED
  Not measured by this project. Published, mean PSNR of eight scenes: 26.50 dB
  (bmild/nerf), 26.84 dB (JaxNeRF).

Arguments: scene (fern, flower, fortress, horns, leaves, orchids, room, trex, or
one of yours), root (the folder that contains the scenes, as unpacked from
nerf_llff_data.zip), factor (by which photographs are made smaller), steps.

As in the paper: images of 1,008 x 756 pixels (factor 4), normalized device
coordinates, noise on the raw density, every eighth image held out, and the
schedule of `blender.py`.
"""

from big_vision.configs import common
import ml_collections


def get_config(arg=None):
  arg = common.parse_arg(
      arg, scene="fern", root="data/nerf_llff_data", factor=4, steps=250_000)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.trainer = "proj.nerf.radiance_field"
  config.total_steps = arg.steps
  config.ndc = True

  scene = dict(name="proj.nerf.llff", path=f"{arg.root}/{arg.scene}",
               factor=arg.factor, hold_out=8, ndc=True)
  config.input = dict(data=dict(**scene, split="train"), batch_size=4096)

  config.model_name = "proj.nerf.mlp"
  config.model = dict(width=256, depth=8, skip=4, dtype_mm="float32")
  config.render = dict(num_coarse=64, num_fine=128, noise_std=1.0)

  config.optax_name = "scale_by_adam"
  config.optax = dict(eps=1e-7)
  config.lr = 5e-4
  config.schedule = dict(decay_type="exponential", rate=0.1, timescale_steps=250_000)

  config.log_training_steps = 500
  config.ckpt_steps = 5000

  config.evals = dict()
  config.evals.test = dict(
      type="proj.nerf.novel_views", data=dict(**scene, split="test"),
      batch_size=8192, log_steps=50_000, skip_first=True)
  config.evals.film = dict(
      type="proj.nerf.camera_path", data=dict(**scene, split="test"), kind="spiral",
      outfile="{workdir}/{name}.gif", num_frames=60, batch_size=8192, skip_first=True)
  return config
