# pylint: disable=line-too-long
r"""A small NeRF on a scene known exactly, sized for two CPU cores.

COMMAND
  bash run.sh big_vision.tools.make_scene --path workdirs/scene
  bash run.sh big_vision.train --config big_vision/proj/nerf/configs/analytic.py --workdir workdirs/nerf

EXPECTED (one core of two, which other programs used too)
  32.4 dB on 12 held-out views (one run), SSIM 0.971, distances wrong by 0.044
  of a scene 2.7 wide; 30.3 dB after 1,000 of 2,000 steps. 10 min 12 s of
  processor time (24 min 34 s passed), start, evaluations and film included.

Smaller than the published networks (4 layers of 64 in the place of 8 of 256, 32
+ 32 samples in the place of 64 + 128, 512 rays in the place of 4,096, fewer
frequencies, as images of 100 x 100 have none of the highest).
"""

from big_vision.configs import common
import ml_collections


def get_config(arg=None):
  arg = common.parse_arg(arg, scene="workdirs/scene", steps=2000)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.trainer = "proj.nerf.radiance_field"
  config.total_steps = arg.steps

  scene = dict(name="proj.nerf.blender", path=arg.scene, pixel_center=True,
               near=2.5, far=5.5)
  config.input = dict(data=dict(**scene, split="train"), batch_size=512)

  config.model_name = "proj.nerf.mlp"
  config.model = dict(width=64, depth=4, skip=2, colour_width=32,
                      point_frequencies=6, direction_frequencies=2)
  config.render = dict(num_coarse=32, num_fine=32)

  config.optax_name = "scale_by_adam"
  config.lr = 3e-3
  config.schedule = dict(decay_type="exponential", warmup_steps=50)

  config.log_training_steps = 100
  config.ckpt_steps = 500

  config.evals = dict()
  config.evals.test = dict(
      type="proj.nerf.novel_views", data=dict(**scene, split="test"),
      batch_size=2000, log_steps=1000)
  config.evals.film = dict(
      type="proj.nerf.camera_path", data=dict(**scene, split="test"),
      outfile="{workdir}/{name}.gif", num_frames=40, batch_size=2000, skip_first=True)
  return config
