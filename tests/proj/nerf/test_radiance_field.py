"""NeRF in the training loop: results, resuming, its loss, its evaluators."""

import json
import pathlib

from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import sharding
from big_vision import state as state_lib
from big_vision import train as train_lib
from big_vision import tree
from big_vision.evaluators import harness
from big_vision.proj.nerf import camera_path
from big_vision.proj.nerf import novel_views
from big_vision.proj.nerf import render_images
from big_vision.proj.nerf import scenes
from big_vision.run import checkpoints
from big_vision.run import interrupts
from big_vision.run import workdir as workdir_lib
from big_vision.tools import eval_only
from big_vision.tools import make_scene
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image
import pytest
from skimage import metrics as skimage_metrics

from tests import drawn
from tests import processes
from tests.array_data import assert_is_key

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "losses"
SIZE = 12
BRIGHT = (make_scene.Solid(
    shape="sphere", center=(0., 0., 0.), size=1.2, density=20.,
    rgb=(.9, .2, .1)),)


@pytest.fixture(scope="module", autouse=True)
def _compile_fast():
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
  path = str(tmp_path_factory.mktemp("scene") / "made")
  make_scene.make(path, size=SIZE, num_train=5, num_val=1, num_test=2,
                  solids=BRIGHT)
  return dict(name="proj.nerf.blender", path=path, pixel_center=True)


def _config(scene, **changes):
  """Returns a small config with every feature on.

  It has two fields, noise, an average of parameters and all evaluators, and its
  state is split over the devices, however small it is.
  """
  config = ml_collections.ConfigDict()
  config.seed = 3
  config.total_steps = 6
  config.trainer = "proj.nerf.radiance_field"
  config.input = dict(data=dict(**scene, split="train"), batch_size=16)
  config.model_name = "proj.nerf.mlp"
  config.model = dict(width=8, depth=2, skip=0, colour_width=4,
                      point_frequencies=2, direction_frequencies=1)
  config.render = dict(num_coarse=4, num_fine=4, noise_std=0.1)
  config.optax_name = "scale_by_adam"
  config.lr = 1e-2
  config.schedule = dict(decay_type="exponential", timescale_steps=6)
  config.ema_decay = 0.5
  config.sharding_strategy = [
      (".*", "fsdp(axis='data', min_size_to_shard_mb=0)")]
  config.log_training_steps = 1
  config.ckpt_steps = 3
  config.evals = dict()
  test = dict(**scene, split="test")
  config.evals.test = dict(
      type="proj.nerf.novel_views", data=test, batch_size=80, log_steps=3)
  config.evals.film = dict(
      type="proj.nerf.camera_path", data=test, outfile="{workdir}/{name}.gif",
      num_frames=2, batch_size=80, skip_first=True)
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  return config_lib.resolve(config)


def _rows(workdir):
  lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def _without_times(rows):
  return [{key: value for key, value in row.items()
           if not key.startswith(processes.TIMES)} for row in rows]


def _arrays(workdir):
  return checkpoints.read_arrays(str(pathlib.Path(workdir) / "checkpoints"))


@pytest.fixture(scope="module")
def finished(scene, tmp_path_factory):
  """Trains without interruption, split over 8 devices; gives the workdir."""
  workdir = tmp_path_factory.mktemp("finished")
  train_lib.train(_config(scene), str(workdir))
  return workdir


