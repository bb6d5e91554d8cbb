# pylint: disable=line-too-long
r"""A voxel grid of densities and colours, without a network, of a synthetic scene.

COMMAND
  bash run.sh big_vision.tools.make_scene --path workdirs/scene
  bash run.sh big_vision.train --config big_vision/proj/nerf/configs/analytic_voxels.py --workdir workdirs/voxels

EXPECTED (one of two CPU cores, while other programs used it too)
  PSNR 30.1 dB on 12 held-out views (30.10, 30.09, 30.06 for seeds 0, 1, 2), SSIM
  0.942, mean error of distances 0.082 in a scene 2.7 wide. 54 s of processor time
  (1 min 47 s of wall time) for 300 steps, including start, evaluations, film.

Arguments: scene (the folder that make_scene wrote), steps, size (of the grid).
"""

from big_vision.configs import common
import ml_collections


def get_config(arg=None):
  arg = common.parse_arg(arg, scene="workdirs/scene", steps=300, size=64)
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.trainer = "proj.nerf.radiance_field"
  config.total_steps = arg.steps

  scene = dict(name="proj.nerf.blender", path=arg.scene, pixel_center=True,
               near=2.5, far=5.5)
  config.input = dict(data=dict(**scene, split="train"), batch_size=1024)

  config.model_name = "proj.nerf.voxels"
  config.model = dict(size=arg.size, bound=1.1, alpha_init=0.01)
  config.render = dict(num_coarse=96, num_fine=0, last_interval="far")

  config.optax_name = "scale_by_adam"
  config.lr = 0.2
  config.schedule = dict(decay_type="exponential")

  config.log_training_steps = 50
  config.ckpt_steps = 100

  config.evals = dict()
  config.evals.test = dict(
      type="proj.nerf.novel_views", data=dict(**scene, split="test"),
      batch_size=2000, log_steps=100)
  config.evals.film = dict(
      type="proj.nerf.camera_path", data=dict(**scene, split="test"),
      outfile="{workdir}/{name}.gif", num_frames=40, batch_size=2000, skip_first=True)
  return config
