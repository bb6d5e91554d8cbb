"""Builds every config of VQGAN; test_chain.py trains small versions."""

import importlib
import os

from big_vision import build as build_lib
from big_vision import config as config_lib
from big_vision import train as train_lib
from big_vision import tree
import numpy as np
import pytest

from tests import ranged
from tests.proj.vqgan import test_chain

BUILT = ("fashion_mnist_f4", "photographs_f4", "imagenet_f16")
ARGS = {"fashion_mnist_f4": ("quantizer=vq", "quantizer=fsq,gan=False"),
        "photographs_f4": (None,),
        "imagenet_f16": ("codes=1024", "codes=16384")}


def test_no_config_is_forgotten():
  folder = os.path.dirname(importlib.import_module(
      "big_vision.proj.vqgan.configs").__file__)
  names = {name.removesuffix(".py") for name in os.listdir(folder)
           if name.endswith(".py")} - {"__init__"}
  # The transformer needs a trained stage 1: test_chain.py builds it.
  assert names == {*BUILT, "fashion_mnist_gpt"}


def _config(name, arg, **changes):
  config = importlib.import_module(
      f"big_vision.proj.vqgan.configs.{name}").get_config(arg)
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  return config_lib.resolve(config)


def _count_parameters():
  """Counts the published architecture for 256 x 256, without the codebook."""
  conv = lambda a, b, side=3: a * b * side ** 2 + b
  norm = lambda c: 2 * c
  def block(a, b):
    return (norm(a) + conv(a, b) + norm(b) + conv(b, b)
            + (conv(a, b, 1) if a != b else 0))
  attention = lambda c: norm(c) + 4 * conv(c, c, 1)
  middle = 2 * block(512, 512) + attention(512)
  encoder = (
      conv(3, 128) + 4 * block(128, 128) + block(128, 256) + 3 * block(256, 256)
      + block(256, 512) + block(512, 512) + 2 * attention(512)
      + 2 * conv(128, 128) + 2 * conv(256, 256)  # Downsamples four times.
      + middle + norm(512) + conv(512, 256))
  decoder = (
      conv(256, 512) + middle + 3 * block(512, 512) + 3 * attention(512)
      + conv(512, 512) + block(512, 256) + 5 * block(256, 256)
      + 2 * conv(256, 256) + block(256, 128) + 5 * block(128, 128)
      + conv(128, 128) + norm(128) + conv(128, 3))
  return encoder + decoder + 2 * conv(256, 256, 1)


@pytest.mark.parametrize(
    "name, arg", [(name, arg) for name in BUILT for arg in ARGS[name]])
def test_builds_without_allocating(name, arg, imagenet_like, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", imagenet_like)
  config = _config(name, arg)
  with ranged.recorded() as paths:
    built = build_lib.build(config)
    build_lib.make_evaluators(config, built)
    build_lib.loop_options(config, built.info)
  ranged.assert_all_numbers_are_checked(config, paths)
  config.check_all_read()
  if name == "imagenet_f16":
    codes = int(arg.partition("=")[2])
    table = built.shapes["params"]["quantize"]["embedding"]
    assert table.shape == (codes, 256)
    assert (tree.num_elements(built.shapes["params"]) - table.size
            == _count_parameters())
    # The published 4.5e-6 is for each example of the batch.
    assert config.lr == config.gan.optimizer.lr == pytest.approx(4.32e-4)
    assert built.task.static(250_000) == {"adversarial_now": False}
    assert built.task.static(250_001) == {"adversarial_now": True}


@pytest.mark.slow
@pytest.mark.parametrize("name, arg", [
    ("fashion_mnist_f4", "quantizer=vq"), ("fashion_mnist_f4", "quantizer=fsq"),
    ("photographs_f4", None), ("imagenet_f16", "runlocal")])
def test_trains_two_steps(name, arg, imagenet_like, monkeypatch, tmp_path):
  monkeypatch.setenv("TFDS_DATA_DIR", imagenet_like)
  train_lib.train(_config(name, arg, **{
      "total_steps": 2, "total_epochs": None, "input.batch_size": 8,
      "log_training_steps": 1}), str(tmp_path))
  rows = test_chain.rows(tmp_path)
  assert [row["step"] for row in rows] == [0, 1, 2]
  assert np.isfinite(rows[-1]["training_loss"])
  assert any(key.endswith("/psnr") for key in rows[-1])