def test_a_run_writes_measurements_pictures_and_films(finished):
  rows = _rows(finished)
  assert [row["step"] for row in rows] == list(range(7))
  for step in (0, 3, 6):
    for name in ("psnr", "ssim", "distance_error"):
      assert np.isfinite(rows[step][f"test/{name}"])
      assert np.isfinite(rows[step][f"test/ema/{name}"])
  last = rows[6]
  np.testing.assert_allclose(
      last["training_loss"],
      last["training_mse_coarse"] + last["training_mse_fine"], rtol=1e-6)
  np.testing.assert_allclose(
      last["training_psnr"], -10 * np.log10(last["training_mse_fine"]),
      rtol=1e-5)
  np.testing.assert_allclose(last["global_schedule"], 0.1 ** (5 / 6), rtol=1e-6)
  picture = finished / "pictures" / "test" / "view001" / "00000006.png"
  assert np.asarray(Image.open(picture)).shape == (SIZE, 3 * SIZE, 3)
  for name in ("film", "film_ema"):
    with Image.open(finished / f"{name}.gif") as film:
      assert (film.n_frames, film.size) == (2, (SIZE, SIZE))


def test_the_first_losses_equal_the_committed_ones(finished):
  """A failure's message has the new contents of the file."""
  losses = [row["training_loss"] for row in _rows(finished)[1:]]
  stored = json.loads((GOLDEN / "nerf.json").read_text())
  np.testing.assert_allclose(losses, stored, rtol=1e-4, err_msg=str(losses))


@pytest.mark.parametrize(
    "stop_after", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_resumed_run_is_bit_identical(
    scene, finished, tmp_path, monkeypatch, stop_after):
  with monkeypatch.context() as patch:
    patch.setattr(interrupts.Interrupts, "exit_code",
                  lambda self, step: 143 if step == stop_after else None)
    with pytest.raises(interrupts.Interrupted):
      train_lib.train(_config(scene), str(tmp_path))
  train_lib.train(_config(scene), str(tmp_path))
  expected, got = _arrays(finished), _arrays(tmp_path)
  # Frozen images and cameras are not saved.
  assert {name.split("/")[0] for name in got} == {
      "params", "opt", "ema", "step"}
  assert set(expected) == set(got)
  for name, value in expected.items():
    np.testing.assert_array_equal(value, got[name], err_msg=name)
  assert _without_times(_rows(tmp_path)) == _without_times(_rows(finished))


@pytest.mark.parametrize("changes", [
    {}, pytest.param({"sharding_strategy": None}, marks=pytest.mark.slow)])
def test_losses_do_not_depend_on_devices_or_sharding(
    scene, finished, tmp_path, monkeypatch, changes):
  """Compares a state split over 8 devices with one device and 8 copies."""
  some = jax.devices()[:8 if changes else 1]
  monkeypatch.setattr(jax, "devices", lambda *args: some)
  train_lib.train(_config(scene, total_steps=3, **changes), str(tmp_path))
  for ours, theirs in zip(_rows(tmp_path), _rows(finished)):
    for key in ("training_loss", "test/psnr", "test/ema/ssim"):
      assert (key in ours) == (key in theirs)
      if key in ours:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-4)


def test_eval_only_measures_the_same(finished):
  config = workdir_lib.load_config(str(finished))
  values = eval_only.evaluate(config, str(finished))
  for name in ("test/psnr", "test/ema/ssim", "test/distance_error"):
    np.testing.assert_allclose(values[name], _rows(finished)[-1][name])


# -- the task -----------------------------------------------------------------

RAYS = np.arange(32, dtype=np.int32) * 20
# One field, no schedule and no average: updates are gradients.
PLAIN = {"render.num_fine": 0, "optax_name": "identity", "lr": 1.0,
         "schedule": {}, "ema_decay": None}


def _init(built):
  with sharding.use(built.mesh, built.rules):
    return drawn.jit(lambda rng: state_lib._init(
        built.task, built.info, rng, {}))(built.rng_init)


def _stepper(config):
  """Returns a state, frozen, and a function (rng, rays) that updates it."""
  built = build_lib.build(config)
  state, frozen = _init(built), built.task.frozen()
  update = drawn.jit(lambda state, frozen, rng, rays: built.task.update(
      {**state, "frozen": frozen}, {"ray": rays}, rng))

  def step(rng, rays):
    with sharding.use(built.mesh, built.rules):
      return update(state, frozen, rng, rays)
  return state, frozen, step


