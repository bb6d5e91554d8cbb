# pylint: disable=line-too-long
r"""Following chains of pointers: a Transformer and a Universal Transformer.

Of 16 numbers, the first says where to go on, the number there where to go on
from there, and so forth, until one does not point ahead: that one is the
answer. Trained on chains of up to 4 hops, tested on up to 8. The Universal
Transformer may take up to `steps` steps and pays `ponder` for each; how many it
takes is measured by the number of hops. A price that is high from the start
slows learning down; so it learns to follow chains first, nearly for free, and
then, by the second command, to save.

COMMAND
  bash run.sh big_vision.train --config big_vision/proj/pvr/configs/compositional.py:model=ut --workdir workdirs/pvr_ut
  bash run.sh big_vision.train --config big_vision/proj/pvr/configs/compositional.py:model=ut,total_steps=6000,ponder=0.05,resume=workdirs/pvr_ut --workdir workdirs/pvr_ut_saving
  bash run.sh benchmarks.pvr  # Both models, three seeds, and a table.

EXPECTED
  Three seeds, tables by hops: README.md in this folder. With 8 hops, twice as
  many as in training, the Transformer is right in 81 % (78 to 84), the Universal
  Transformer in 69 % (48 to 80) and, after the second command, 74 % (68 to 77).
"""

from big_vision import config as config_lib
from big_vision.configs import common
import ml_collections

LENGTH, TRAIN_HOPS, TEST_HOPS = 16, 4, 8
MODELS = ("transformer", "ut")


def get_config(arg=None):
  arg = common.parse_arg(
      arg, model="ut", steps=8, seed=0, total_steps=4_000, ponder=0.001,
      resume="")
  if arg.model not in MODELS:
    raise config_lib.ConfigError(
        f"There is no model={arg.model!r}; there are {MODELS}.")
  config = ml_collections.ConfigDict()
  config.seed = arg.seed
  config.total_steps = arg.total_steps
  config.num_classes = LENGTH
  config.loss = "softmax_xent"
  if arg.resume:
    config.resume = arg.resume

  source = dict(name="proj.pvr.problems", form="compositional", length=LENGTH)
  pp = "copy('label', 'labels')|keep('tokens', 'labels', 'difficulty')"
  config.input = dict(
      data=dict(source, split="train", num_examples=100_000,
                max_hops=TRAIN_HOPS),
      batch_size=128, pp=pp)
  config.model_inputs = ("tokens",)

  sizes = dict(vocab_size=LENGTH + 1, width=64, num_heads=4, mlp_dim=256)
  if arg.model == "ut":
    config.model_name = "universal_transformer"
    config.model = dict(sizes, max_steps=arg.steps, norm="pre")
    config.aux_losses = dict(ponder_cost=arg.ponder)
  else:
    config.model_name = "text_transformer"
    config.model = dict(sizes, depth=arg.steps, posemb="sincos")

  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = 1e-4
  config.schedule = dict(decay_type="cosine", warmup_percent=0.05)

  config.log_training_steps = 100
  config.ckpt_steps = 1_000

  measure = dict(measure="encoder/num_steps") if arg.model == "ut" else {}
  config.evals = dict()
  config.evals.test = dict(
      type="by_difficulty", log_percent=0.25, pp_fn=pp, mask_key=None,
      data=dict(source, split="test", num_examples=8_000, max_hops=TEST_HOPS),
      **measure)
  return config
