# pylint: disable=line-too-long
r"""A Universal Transformer copies, reverses or adds; tested on longer texts.

The model reads a question and writes the answer below it, one symbol for each
token. In training, positions are counted from a random number, so that the model
learns distances and has seen the positions of longer texts (arXiv:1807.03819,
Section 3.3).

COMMAND
  bash run.sh big_vision.train --config big_vision/configs/sequences.py:task=copy --workdir workdirs/copy
  bash run.sh big_vision.train --config big_vision/configs/sequences.py:task=reverse --workdir workdirs/reverse
  bash run.sh big_vision.train --config big_vision/configs/sequences.py:task=addition,length=4,steps=6000 --workdir workdirs/addition

EXPECTED (one CPU core, 5 to 10 min a run)
  Share of texts with no wrong token, by their length; one run each:
    copy      1 to 10, as trained: 100 %. 11 to 20: 100 % at each length.
              Reached at step 750; the steps taken then fall from 1.6 to 1.0.
    reverse   1 to 10: 99.7 %. 11: 31.5 %; 12: 0.5 %; 13 to 20: 0 %. Of the
              tokens of texts of 11 to 20, 48 % are right.
    addition  1 to 4 digits: 98.9 %. 5 to 8: 0.1 %.
              Trained on 1 to 10 digits for 3,000 steps: 12.7 %.
  So the model learns for any length to look a fixed distance away, and hardly
  learns to look at a place that depends on where the text ends. In these runs
  the ponder cost was the mean over all tokens of a batch; since then it is the
  mean over examples of the mean over their tokens.

Arguments: task (copy, reverse or addition), length (maximum in training), steps
(of training), max_steps (of the model), ponder (weight of the ponder cost).
"""

from big_vision import config as config_lib
from big_vision.configs import common
from big_vision.datasets import sequences
import ml_collections

# Argument: options of the source for the shortest and the longest text, size of
# the vocabulary.
TASKS = {
    "copy": ("min_length", "max_length", 11),
    "reverse": ("min_length", "max_length", 11),
    "addition": ("min_digits", "max_digits", sequences.PLUS + 1),
}


def get_config(arg=None):
  arg = common.parse_arg(
      arg, task="copy", length=10, steps=3_000, max_steps=6, ponder=0.001)
  if arg.task not in TASKS:
    raise config_lib.ConfigError(
        f"Unknown task={arg.task!r}{config_lib.nearest(arg.task, TASKS)}; use one "
        f"of {sorted(TASKS)}.")
  least, most, vocab_size = TASKS[arg.task]
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.total_steps = arg.steps
  config.num_classes = vocab_size
  config.loss = "softmax_xent"

  pp = "keep('tokens', 'labels', 'mask', 'difficulty')"
  source = dict(name=f"bv:{arg.task}")
  config.input = dict(
      data=dict(source, split="train", num_examples=200_000,
                **{most: arg.length}),
      batch_size=128, pp=pp)
  config.model_inputs = ("tokens", "mask")

  config.model_name = "universal_transformer"
  config.model = dict(
      vocab_size=vocab_size, width=64, num_heads=4, mlp_dim=256,
      max_steps=arg.max_steps, norm="pre", pool_type="none",
      max_shift=2 * arg.length)
  config.aux_losses = dict(ponder_cost=arg.ponder)

  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = 1e-4
  config.schedule = dict(decay_type="cosine", warmup_percent=0.05)

  config.log_training_steps = 100
  config.ckpt_steps = 1_000

  config.evals = dict()
  for name, shortest, longest in (
      ("test", 1, arg.length), ("longer", arg.length + 1, 2 * arg.length)):
    config.evals[name] = dict(
        type="by_difficulty", log_percent=0.25, pp_fn=pp,
        measure="encoder/num_steps",
        data=dict(source, split="test", num_examples=2_000,
                  **{least: shortest, most: longest}))
  return config
