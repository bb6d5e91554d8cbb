# pylint: disable=line-too-long
r"""NeRF of the eight synthetic scenes that were published with it.

COMMAND
  python -m big_vision.train --config big_vision/proj/nerf/configs/blender.py:scene=lego --workdir workdirs/nerf/lego

EXPECTED
  Not measured by this project. Published, mean PSNR of the eight scenes: 31.01 dB
  (bmild/nerf), 31.69 dB (JaxNeRF, after 1M steps of 1,024 rays with a longer
  schedule).

Arguments: scene (chair, drums, ficus, hotdog, lego, materials, mic, ship), root
(the folder that contains the scenes, as unpacked from nerf_synthetic.zip),
factor (by which images are made smaller; 2 is the published code's half_res),
steps.

The schedule is that of the paper: Adam with epsilon 1e-7, batches of 4,096 rays,
a learning rate that falls exponentially from 5e-4 to 5e-5 over 250k steps, 64
coarse and 128 additional fine samples. Rays are drawn from all training images,
like "all_images" in JaxNeRF; the published code draws the rays of a step from
one image, at first from its centre.
"""

from big_vision import config as config_lib
from big_vision.configs import common
import ml_collections

SCENES = ("chair", "drums", "ficus", "hotdog", "lego", "materials", "mic", "ship")


def get_config(arg=None):
  arg = common.parse_arg(
      arg, scene="lego", root="data/nerf_synthetic", factor=1, steps=250_000)
  if arg.scene not in SCENES:
    raise config_lib.ConfigError(
        f"Unknown scene {arg.scene!r}{config_lib.nearest(arg.scene, SCENES)}; use one of {list(SCENES)}.")
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.trainer = "proj.nerf.radiance_field"
  config.total_steps = arg.steps

  scene = dict(name="proj.nerf.blender", path=f"{arg.root}/{arg.scene}",
               factor=arg.factor, white_background=True)
  config.input = dict(data=dict(**scene, split="train"), batch_size=4096)

  config.model_name = "proj.nerf.mlp"
  config.model = dict(width=256, depth=8, skip=4, dtype_mm="float32")
  config.render = dict(num_coarse=64, num_fine=128, noise_std=0.0)

  config.optax_name = "scale_by_adam"
  config.optax = dict(eps=1e-7)
  config.lr = 5e-4
  config.schedule = dict(decay_type="exponential", rate=0.1, timescale_steps=250_000)

  config.log_training_steps = 500
  config.ckpt_steps = 5000

  config.evals = dict()
  config.evals.val = dict(
      type="proj.nerf.novel_views", data=dict(**scene, split="val"), num_views=8,
      batch_size=8192, log_steps=25_000, skip_first=True)
  config.evals.test = dict(
      type="proj.nerf.novel_views", data=dict(**scene, split="test"),
      batch_size=8192, skip_first=True)
  config.evals.film = dict(
      type="proj.nerf.camera_path", data=dict(**scene, split="test"), kind="orbit",
      outfile="{workdir}/{name}.gif", num_frames=40, batch_size=8192, skip_first=True)
  return config
