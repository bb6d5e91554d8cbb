"""Evaluators of a config: how they are made, when they run, what they return.
"""

from big_vision import config as config_lib
from big_vision import task as task_lib
from big_vision.evaluators import schedule
import jax
import jax.numpy as jnp
import numpy as np
import pytest

ARRAYS = {
    "image": np.arange(1, 21, dtype=np.float32)[:, None],
    "labels": np.eye(3, dtype=np.float32)[np.arange(20) % 3],
    "label": np.arange(20, dtype=np.int32) % 3}
PP = dict(pp_fn="", data={"name": "x"})


def predict(state, batch, *, rng=None, scale=1.):
  del rng
  return scale * batch["image"] * state["params"]["w"], {}


def loss(state, batch, *, rng=None):
  del rng
  return {"loss": batch["image"][:, 0] * jnp.sum(state["params"]["w"])}


PREDICT_FNS = {"predict": predict, "loss": loss}
W = np.array([1., 2., 3.], np.float32)


def make(serve, batch_sharding, evals, predict_fns=None, **kw):
  serve({"x": ARRAYS})
  kw = dict(batch_size=8, total_steps=100, data_size=64, train_batch_size=16
            ) | kw
  return schedule.make_evaluators(
      config_lib.Config(evals, "config.evals"), predict_fns or PREDICT_FNS,
      batch_sharding=batch_sharding, **kw)


def test_the_name_is_the_default_type_and_prefix(serve, batch_sharding):
  evaluator, = make(serve, batch_sharding, {"classification": PP})
  assert evaluator.name == "classification"
  metrics = dict(evaluator.run({"params": {"w": W}}))
  assert set(metrics) == {"classification/prec@1", "classification/loss"}
  assert metrics["classification/prec@1"] == 6 / 20  # The last class.
  assert all(type(value) is float for value in metrics.values())


def test_type_pred_prefix_and_batch_size(serve, batch_sharding):
  evaluator, other = make(serve, batch_sharding, {
      "val": dict(PP, type="mean", pred="loss", prefix="zz_", batch_size=16),
      "bare": dict(PP, type="mean", pred="loss", prefix="")})
  assert dict(evaluator.run({"params": {"w": W}})) == {"zz_loss": 10.5 * 6}
  assert dict(other.run({"params": {"w": W}})) == {"loss": 10.5 * 6}
  shapes = [next(iter(e.evaluator._examples))["image"].shape
            for e in (evaluator, other)]
  assert shapes == [(16, 1), (8, 1)]


def test_pred_kw_reaches_the_predict_function(serve, batch_sharding):
  evaluators = make(serve, batch_sharding, {
      "up": dict(PP, type="classification"),
      "down": dict(PP, type="classification", pred_kw={"scale": -1.})})
  values = [dict(e.run({"params": {"w": W}})) for e in evaluators]
  assert values[0]["up/prec@1"] == 6 / 20  # The last class.
  assert values[1]["down/prec@1"] == 7 / 20  # The first class.


def test_an_average_is_measured_by_a_twin(serve, batch_sharding):
  task = task_lib.with_ema(
      task_lib.Task(init=None, update=None, predict_fns=PREDICT_FNS), 0.9)
  evaluators = make(serve, batch_sharding, {
      "val": dict(PP, type="mean", pred="loss", log_steps=10),
      "classification": dict(PP, pred="predict_ema", skip_first=True),
  }, task.predict_fns)
  assert [e.name for e in evaluators] == ["val", "val_ema", "classification"]
  state = {"params": {"w": W}, "ema": {"w": 2 * W}}
  assert dict(evaluators[0].run(state)) == {"val/loss": 10.5 * 6}
  assert dict(evaluators[1].run(state)) == {"val/ema/loss": 10.5 * 12}
  assert [e.log_steps for e in evaluators] == [10, 10, None]
  assert [e.skip_first for e in evaluators] == [False, False, True]


@pytest.mark.parametrize("options, expected", [
    ({}, [0, 100]),
    ({"skip_first": True}, [100]),
    ({"log_steps": 30}, [0, 30, 60, 90, 100]),
    ({"log_steps": 0}, [0, 100]),
    ({"log_examples": 640, "skip_first": True}, [40, 80, 100]),
    ({"log_epochs": 10}, [0, 40, 80, 100]),
    ({"log_percent": 0.5}, [0, 50, 100]),
])
def test_evaluators_run_at_the_steps_of_their_schedule(
    serve, batch_sharding, options, expected):
  evaluator, = make(
      serve, batch_sharding, {"classification": dict(PP, **options)})
  assert [step for step in range(101) if evaluator.due(step)] == expected


def test_a_run_of_no_steps_is_evaluated(serve, batch_sharding):
  evaluator, = make(
      serve, batch_sharding, {"classification": dict(PP, skip_first=True)},
      total_steps=0)
  assert evaluator.due(0)


def test_schedules_are_ignored_outside_of_training(serve, batch_sharding):
  options = dict(PP, log_epochs=1, skip_first=True)
  evaluator, = make(
      serve, batch_sharding, {"classification": options}, total_steps=None,
      data_size=None, train_batch_size=None)
  assert evaluator.due(0) and evaluator.due(7)


def test_a_config_without_evaluators_makes_none(batch_sharding):
  assert schedule.make_evaluators(
      None, PREDICT_FNS, batch_sharding=batch_sharding, batch_size=8) == []


