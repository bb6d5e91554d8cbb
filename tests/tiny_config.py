"""A tiny run that has everything: digits, a ViT of width 16, an EMA.

COMMAND (tests start it as a person would)
  python -m big_vision.train --config tests/tiny_config.py --workdir WORKDIR
"""

from big_vision.configs import common
import ml_collections


def get_config(arg=None):
  arg = common.parse_arg(arg, steps=12, fsdp=False, model=1)
  config = ml_collections.ConfigDict()
  config.seed = 3
  config.total_steps = arg.steps
  config.num_classes = 10
  scale = "value_range(-1, 1, 0, 16)"
  labels = ("onehot(10, key='label', key_result='labels')|"
            "keep('image', 'labels')")
  config.input = dict(
      data=dict(name="bv:digits", split="train"), batch_size=16,
      pp="pad_to_shape((10, 10, 1), where='both')|random_crop(8)|"
         f"{scale}|{labels}")
  config.model_name = "vit"
  config.model = dict(patch_size=(4, 4), width=16, depth=1, num_heads=2,
                      mlp_dim=32, dropout=0.1)
  config.loss = "softmax_xent"
  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = 1e-2
  config.wd = 1e-3
  config.schedule = dict(decay_type="cosine", warmup_steps=3)
  config.mixup = dict(p=0.2)
  config.ema_decay = 0.9
  config.log_training_steps = 1
  config.ckpt_steps = 4
  if arg.fsdp:
    config.sharding_strategy = [
        (".*", "fsdp(axis='data', min_size_to_shard_mb=0)")]
  if arg.model > 1:
    config.mesh = [("data", -1), ("model", arg.model)]
    config.sharding_preset = "tp"
  config.evals = dict()
  config.evals.test = dict(
      type="classification", data=dict(name="bv:digits", split="test"),
      pp_fn=f"{scale}|{labels}", loss_name="softmax_xent", batch_size=64,
      log_steps=6)
  return config