@pytest.fixture(scope="module")
def plain(scene):
  return _stepper(_config(scene, **PLAIN))


def test_the_coarse_and_the_fine_field_have_their_own_parameters(scene):
  built = build_lib.build(_config(
      scene, model={}, **{"render.num_coarse": 64, "render.num_fine": 128}))
  assert tree.num_elements(built.shapes["params"]) == 1_191_688
  coarse, fine = (
      dict(tree.flatten_with_names(
          jax.tree.map(lambda s: s.shape, built.shapes["params"][name],
                       is_leaf=lambda s: hasattr(s, "shape"))))
      for name in ("coarse", "fine"))
  assert coarse == fine
  # Their initial values differ.
  params = _init(build_lib.build(_config(scene)))["params"]
  for name, leaf in tree.flatten_with_names(params["coarse"]):
    if name.endswith("kernel"):
      other = dict(tree.flatten_with_names(params["fine"]))[name]
      assert (np.asarray(leaf) != np.asarray(other)).any(), name


def test_the_loss_compares_rays_with_their_pixels(scene):
  """Empty voxels render the background, so the loss is known."""
  config = _config(
      scene, model_name="proj.nerf.voxels", ema_decay=None, model={},
      render=dict(num_coarse=4, num_fine=0, last_interval="far"),
      **{"model.size": 4, "model.alpha_init": 1e-5, "input.batch_size": 360})
  rays = np.arange(0, 720, 2, dtype=np.int32)
  state, frozen, step = _stepper(config)
  changed, measurements = step(jax.random.key(0), rays)
  assert set(state["params"]) == {"coarse"}
  pixels = np.stack([
      frozen["images"][ray // SIZE ** 2, ray // SIZE % SIZE, ray % SIZE]
      for ray in rays])
  np.testing.assert_allclose(
      measurements["training_loss"], np.mean((pixels - 1.0) ** 2), rtol=1e-3)
  # Density grows where the cameras of these pixels see an object.
  moved = np.asarray(changed["params"]["coarse"]["density"]
                     - state["params"]["coarse"]["density"])[..., 0]
  assert moved[2, 2, 2] > 0  # The centre of the ball.


def test_accumulated_gradients_are_means_over_parts(scene, plain):
  rng = jax.random.key(5)
  _, _, step = _stepper(_config(
      scene, **PLAIN, grad_accum_steps=2, **{"input.batch_size": 32}))
  whole, measured = step(rng, RAYS)
  before, _, step = plain
  parts = [step(key, RAYS[i::2])
           for i, key in enumerate(jax.random.split(rng, 2))]
  np.testing.assert_allclose(
      measured["training_loss"],
      np.mean([part["training_loss"] for _, part in parts]), rtol=1e-5)
  jax.tree.map(
      lambda old, new, *of_parts: np.testing.assert_allclose(
          new - old, np.mean([part - old for part in of_parts], axis=0),
          atol=1e-6),
      before["params"], whole["params"],
      *(part["params"] for part, _ in parts))


def test_bfloat16_changes_the_loss_little_and_no_dtype_of_parameters(
    scene, plain):
  _, _, mixed = _stepper(_config(
      scene, **PLAIN, **{"model.dtype_mm": "bfloat16"}))
  (changed, a), (_, b) = (
      step(jax.random.key(0), RAYS[:16]) for step in (mixed, plain[2]))
  assert {leaf.dtype for leaf in jax.tree.leaves(changed["params"])} == {
      jnp.dtype("float32")}
  assert a["training_loss"] != b["training_loss"]
  np.testing.assert_allclose(
      a["training_loss"], b["training_loss"], rtol=0.05)


def test_an_epoch_has_every_ray_once(scene):
  built = build_lib.build(_config(scene))
  assert built.info.data_size == 5 * SIZE ** 2
  assert dict(built.info.batch_spec) == {
      "ray": jax.ShapeDtypeStruct((16,), jnp.int32)}
  with built.data.start(0, built.batch_sharding) as batches:
    rays = np.concatenate([next(batches)["ray"] for _ in range(45)])
  assert sorted(rays) == list(range(720))
  with built.data.start(7, built.batch_sharding) as batches:
    np.testing.assert_array_equal(next(batches)["ray"], rays[7 * 16:8 * 16])


@pytest.mark.parametrize("changes, message", [
    ({"input.data": dict(name="bv:digits", split="train")}, "scene"),
    ({"render.num_corse": 3}, "num_corse does not exist.*num_coarse"),
    ({"render.num_coarse": 2}, "config.render: num_coarse=2"),
    ({"render.near": 2}, "near is set by the program"),
    ({"model.widht": 3}, "widht.*width"),
    ({"ndc": True}, "config.ndc is True, but the scene is between 2 and 6")])
def test_invalid_configs_are_reported(scene, changes, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    build_lib.build(_config(scene, **changes))


def test_mixup_of_rays_is_an_error(scene, tmp_path):
  with pytest.raises(config_lib.ConfigError, match="config.mixup"):
    train_lib.train(_config(scene, mixup=dict(p=0.2)), str(tmp_path))


# -- evaluators ---------------------------------------------------------------

def _render(state, rays, *, rng=None):
  """Renders a smooth function of rays, which differs from view to view."""
  assert_is_key(rng)
  x = rays["origin"] + 4 * rays["direction"] + state["shift"]
  rgb = jax.nn.sigmoid(x * jnp.asarray([3, 0.2, 1]))
  return {"rgb": rgb, "opacity": rgb[:, 0], "distance": 3 + rgb[:, 1]}


STATE = {"shift": np.float32(0.3)}


def _evaluator(scene, batch_sharding, batch_size=80, **kw):
  return novel_views.Evaluator(
      _render, harness.Loader(batch_sharding, batch_size),
      data=dict(**scene, split="test"), **kw)


@pytest.fixture(scope="module")
def batch_sharding():
  mesh = sharding.make_mesh()
  return sharding.batch_sharding(mesh, sharding.default_rules(mesh))


@pytest.fixture(scope="module")
def measured(scene, batch_sharding):
  return dict(_evaluator(scene, batch_sharding).run(STATE))


def test_psnr_is_averaged_over_images_rather_than_errors(
    scene, batch_sharding, measured):
  evaluator = _evaluator(scene, batch_sharding)
  truth, distances = evaluator._scene.images(), evaluator._scene.distances()
  seen = [evaluator._render(STATE, pose, evaluator._scene.lenses[0], number)
          for number, pose in enumerate(evaluator._scene.poses)]
  errors = [np.mean((np.float64(a) - b["rgb"]) ** 2)
            for a, b in zip(truth, seen)]
  per_image = np.mean([-10 * np.log10(error) for error in errors])
  np.testing.assert_allclose(measured["psnr"], per_image, rtol=1e-5)
  assert abs(-10 * np.log10(np.mean(errors)) - per_image) > 1e-3
  ssim = np.mean([skimage_metrics.structural_similarity(
      a.astype(np.float64), b["rgb"].astype(np.float64), channel_axis=-1,
      data_range=1, gaussian_weights=True, sigma=1.5,
      use_sample_covariance=False) for a, b in zip(truth, seen)])
  np.testing.assert_allclose(measured["ssim"], ssim, atol=1e-4)
  known = np.isfinite(distances)
  assert 0 < known.sum() < known.size
  error = np.abs(np.stack([b["distance"] for b in seen]) - distances)[known]
  np.testing.assert_allclose(
      measured["distance_error"], error.mean(), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [8, 56, 1000])
def test_measurements_do_not_depend_on_the_size_of_chunks(
    scene, batch_sharding, measured, batch_size):
  """A view has 144 rays, which neither 56 nor 1,000 divide."""
  again = dict(_evaluator(scene, batch_sharding, batch_size).run(STATE))
  assert set(again) == set(measured)
  for name, value in measured.items():
    np.testing.assert_allclose(again[name], value, rtol=1e-6, err_msg=name)


def test_draws_differ_by_view_and_chunk_and_repeat(
    scene, batch_sharding):
  """A view has two chunks, of 80 and 64 rays; each draws by itself."""
  def draw(state, rays, *, rng=None):
    del state
    b = len(rays["origin"])
    return {"rgb": jax.random.uniform(rng, (b, 3)), "opacity": jnp.ones(b),
            "distance": jnp.ones(b)}
  scene = scenes.open_scene(dict(**scene, split="test"))
  def render(number, seed=0):
    loader = harness.Loader(batch_sharding, 80, seed=seed)
    return render_images.make_renderer(draw, scene.camera, loader)(
        {}, scene.poses[0], scene.lenses[0], number)["rgb"]
  first = render(0)
  np.testing.assert_array_equal(render(0), first)
  assert len(np.unique(first)) == first.size
  assert not np.isin(render(1), first).any()
  assert not np.isin(render(0, seed=1), first).any()


def test_pictures_show_truth_rendering_and_nearness(
    scene, batch_sharding, measured):
  picture = measured["view000"]
  truth = _evaluator(scene, batch_sharding)._scene.images()[0]
  np.testing.assert_array_equal(
      picture[:, :SIZE], np.round(truth * 255).astype(np.uint8))
  assert picture.dtype == np.uint8 and picture.shape == (SIZE, 3 * SIZE, 3)
  some = dict(_evaluator(
      scene, batch_sharding, num_views=1, num_pictures=0).run(STATE))
  assert set(some) == {"psnr", "ssim", "distance_error"}
  with pytest.raises(config_lib.ConfigError, match="num_views=3.*2 views"):
    _evaluator(scene, batch_sharding, num_views=3)


def test_a_film_has_the_requested_frames_and_speed(
    scene, batch_sharding, tmp_path):
  loader = harness.Loader(batch_sharding, 80)
  kw = dict(data=dict(**scene, split="test"), outfile=str(tmp_path / "a.gif"))
  for wrong in (dict(kind="orbti"), dict(num_frames=0)):
    with pytest.raises(config_lib.ConfigError, match=list(wrong)[0]
                       if "num" in list(wrong)[0] else "'orbit' or 'spiral'"):
      camera_path.Evaluator(_render, loader, **kw, **wrong)
  film = camera_path.Evaluator(
      _render, loader, **kw, num_frames=3, frames_per_second=10)
  assert not list(film.run(STATE))
  with Image.open(tmp_path / "a.gif") as image:
    assert image.n_frames == 3 and image.info["duration"] == 100
    assert image.info["loop"] == 0
  assert [file.name for file in tmp_path.iterdir()] == ["a.gif"]


@pytest.mark.slow
@pytest.mark.parametrize("model, lr, num_fine", [
    ("voxels", 0.3, 0), ("mlp", 1e-2, 8)])
def test_a_ball_is_learned(scene, tmp_path, model, lr, num_fine):
  """A field trained on some views predicts images and distances of others."""
  size = dict(size=16, bound=1.5) if model == "voxels" else dict(
      width=32, depth=3, point_frequencies=3, direction_frequencies=1)
  train_lib.train(_config(
      scene, total_steps=300, model_name=f"proj.nerf.{model}", model=size,
      lr=lr, render=dict(num_coarse=32, num_fine=num_fine,
                         last_interval="far"),
      **{"input.batch_size": 240, "schedule.timescale_steps": 300,
         "ckpt_steps": 300, "log_training_steps": 100,
         "evals.test.log_steps": 300}), str(tmp_path))
  rows = _rows(tmp_path)
  assert rows[-1]["test/psnr"] > rows[0]["test/psnr"] + 8
  assert rows[-1]["test/distance_error"] < 0.3
