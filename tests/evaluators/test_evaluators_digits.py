"""All evaluators through the real input pipeline, on one process and on two."""

import json
import os
import pathlib
import socket
import subprocess
import sys

from big_vision import config as config_lib
from big_vision import losses
from big_vision import sharding
from big_vision.evaluators import schedule
from big_vision.run import cluster
import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from sklearn import linear_model
from sklearn import neighbors

ROOT = pathlib.Path(__file__).parent.parent.parent
SCALE = "value_range(-1, 1, 0, 16)"
ONEHOT = "onehot(10, key='label', key_result='labels')"
TEST = {"name": "bv:digits", "split": "test"}
# 359 images in batches of 64, 1,438 in batches of 64: both leave a remainder.
EVALS = {
    "val": dict(
        type="classification", data=TEST,
        pp_fn=f"{SCALE}|{ONEHOT}|keep('image', 'labels')"),
    "loss": dict(
        type="mean", pred="loss", data=TEST,
        pp_fn=f"{SCALE}|{ONEHOT}|keep('image', 'labels')"),
    "fewshot": dict(
        type="fewshot_lsr", datasets={"digits": ["bv:digits", "train", "test"]},
        pp_train=SCALE, pp_eval=SCALE, shots=[1, 10], num_seeds=2,
        representation_layer="pixels", display_first=[["digits", 10]],
        prefix=""),
    "noise": dict(
        type="mean", pred="noise", data=TEST, pp_fn="keep('label')"),
    "knn": dict(
        data=TEST, data_train=dict(TEST, split="train"), pp_fn=SCALE,
        representation_layer="pixels"),
}


def predict(state, batch, *, rng=None):
  del rng
  pixels = batch["image"].reshape(len(batch["image"]), -1)
  logits = pixels @ state["params"]["w"] + state["params"]["b"]
  return logits, {"pixels": pixels}


def loss(state, batch, *, rng=None):
  logits, _ = predict(state, batch, rng=rng)
  return {"loss": losses.softmax_xent(logits=logits, labels=batch["labels"])}


def noise(state, batch, *, rng=None):
  del state
  return {"mean": jax.random.uniform(rng, batch["label"].shape)}


def evaluate():
  """Measures a fixed linear classifier on all devices; returns all metrics."""
  devices = np.array(jax.devices())
  mesh = jax.sharding.Mesh(devices, ("data",), axis_types=(AxisType.Auto,))
  rng = np.random.default_rng(0)
  params = {"w": rng.normal(size=(64, 10)), "b": rng.normal(size=10)}
  state = {"params": jax.tree.map(
      lambda x: jax.make_array_from_callback(
          x.shape, NamedSharding(mesh, P()), lambda i: np.float32(x)[i]),
      params)}
  evaluators = schedule.make_evaluators(
      config_lib.Config(EVALS, "config.evals"),
      {"predict": predict, "loss": loss, "noise": noise}, batch_size=64,
      batch_sharding=NamedSharding(mesh, P("data")))
  metrics = {}
  with sharding.use(mesh, sharding.default_rules(mesh)):
    for evaluator in evaluators:
      metrics.update(evaluator.run(state))
  return metrics, params


@pytest.fixture(scope="module")
def evaluated():
  assert jax.device_count() == 8
  return evaluate()


def read_digits():
  """Reads {split: (float64[n, 64] in [-1, 1], int[n])} without the pipeline."""
  from big_vision.datasets import registry
  splits = {}
  for split in ("train", "test"):
    source = registry.open_source("bv:digits", split=split)
    examples = [source.read(i) for i in range(len(source))]
    image = np.stack([example["image"].numpy() for example in examples])
    label = np.array([int(example["label"]) for example in examples])
    splits[split] = image.reshape(len(image), -1) / 8. - 1, label
  return splits


def test_metrics_equal_numpy_and_sklearn(evaluated):
  metrics, params = dict(evaluated[0]), evaluated[1]
  # The draws themselves are compared with those of two processes, below.
  assert 0.4 < metrics.pop("noise/mean") < 0.6
  digits = read_digits()
  (x, y), (x_test, y_test) = digits["train"], digits["test"]
  assert (len(x), len(x_test)) == (1438, 359)
  logits = x_test @ params["w"] + params["b"]
  order = np.argsort(-logits, axis=1)
  log_p = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
  is_label = np.arange(10) == y_test[:, None]
  softplus = np.logaddexp(0, np.where(is_label, -logits, logits))
  knn = neighbors.KNeighborsClassifier(
      20, metric="cosine", algorithm="brute",
      weights=lambda distance: np.exp((1 - distance) / 0.07))
  expected = {
      "val/prec@1": np.mean(order[:, 0] == y_test),
      "val/prec@5": np.mean((order[:, :5] == y_test[:, None]).any(1)),
      "val/loss": softplus.sum(1).mean(),
      "loss/loss": -log_p[is_label].mean(),
      "knn/knn@20": np.mean(knn.fit(x, y).predict(x_test) == y_test)}
  for k, group in ((1, "z"), (10, "a")):
    for seed in range(2):
      rng = np.random.default_rng(seed)
      chosen = np.concatenate(
          [rng.permutation(np.where(y == c)[0])[:k] for c in range(10)])
      mean, std = x[chosen].mean(0), x[chosen].std(0) + 1e-5
      whiten = lambda x: np.pad(
          (x - mean) / std, ((0, 0), (0, 1)), constant_values=100.)
      ridge = linear_model.Ridge(2 ** 10, fit_intercept=False, solver="svd")
      ridge.fit(whiten(x[chosen]), 2. * np.eye(10)[y[chosen]] - 1)
      predicted = ridge.predict(whiten(x_test)).argmax(1)
      expected[f"{group}/digits_{k}shot-seed-{seed}"] = np.mean(
          predicted == y_test)
    expected[f"{group}/digits_{k}shot"] = np.mean(
        [expected[f"{group}/digits_{k}shot-seed-{seed}"] for seed in range(2)])
  assert set(metrics) == set(expected)
  for name, value in expected.items():
    is_count = not name.endswith("loss")
    np.testing.assert_allclose(
        metrics[name], value, rtol=1e-12 if is_count else 1e-5, err_msg=name)
  # Pixels of digits are good representations.
  assert metrics["knn/knn@20"] > 0.97 and metrics["a/digits_10shot"] > 0.8


def test_two_processes_measure_the_same(evaluated):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
         "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
  processes = [
      subprocess.Popen(
          [sys.executable, __file__, address, str(i)], env=env, cwd=ROOT,
          text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
      for i in range(2)]
  try:
    outputs = [process.communicate(timeout=240) for process in processes]
  finally:
    for process in processes:
      process.kill()  # It may wait for another process that failed.
  for process, (output, errors) in zip(processes, outputs):
    assert process.returncode == 0, errors
    metrics = json.loads(output.splitlines()[-1])
    assert set(metrics) == set(evaluated[0])
    for name, value in metrics.items():
      if name.endswith("loss"):
        np.testing.assert_allclose(
            value, evaluated[0][name], rtol=1e-6, err_msg=name)
      else:
        assert value == evaluated[0][name], name


if __name__ == "__main__":
  cluster.start_processes(sys.argv[1], 2, int(sys.argv[2]))
  assert jax.process_count() == 2 and jax.device_count() == 8
  print(json.dumps(evaluate()[0]))