@pytest.mark.parametrize("evals, message", [
    ({"val": PP}, "config.evals.val.type: .*'val'.*'classification'"),
    ({"val": dict(PP, type="fewshot_lrs")}, "mean 'fewshot_lsr'"),
    ({"schedule": PP}, "config.evals.schedule.type.*not define 'Evaluator'"),
    ({"mean": dict(PP, pred="los")}, "config.evals.mean.pred.*mean 'loss'"),
    ({"mean": dict(PP, log_step=1)}, "config.evals.mean.log_step "),
    ({"classification": dict(PP, loss="softmax_xent")},
     "config.evals.classification.loss .*mean 'loss_name'"),
    ({"mean": {"data": {}}}, "config.evals.mean lacks .'pp_fn'."),
    ({"mean": dict(PP, predict_fn=1)}, "predict_fn is set by the program"),
    ({"mean": dict(PP, log_steps=1, log_epochs=1)}, "keep one"),
    ({"mean": dict(PP, batch_size=9)},
     "config.evals.mean.batch_size is 9.*8 shards"),
    ({"mean": "classification"}, "config.evals.mean.*must be a dict"),
])
def test_mistakes_in_the_config_are_named(
    serve, batch_sharding, evals, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    make(serve, batch_sharding, evals)


def test_all_keys_count_as_read(serve, batch_sharding):
  serve({"x": ARRAYS})
  evals = config_lib.Config({"val": dict(
      PP, type="classification", pred_kw={"scale": 2.}, log_steps=3)})
  schedule.make_evaluators(
      evals, PREDICT_FNS, batch_sharding=batch_sharding, batch_size=8)
  evals.check_all_read()


def test_errors_of_a_run_name_the_evaluator(serve, batch_sharding):
  evaluator, = make(
      serve, batch_sharding, {"val": dict(PP, type="mean")})  # Not a dict.
  with pytest.raises(config_lib.ConfigError) as caught:
    dict(evaluator.run({"params": {"w": W}}))
  assert "config.evals.val" in "".join(caught.value.__notes__)


class _CountsBatches:
  """Counts batches of real data."""

  def __init__(self, loader):
    self.seen = 0
    self._examples = loader.open(  # 360 examples: 23 batches.
        {"name": "bv:digits", "split": "test"}, "keep('label')")

  def run(self, state):
    del state
    for _ in self._examples:
      self.seen += 1
    yield "seen", self.seen


def test_an_evaluation_can_be_ended_between_its_batches(loader):
  evaluator, calls = _CountsBatches(loader), []
  scheduled = [schedule.Scheduled(
      name="count", prefix="", evaluator=evaluator, loader=loader)]
  assert schedule.run_all(scheduled, {}, check=lambda: calls.append(
      evaluator.seen)) == {"seen": 23}
  assert calls == [0, 8, 16]
  schedule.run_all(scheduled, {})
  assert calls == [0, 8, 16], "A check outlives its evaluation."

  evaluator.seen = 0
  def check():
    if evaluator.seen:
      raise KeyboardInterrupt
  with pytest.raises(KeyboardInterrupt):
    schedule.run_all(scheduled, {}, check=check)
  assert evaluator.seen == 8


def test_the_seed_of_the_run_reaches_predict_functions(serve, batch_sharding):
  def draw(state, batch, *, rng=None):
    del state
    return {"draw": jax.random.uniform(rng, batch["label"].shape)}
  values = []
  for seed in (0, 0, 1):
    evaluators = make(
        serve, batch_sharding, {"val": dict(PP, type="mean", pred="draw")},
        {"draw": draw}, seed=seed)
    values.append(schedule.run_all(evaluators, {})["val/draw"])
  assert values[0] == values[1] != values[2]


def test_two_evaluators_of_one_metric_are_an_error(serve, batch_sharding):
  options = dict(PP, type="mean", pred="loss", prefix="")
  evaluators = make(serve, batch_sharding, {"a": options, "b": options})
  with pytest.raises(config_lib.ConfigError, match="evals.b measures 'loss'"):
    schedule.run_all(evaluators, {"params": {"w": W}})


@pytest.mark.parametrize("outfile", [
    "/etc/a.json", "a.json", "{workdir}", "{workdir}s/a.json",
    "{workdir}/../a.json", "{workdir}/link/a.json", "~/a.json"])
def test_evaluators_write_below_the_workdir_only(
    serve, batch_sharding, tmp_path, outfile):
  """The workdir, and the config in it, may come from somebody else."""
  workdir = tmp_path / "run"
  workdir.mkdir()
  (workdir / "link").symlink_to(tmp_path)
  options = dict(PP, type="predictions")
  for good in "{workdir}/a.json", "{workdir}/b/{name}.json":
    make(serve, batch_sharding, {"x": options | {"outfile": good}},
         workdir=str(workdir))
  with pytest.raises(config_lib.ConfigError, match=(
      "config.evals.x.outfile is .* not below the workdir")):
    make(serve, batch_sharding, {"x": options | {"outfile": outfile}},
         workdir=str(workdir))
  assert not list(tmp_path.glob("**/*.json"))


@pytest.mark.parametrize("value, what", [
    ({"mean": 1.}, "dict"), (np.ones(3), r"ndarray of shape \(3,\)"),
    (None, "NoneType"), ("0.5", "str")])
def test_values_that_are_no_numbers_or_pictures_are_named(value, what):
  class Odd:
    def run(self, state):
      yield "odd", value
  scheduled = schedule.Scheduled(
      name="mine", prefix="mine/", evaluator=Odd(), loader=None)
  with pytest.raises(config_lib.ConfigError, match=(
      f"config.evals.mine yielded 'odd' with a {what}.*a number, or a pict")):
    dict(scheduled.run({}))
