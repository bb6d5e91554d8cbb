# pylint: disable=line-too-long
r"""Five architectures on Fashion-MNIST, trained with the same arithmetic.

The argument `model` is vit, mixer, resnet, ut (a Universal Transformer, which
decides for each token when to halt) or performer (784 tokens, one for each
pixel; FAVOR+ attention). All see the same images in the same order and have the
same optimizer, with the learning rate and weight decay that were tuned for the
ViT in `fashion_mnist.py`. The number of steps is chosen so that the matrix
products and convolutions of a run cost as much as `epochs` epochs of the ViT.

`ponder` is the weight of the Universal Transformer's ponder cost: the larger it
is, the fewer steps tokens take. Their mean number is logged as
training_mean_steps. Training computes all steps; evaluation stops when all
tokens of the batch have halted.

`redraw_steps` is the number of steps after which the Performer draws new random
features; 0 keeps the first ones.

COMMAND
  apt-get install dataset-fashion-mnist
  bash run.sh big_vision.tools.prepare_dataset fashion_mnist
  bash run.sh big_vision.train --config big_vision/configs/fashion_mnist_models.py:model=mixer --workdir workdirs/mixer

  all of them, and a table:
  bash run.sh big_vision.tools.sweep --config big_vision/configs/fashion_mnist_models.py --workdir workdirs/models --metrics "test/prec@1,num_params,img/sec"

EXPECTED (2 CPU cores)
  After the arithmetic of two epochs of the ViT, one run each, on the test set:
  ViT 82.2 %, Mixer 87.2 %, ResNet 89.4 %, Universal Transformer 78.9 %,
  Performer 72.5 % (with exact softmax attention, same seed: 71.8 %; with
  redrawn features: not measured). Such short runs show how fast the models
  learn, not how well in the end: the ViT reaches 91.6 % after 20 epochs
  (`fashion_mnist.py`).
"""

from big_vision import config as config_lib
from big_vision.configs import common
from big_vision.configs import fashion_mnist

_ViT = dict(patch_size=(4, 4), width=64, num_heads=4, mlp_dim=256)
# Argument: module, MFLOP for one image in training (forward and backward),
# arguments of the model.
MODELS = dict(
    vit=("vit", 98.0, dict(
        _ViT, depth=6, pool_type="gap", posemb="learn")),
    mixer=("mlp_mixer", 86.9, dict(
        patch_size=(4, 4), width=64, depth=6, tokens_mlp_dim=128,
        channels_mlp_dim=256)),
    resnet=("bit", 64.8, dict(depth=26, width=0.5)),
    ut=("universal_transformer", 98.1, dict(
        _ViT, max_steps=6, norm="pre", pool_type="gap", posemb="sincos2d")),
    performer=("vit", 109.9, dict(
        patch_size=(1, 1), width=32, depth=2, num_heads=1, mlp_dim=64,
        pool_type="gap", posemb="learn", attention="favor(num_features=32)")),
)


def get_config(arg=None):
  arg = common.parse_arg(
      arg, model="vit", epochs=2.0, ponder=0.01, redraw_steps=0)
  if arg.model not in MODELS:
    raise config_lib.ConfigError(
        f"Unknown model={arg.model!r}{config_lib.nearest(arg.model, MODELS)}; "
        f"use one of {sorted(MODELS)}.")
  config = fashion_mnist.get_config()
  config.model_name, mflop, model = MODELS[arg.model]
  config.model = model
  del config.total_epochs
  config.total_steps = round(
      arg.epochs * 60_000 / config.input.batch_size
      * MODELS["vit"][1] / mflop)
  if arg.model == "ut":
    config.aux_losses = dict(ponder_cost=arg.ponder)
  if arg.redraw_steps:
    config.redraw_steps = arg.redraw_steps
  # They would take longer than these short runs.
  del config.evals.train, config.evals.knn
  return config


def get_sweep():
  """Every model, and a Performer whose features are drawn anew eight times."""
  sweep = [dict(name=name, arg=f"model={name}") for name in MODELS]
  return [*sweep, dict(name="performer_redrawn",
                       arg="model=performer,redraw_steps=100")]
