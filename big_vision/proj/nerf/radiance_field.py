"""NeRF: a radiance field from photographs with cameras."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from big_vision import config as config_lib
from big_vision import modules
from big_vision import optim
from big_vision import task as task_lib
from big_vision import tree
from big_vision.proj.nerf import cameras
from big_vision.proj.nerf import rendering
from big_vision.proj.nerf import scenes
from big_vision.task import Info, Task


def make_task(config: config_lib.Config, info: Info) -> Task:
  """Fits a radiance field to the rays of a scene.

  `config.input.data` is a scene, whose examples are rays: the batch has "ray",
  int32[b], the number of a pixel of all images. Which pixel, of which camera,
  in which colour is looked up on the device, in what is frozen: "poses",
  float32[n, 3, 4], and "images", float32[n, h, w, 3].

  The state has "params", {"coarse": ..., "fine": ...}: two fields of the same
  kind that share nothing, or the first of them alone where `render.num_fine`
  is 0; "opt"; and, with `config.ema_decay`, "ema". The loss is the sum of the
  fields' mean squared errors.

  What differs from classification: data on the device, fields in the place of
  a model of images, randomness (jitter, noise) in rendering. Its predict
  function takes rays, so that evaluators can look from anywhere.

  Args:
    config: reads input.data, model_name, model, render (num_coarse, num_fine,
      noise_std, last_interval of `rendering.Options`), ndc, grad_accum_steps,
      ema_decay and the keys of `optim.make`.
    info: what the loop knows.

  Raises:
    ConfigError: the data is no scene, or an option cannot be.
  """
  scene = scenes.open_scene(config.input.data)
  fields = modules.find("model", config.model_name)
  field = config_lib.call(
      fields.Model, config.get("model", {}), "config.model")
  camera = scene.camera
  ndc = (camera.height, camera.width, camera.focal)
  options = config_lib.call(
      rendering.Options, config.get("render", {}), "config.render",
      near=scene.near, far=scene.far, background=scene.background,
      ndc=ndc if config.get("ndc", False) else None)
  _check(options, scene)
  names = ("coarse", "fine") if options.num_fine else ("coarse",)

  def init_params(rng):
    nowhere = jnp.zeros((1, 1, 3))
    return {name: field.init(rng_field, nowhere, nowhere)["params"]
            for name, rng_field in zip(names, jax.random.split(rng, 2))}

  params_spec = jax.eval_shape(lambda: init_params(jax.random.key(0)))
  tx, sched_fns = optim.make(
      config, params_spec, total_steps=info.total_steps,
      batch_size=info.batch_size, data_size=info.data_size)

  def init(rng, batch, given):
    del batch
    state = tree.merge({"params": init_params(rng)}, given)
    return {**state, "opt": tx.init(state["params"])}

  def render(params, rays, rng=None):
    def bind(name):
      return lambda *args: field.apply({"params": params[name]}, *args)
    return rendering.render(
        {name: bind(name) for name in names}, rays, options, rng)

  def frozen():
    return {"poses": scene.poses, "images": scene.images()}

  grad_accum_steps = config.get("grad_accum_steps", 1)

  def update(state, batch, rng):
    poses, images = state["frozen"]["poses"], state["frozen"]["images"]
    pixels_per_image = camera.height * camera.width

    def loss_fn(params, batch, rng):
      image, pixel = jnp.divmod(batch["ray"], pixels_per_image)
      rays = cameras.pixel_rays(camera, poses[image], pixel)
      rgb = images.reshape(-1, 3)[batch["ray"]]
      seen = render(params, rays, rng)
      losses = {name: jnp.mean((seen[name]["rgb"] - rgb) ** 2)
                for name in names}
      return sum(losses.values()), {
          f"training_mse_{name}": loss for name, loss in losses.items()}

    (loss, measurements), grads = task_lib.accumulate(
        jax.value_and_grad(loss_fn, has_aux=True), grad_accum_steps)(
            state["params"], batch, rng)
    updates, opt = tx.update(grads, state["opt"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    # Of the batch: not the mean over images, which evaluators report.
    psnr = -10 * jnp.log10(measurements[f"training_mse_{names[-1]}"])
    return {"params": params, "opt": opt}, {
        "training_loss": loss, **measurements, "training_psnr": psnr,
        "l2_grads": optax.tree.norm(grads),
        "l2_params": optax.tree.norm(params),
        "l2_updates": optax.tree.norm(updates)}

  def predict(state: Mapping[str, Any], rays: Mapping[str, Any], *, rng=None):
    """What the best field sees along {"origin", "direction"}, see `render`."""
    del rng  # Deterministic: no jitter, no noise.
    return render(state["params"], rays)[names[-1]]

  task = Task(init, update, {"predict": predict}, sched_fns, frozen=frozen)
  if (decay := config.get("ema_decay")) is not None:
    task = task_lib.with_ema(task, decay)
  return task


def _check(options: rendering.Options, scene: scenes.Scene):
  """Raises ConfigError for options that cannot be, or not of this scene."""
  try:
    rendering.check(options)
  except ValueError as error:
    raise config_lib.ConfigError(f"config.render: {error}") from error
  if (options.ndc is not None) != ((scene.near, scene.far) == (0.0, 1.0)):
    raise config_lib.ConfigError(
        f"config.ndc is {options.ndc is not None}, but the scene is between "
        f"{scene.near:g} and {scene.far:g}; in normalized device coordinates "
        "it is between 0 and 1: set ndc in the data and in the config alike.")
