# pylint: disable=line-too-long
r"""Five architectures on Fashion-MNIST, each with about as much arithmetic.

What is trained is the argument: `:model=vit`, `mixer`, `resnet`, `ut` (a
Universal Transformer whose tokens halt) or `performer` (784 tokens, a pixel
each; FAVOR+). All see the same images in the same order and have the same
optimizer, with the rates of `fashion_mnist.py`, tuned for the first. The number
of steps is such that matrix products and convolutions cost the same as those of
`epochs` epochs of the ViT.

What a step of the Universal Transformer costs is `ponder`, the weight of the
ponder cost: the larger it is, the fewer steps tokens take. Their mean number is
logged as training_mean_steps. Training computes all of them, evaluation stops
when all tokens of the batch have halted.

COMMAND
  apt-get install dataset-fashion-mnist
  bash run.sh big_vision.tools.prepare_dataset fashion_mnist
  bash run.sh big_vision.train --config big_vision/configs/fashion_mnist_models.py:model=mixer --workdir workdirs/mixer
  bash run.sh benchmarks.fashion_mnist  # All of them, and a table.

EXPECTED
  After the arithmetic of two epochs of the ViT, one run each: ViT 82.2 % of the
  test set, Mixer 87.2 %, ResNet 89.4 %, Universal Transformer 78.9 %, Performer
  72.5 %. So short a run says how fast they learn, not how well at the end: the
  ViT reaches 91.6 % after 20 epochs (`fashion_mnist.py`). The Performer with
  softmax in the place of FAVOR+ (--config.model.attention=memory_efficient):
  71.8 %, same seed.
"""

from big_vision import config as config_lib
from big_vision.configs import common
from big_vision.configs import fashion_mnist

_ViT = dict(patch_size=(4, 4), width=64, num_heads=4, mlp_dim=256)
# Argument: module, MFLOP that training costs for an image (forward, backward),
# model.
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
  arg = common.parse_arg(arg, model="vit", epochs=2.0, ponder=0.01)
  if arg.model not in MODELS:
    raise config_lib.ConfigError(
        f"There is no model={arg.model!r}{config_lib.nearest(arg.model, MODELS)}; "
        f"there are {sorted(MODELS)}.")
  config = fashion_mnist.get_config()
  config.model_name, mflop, model = MODELS[arg.model]
  config.model = model
  del config.total_epochs
  config.total_steps = round(
      arg.epochs * 60_000 / config.input.batch_size
      * MODELS["vit"][1] / mflop)
  if arg.model == "ut":
    config.aux_losses = dict(ponder_cost=arg.ponder)
  return config
