# pylint: disable=line-too-long
r"""A small NeRF of a synthetic scene that is known exactly, for two CPU cores.

COMMAND
  bash run.sh big_vision.tools.make_scene --path workdirs/scene
  bash run.sh big_vision.train --config big_vision/proj/nerf/configs/analytic.py --workdir workdirs/nerf

EXPECTED (one of two CPU cores, while other programs used it too)
  One run: PSNR 32.4 dB on 12 held-out views, SSIM 0.971, mean error of distances
  0.044 in a scene 2.7 wide; 30.3 dB after 1,000 of 2,000 steps. 10 min 12 s of
  processor time (24 min 34 s of wall time), including start, evaluations, film.

Smaller than the published model: 4 layers of 64 instead of 8 of 256, 32 + 32
samples instead of 64 + 128, batches of 512 rays instead of 4,096, and fewer
frequencies, because images of 100 x 100 pixels do not show the highest.

Arguments: scene (the folder that make_scene wrote), steps.
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
