"""Supervised classification, the task of a config that names no trainer."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from big_vision import config as config_lib
from big_vision import durations
from big_vision import losses
from big_vision import mixing
from big_vision import modules
from big_vision import ranges
from big_vision import task as task_lib
from big_vision import tree
from big_vision.layers import attention
from big_vision.layers import checks
from big_vision.layers import pooling
from big_vision.task import Info, Task
from big_vision.trainers import learner as learner_lib


def make_task(config: config_lib.Config, info: Info) -> Task:
  """Classifies images, texts, or each token of a text.

  The batch has the model's inputs, by default "image", float32[b, h, w, c], and
  "labels", float32[b, k], or int[b] if every example has one class. A model
  that classifies every token, with logits [b, n, k], needs labels [b, n, k] or
  int[b, n] and "mask", number[b, n], nonzero at the tokens that count; the loss
  and accuracy of an example are means over those.

  The state has "params", "opt" and, with `config.ema_decay`, "ema". It also has
  the model's other collections, under their names: those that a forward pass
  changes ("batch_stats") and the random "features" of attention, which are
  drawn again every `config.redraw_steps` steps, or never. The state's "frozen"
  is empty.

  A model may return losses of its own, `out["losses"]`, and measurements,
  `out["measurements"]`, both {name: float32[], the mean over the batch}. The
  training loss is `loss` plus these losses times their weights,
  `config.aux_losses`, {name: weight}. All of them are logged as
  training_<name>, without their weights. The accuracy on the training batch is
  logged as training_prec@1, unless mixup or CutMix leaves examples without a
  class of their own. The predict function "loss" returns `loss` alone.

  Args:
    config: Reads model_name, model, num_classes, model_inputs (keys of the
      batch in the order of the model's arguments; by default ("image",)),
      model_init, model_load, loss, aux_losses, init_head_bias, mixup, cutmix,
      redraw_{steps,examples,epochs,percent} and the keys of `learner.make`.
    info: Sizes of the run and the shapes of its batches.

  Raises:
    ConfigError: The config names something that does not exist, or the batch
      lacks something that the config asks for. Errors that depend on the
      model's output are raised when the step is traced.
  """
  models = modules.find("model", config.model_name)
  network = _Network(
      model=config_lib.call(
          models.Model, config.get("model", {}), "config.model",
          num_classes=config_lib.check(
              config.num_classes, "config.num_classes", ranges.Count)),
      input_keys=tuple(config.get("model_inputs", ("image",))),
      head_bias=config_lib.get_checked(
          config, "init_head_bias", ranges.Number))
  xent = losses.get_loss(config.get("loss", "sigmoid_xent"))
  aux_weights = dict(config_lib.get_checked(
      config, "aux_losses", Mapping[str, ranges.Number], {}))

  batch_spec = dict(info.batch_spec)
  # The key is made within the trace, so that planning for devices that do not
  # exist here computes nothing.
  variables_spec = jax.eval_shape(
      lambda batch: network.init(jax.random.key(0), batch), batch_spec)
  learner = learner_lib.make(config, variables_spec.pop("params"), info)
  collections = tuple(variables_spec)
  redraw_steps = _redraw_steps(config, info, collections)
  mix = mixing.make(config.get("mixup"), config.get("cutmix"))

  def init(rng, batch, given):
    state = tree.merge(network.init(rng, batch), given)
    return {**state, "opt": learner.init(state["params"])}

  def loss_fn(params, batch, rng, others):
    (logits, out), changed = network.apply(
        {"params": params, **others}, batch, train=True,
        rngs={"dropout": rng},
        # A forward pass only reads random features.
        mutable=[name for name in others if name != attention.FEATURES])
    loss, is_right = score(xent, logits, batch)
    aux_loss, measurements = weigh_auxiliary(out, aux_weights)
    if mix is None:
      measurements["training_prec@1"] = is_right.mean()
    return loss.mean() + aux_loss, (measurements, changed)

  def update(state, batch, rng):
    others = {name: state[name] for name in collections}
    if redraw_steps:
      others[attention.FEATURES] = attention.redraw(
          others[attention.FEATURES], rng, state["step"], redraw_steps)
    value_and_grad = jax.value_and_grad(
        functools.partial(loss_fn, others=others), has_aux=True)
    changed, measurements = learner.step(
        value_and_grad, state["params"], state["opt"], batch, rng)
    return {**others, **changed}, measurements

  def predict(state, batch, *, rng=None):
    del rng  # Deterministic.
    return network.apply(
        {name: state[name] for name in ("params", *collections)}, batch)

  def loss(state, batch, *, rng=None):
    logits, _ = predict(state, batch, rng=rng)
    return {"loss": score(xent, logits, batch)[0]}

  task = Task(
      init=init, update=update, predict_fns={"predict": predict, "loss": loss},
      load=_make_load(config, models))
  if mix is not None:
    task = task_lib.with_batch_fn(task, mix)
  return learner.finish(task)


class _Network(NamedTuple):
  """A model that reads its inputs from a batch.

  Attributes:
    model: Flax module whose output is (logits, out).
    input_keys: Keys of the batch in the order of the model's arguments.
    head_bias: Initial value of the head's bias; None for the model's own.
  """
  model: Any
  input_keys: tuple[str, ...]
  head_bias: float | None

  def read(self, batch) -> list[Any]:
    """Returns the model's arguments; raises ConfigError if some are missing."""
    if missing := [key for key in self.input_keys if key not in batch]:
      raise config_lib.ConfigError(
          f"config.model_inputs has {missing}, which the batch lacks; it has "
          f"{sorted(batch)}. Does the preprocessing keep them?")
    return [batch[key] for key in self.input_keys]

  def init(self, rng, batch) -> dict[str, Any]:
    """Returns the model's variables, {collection: tree}."""
    variables = dict(self.model.init(rng, *self.read(batch)))
    if self.head_bias is not None:
      head = variables["params"]["head"]
      head["bias"] = jnp.full_like(head["bias"], self.head_bias)
    return variables

  def apply(self, variables, batch, **kw):
    """Applies the model as `flax.linen.Module.apply` does."""
    return self.model.apply(variables, *self.read(batch), **kw)


def _redraw_steps(
    config: config_lib.Config, info: Info,
    collections: Sequence[str]) -> int | None:
  """Returns how many steps random features last; None or 0 keeps them."""
  steps = durations.get_steps(
      "redraw", config, batch_size=info.batch_size, data_size=info.data_size,
      total_steps=info.total_steps)
  if steps and attention.FEATURES not in collections:
    raise config_lib.ConfigError(
        f"config.redraw_steps is {steps}, but {config.model_name!r} as "
        "configured has no random features; an attention 'favor' has.")
  return steps


def _make_load(config: config_lib.Config, models) -> Callable:
  """Returns `Task.load`, which reads `config.model_init` if it is set.

  Raises:
    ConfigError: The config has options for loading, but nothing to load.
  """
  source = config.get("model_init")
  options = dict(config.get("model_load", {}))
  if source is None:
    if options:
      raise config_lib.ConfigError(
          f"config.model_load is {options}, but no config.model_init names the "
          "weights to load; set it or remove config.model_load.")
    return lambda shapes: {}

  def load(shapes):
    params = config_lib.call(
        models.load, options, "config.model_load",
        init_params=shapes["params"], init_file=source,
        model_cfg=config.get("model", {}))
    return {"params": tree.keep(
        params, lambda leaf: not isinstance(leaf, jax.ShapeDtypeStruct))}
  return load


def score(xent: Callable, logits, batch) -> tuple[Any, Any]:
  """Compares logits with the batch's labels.

  Args:
    xent: Loss of `losses.get_loss`.
    logits: float[b, k], or float[b, n, k] for a batch with "mask".
    batch: Batch with "labels", see `make_task`.

  Returns:
    loss: float32[b].
    is_right: float32[b], 1 where the class of the largest logit has the largest
      label, else 0; with "mask", the mean over tokens. So labels may be
      one-hot, multi-hot or smoothed. An example without a class, whose labels
      are all equal, is never right.

  Raises:
    ConfigError: "labels" or "mask" do not fit the logits.
  """
  labels = dense_labels(batch["labels"], logits.shape)
  found = jnp.take_along_axis(
      labels, jnp.argmax(logits, axis=-1, keepdims=True), axis=-1)[..., 0]
  highest = labels.max(axis=-1)
  is_right = (found == highest) & (highest > labels.min(axis=-1))
  is_right = is_right.astype(jnp.float32)
  loss = xent(logits=logits, labels=labels)
  if loss.ndim == 1:
    return loss, is_right
  if "mask" not in batch:
    raise config_lib.ConfigError(
        f"The model classifies every token, logits {list(logits.shape)}, so "
        f"the batch needs a \"mask\" of the tokens that count, "
        f"{list(loss.shape)}. It has {sorted(batch)}: keep it in "
        "config.input.pp.")
  token_mask = checks.check_mask(batch["mask"], loss.shape)
  return tuple(pooling.mean_of_tokens(x, token_mask) for x in (loss, is_right))


def dense_labels(labels, shape):
  """Converts labels to the form that losses take, one number for each class.

  Args:
    labels: number[..., k], or int[...], the class of each example or token. A
      negative class becomes a row of zeros. A class of k or more does not exist
      and becomes a row of NaN, which stops the run.
    shape: Shape of the logits, [..., k].

  Returns:
    number[..., k].

  Raises:
    ConfigError: The labels have neither of these shapes; the error names both.
  """
  if labels.shape == shape:
    return labels
  if labels.shape == shape[:-1] and jnp.issubdtype(labels.dtype, jnp.integer):
    return jnp.where(labels[..., None] < shape[-1],
                     jax.nn.one_hot(labels, shape[-1]), jnp.nan)
  raise config_lib.ConfigError(
      f"The labels are {labels.dtype}{list(labels.shape)} and the model's "
      f"logits {list(shape)}; labels must be {list(shape)}, or integers "
      f"{list(shape[:-1])}.")


def weigh_auxiliary(
    out: Mapping[str, Any],
    weights: Mapping[str, float]) -> tuple[Any, dict[str, Any]]:
  """Adds up a model's own losses and collects what to log.

  Args:
    out: The model's output; "losses" and "measurements", if it has them, are
      {name: number[]}.
    weights: {name: weight} of all losses in `out`. The names are checked here
      because a model's losses are only known when it is traced.

  Returns:
    loss: float32[], the sum of weights times values. A weight of 0 leaves a
      loss out, even if its value is not finite.
    measurements: {"training_<name>": float32[]}, the unweighted losses, and the
      measurements.

  Raises:
    ConfigError: A weight has no loss, or a loss has no weight.
    ValueError: A value is not a single number, or its name is taken.
  """
  given = out.get("losses", {})
  for name in weights:
    if name not in given:
      raise config_lib.ConfigError(
          f"config.aux_losses has a weight for {name!r}, which the model as "
          f"configured does not return{config_lib.nearest(name, given)}. It "
          f"returns {sorted(given)}.")
  if missing := sorted(set(given) - set(weights)):
    raise config_lib.ConfigError(
        f"The model returns the losses {missing}, for which config.aux_losses "
        f"has no weight; it has {sorted(weights)}. A weight of 0 leaves a loss "
        "out.")
  logged = {}
  for name, value in [*given.items(), *out.get("measurements", {}).items()]:
    if jnp.shape(value):
      raise ValueError(
          f"The model's {name!r} must be a single number, the mean over the "
          f"batch; it has shape {jnp.shape(value)}.")
    if name in ("loss", "prec@1") or f"training_{name}" in logged:
      raise ValueError(
          f"The model's {name!r} would be logged as 'training_{name}', a name "
          "that is taken; rename it.")
    logged[f"training_{name}"] = jnp.asarray(value, jnp.float32)
  loss = sum((weight * logged[f"training_{name}"]
              for name, weight in weights.items() if weight), jnp.float32(0))
  return loss, logged
