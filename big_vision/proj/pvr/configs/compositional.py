# pylint: disable=line-too-long
r"""Following chains of pointers: a Transformer and a Universal Transformer.

The input is 16 numbers. The first is the position of the next, that one is the
position of the one after it, and so on, until a number does not point ahead:
that number is the answer. Models are trained on chains of up to 4 hops and
tested on up to 8.

The Universal Transformer takes up to `steps` steps and pays `ponder` for each;
the number of steps it takes is measured separately for each number of hops. A
high price slows learning down if it is charged from the start. So the model
first learns to follow chains at a low price, then the second command teaches it
to save steps.

COMMAND
  bash run.sh big_vision.train --config big_vision/proj/pvr/configs/compositional.py:model=ut --workdir workdirs/pvr_ut
  bash run.sh big_vision.train --config big_vision/proj/pvr/configs/compositional.py:model=ut,total_steps=6000,ponder=0.05,resume=workdirs/pvr_ut --workdir workdirs/pvr_ut_saving

  both models, the second also continued, three seeds, and a table:
  bash run.sh big_vision.tools.sweep --config big_vision/proj/pvr/configs/compositional.py --workdir workdirs/pvr --seeds 0,1,2 --metrics "test/prec@1/*,test/num_steps/*"

EXPECTED (one CPU core, 12 to 22 min a run while other programs used it too)
  Mean of three seeds (minimum to maximum), with 8 hops, twice as many as in
  training: the Transformer answers 81 % correctly (78 to 84), the Universal
  Transformer 69 % (48 to 80) and, after the second command, 74 % (68 to 77).
  Tables by hops are in proj/pvr/README.md.

Arguments: model (transformer or ut), steps (blocks, or maximal steps), seed,
total_steps, ponder, resume (workdir of a run to continue).
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
        f"Unknown model={arg.model!r}; use one of {list(MODELS)}.")
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


def get_sweep():
  """Both models; the second one also continued at a higher price per step."""
  return [
      dict(name="transformer", arg="model=transformer"),
      dict(name="ut", arg="model=ut"),
      dict(name="ut_saving", arg="model=ut,total_steps=6000,ponder=0.05,"
                                 "resume='{point:ut}'"),
  ]
