"""NeRF: fits a radiance field to photographs with known cameras."""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from big_vision import config as config_lib
from big_vision import modules
from big_vision.proj.nerf import cameras
from big_vision.proj.nerf import rendering
from big_vision.proj.nerf import scenes
from big_vision.task import Info, Task
from big_vision.trainers import learner as learner_lib


def make_task(config: config_lib.Config, info: Info) -> Task:
  """Fits a radiance field to the rays of a scene.

  `config.input.data` is a scene, whose examples are rays: the batch has "ray",
  int32[b], the number of a pixel, counted over all images. The rays and their
  colours are looked up on the device, in "frozen": "poses", float32[n, 3, 4],
  "lenses", float32[n, 8], and "images", float32[n, h, w, 3].

  The state has "params", {"coarse": ..., "fine": ...}, two fields of the same
  kind without common parameters, or "coarse" alone if `render.num_fine` is 0;
  "opt"; and, with `config.ema_decay`, "ema". The loss is the sum of the fields'
  mean squared errors.

  Unlike classification, the data is on the device, fields take the place of a
  model of images, and rendering draws jitter and noise. The predict function
  takes rays, so that evaluators can render any view.

  Args:
    config: Reads input.data, model_name, model, render (num_coarse, num_fine,
      noise_std, last_interval of `rendering.Options`), ndc and the keys of
      `learner.make`.
    info: Sizes of the run.

  Raises:
    ConfigError: The data is not a scene, or an option is invalid.
  """
  scene = scenes.open_scene(config.input.data)
  options = _make_options(config, scene)
  fields = modules.find("model", config.model_name)
  renderer = _Renderer(
      field=config_lib.call(
          fields.Model, config.get("model", {}), "config.model"),
      names=("coarse", "fine") if options.num_fine else ("coarse",),
      options=options)
  params_spec = jax.eval_shape(lambda: renderer.init(jax.random.key(0)))
  learner = learner_lib.make(config, params_spec, info)

  def init(rng, batch, given):
    del batch, given  # Parameters do not depend on rays; nothing is loaded.
    params = renderer.init(rng)
    return {"params": params, "opt": learner.init(params)}

  def loss_fn(params, batch, rng, frozen):
    rays, rgb = _look_up(scene.camera, frozen, batch["ray"])
    rendered = renderer.render(params, rays, rng)
    errors = {name: jnp.mean((rendered[name]["rgb"] - rgb) ** 2)
              for name in renderer.names}
    return sum(errors.values()), (
        {f"training_mse_{name}": error for name, error in errors.items()}, {})

  def update(state, batch, rng):
    value_and_grad = jax.value_and_grad(
        functools.partial(loss_fn, frozen=state["frozen"]), has_aux=True)
    changed, measurements = learner.step(
        value_and_grad, state["params"], state["opt"], batch, rng)
    # From the error of the whole batch, whereas evaluators report the mean of
    # the images' PSNR.
    measurements["training_psnr"] = -10 * jnp.log10(
        measurements[f"training_mse_{renderer.names[-1]}"])
    return changed, measurements

  def predict(state: Mapping[str, Any], rays: Mapping[str, Any], *, rng=None):
    """Renders {"origin", "direction"} with the last field, see `render`."""
    del rng  # Deterministic: no jitter, no noise.
    return renderer.render(state["params"], rays)[renderer.names[-1]]

  return learner.finish(Task(
      init=init, update=update, predict_fns={"predict": predict},
      frozen=lambda: {"poses": scene.poses, "lenses": scene.lenses,
                      "images": scene.images()}))


class _Renderer(NamedTuple):
  """Fields and how they are rendered.

  Attributes:
    field: Flax module (points, directions) -> (rgb, density).
    names: Names of the fields, in the order in which they are sampled.
    options: Options of `rendering.render`.
  """
  field: Any
  names: tuple[str, ...]
  options: rendering.Options

  def init(self, rng) -> dict[str, Any]:
    """Returns {name: parameters} of all fields."""
    point = jnp.zeros((1, 1, 3))
    return {name: self.field.init(rng_field, point, point)["params"]
            for name, rng_field in zip(self.names, jax.random.split(rng, 2))}

  def render(self, params, rays, rng=None):
    """Renders rays with all fields; returns {name: {"rgb", ...}}."""
    def bind(name):
      return lambda *args: self.field.apply({"params": params[name]}, *args)
    return rendering.render(
        {name: bind(name) for name in self.names}, rays, self.options, rng)


def _look_up(camera: cameras.Camera, frozen, ray):
  """Returns the rays and colours of pixels.

  Args:
    camera: Camera of all images.
    frozen: {"poses", "lenses", "images"}, see `make_task`.
    ray: int32[b], numbers of pixels.

  Returns:
    rays: {"origin", "direction"}, float32[b, 3] each.
    rgb: float32[b, 3] in [0, 1].
  """
  image, pixel = jnp.divmod(ray, camera.height * camera.width)
  rays = cameras.pixel_rays(
      camera, frozen["poses"][image], frozen["lenses"][image], pixel)
  return rays, frozen["images"].reshape(-1, 3)[ray]


def _make_options(
    config: config_lib.Config, scene: scenes.Scene) -> rendering.Options:
  """Makes the rendering options of a config, checked against its scene."""
  camera = scene.camera
  ndc = (camera.height, camera.width, float(scene.lenses[0, 0]))
  options = config_lib.call(
      rendering.Options, config.get("render", {}), "config.render",
      near=scene.near, far=scene.far, background=scene.background,
      ndc=ndc if config.get("ndc", False) else None)
  try:
    rendering.check(options)
  except ValueError as error:
    raise config_lib.ConfigError(f"config.render: {error}") from error
  if (options.ndc is not None) != ((scene.near, scene.far) == (0.0, 1.0)):
    raise config_lib.ConfigError(
        f"config.ndc is {options.ndc is not None}, but the scene is between "
        f"{scene.near:g} and {scene.far:g}; in normalized device coordinates "
        "it is between 0 and 1: set ndc in the data and in the config alike.")
  return options
