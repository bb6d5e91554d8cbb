"""Tests how a state is made and changed, and how updates are checked."""

from big_vision import sharding
from big_vision import state as state_lib
from big_vision.task import Info, Task
import jax
import jax.numpy as jnp
import numpy as np
import pytest

SPEC = {"x": jax.ShapeDtypeStruct((8, 2), jnp.float32)}


def _info(mesh):
  return Info(total_steps=10, batch_size=8, data_size=80, batch_spec=SPEC,
              mesh=mesh)


def _update(state, batch, rng):
  loss = batch["x"].mean()
  return ({"params": {"w": state["params"]["w"] + loss}},
          {"training_loss": loss, "l2_w": loss * 2, "noise":
           jax.random.normal(rng)})


def _task(update=_update, **kw):
  def init(rng, batch, given):
    del batch
    params = {"w": jax.random.normal(rng, (8, 2)), "t": jnp.log(10.)}
    return {"params": {**params, **given.get("params", {})}}
  return Task(init, update, {}, **kw)


def _make(task, strategy=((".*", "fsdp('data', 0)"),)):
  mesh = sharding.make_mesh()
  rng = jax.random.key(0)
  shapes = state_lib.infer_shapes(task, _info(mesh), rng)
  shardings = sharding.infer(shapes, strategy, mesh)
  state = state_lib.make(task, _info(mesh), rng, shapes, shardings)
  frozen = state_lib.put_frozen(task, strategy, mesh)
  update = state_lib.make_update(task, jax.random.key(1), shardings, mesh)
  return state, frozen, update


def _batch(value=1.):
  return {"x": jnp.full((8, 2), value)}


def _partial(state, batch, rng):
  changed, measurements = _update(state, batch, rng)
  return {"params": {**state["params"], **changed["params"]}}, measurements


def test_state_is_made_in_its_shards_and_strongly_typed():
  state, _, _ = _make(_task(_partial))
  assert state["params"]["w"].addressable_shards[0].data.shape == (1, 2)
  assert not any(x.weak_type for x in jax.tree.leaves(state))
  assert state["step"].dtype == jnp.int32 and int(state["step"]) == 0


def test_an_update_counts_steps_folds_the_rng_and_compiles_once():
  state, frozen, update = _make(_task(_partial))
  noises = []
  for step in range(3):
    state, measurements, ok = update(state, frozen, _batch(), ())
    assert bool(ok) and int(state["step"]) == step + 1
    noises.append(float(measurements["noise"]))
  expected = [jax.random.normal(jax.random.fold_in(jax.random.key(1), step))
              for step in range(3)]
  np.testing.assert_allclose(noises, expected, rtol=1e-6)
  assert update._cache_size() == 1


def test_non_finite_update_is_not_applied_and_is_named():
  state, frozen, update = _make(_task(_partial))
  before = jax.tree.map(np.asarray, state)
  state, measurements, ok = update(state, frozen, _batch(np.nan), ())
  jax.tree.map(np.testing.assert_array_equal, before,
               jax.tree.map(np.asarray, state))
  with pytest.raises(state_lib.NonFiniteError,
                     match="Step 7: training_loss is nan, l2_w is nan"):
    state_lib.check_finite(7, measurements, ok)
  _, measurements, ok = update(state, frozen, _batch(2.), ())
  state_lib.check_finite(8, measurements, ok)


@pytest.mark.parametrize("name, applied", [
    ("l2_grads", False), ("l2_updates", True)])
def test_gradients_decide_about_the_update_and_any_norm_stops(name, applied):
  """The loop neither continues nor saves a state once `ok` is False."""
  def update(state, batch, rng):
    changed, measurements = _partial(state, batch, rng)
    return changed, {**measurements, "l2_w": 1., name: jnp.inf}
  state, frozen, step = _make(_task(update))
  before = jax.tree.map(np.asarray, state)
  state, measurements, ok = step(state, frozen, _batch(), ())
  assert int(state["step"]) == applied
  assert np.array_equal(before["params"]["w"], state["params"]["w"]) != applied
  with pytest.raises(state_lib.NonFiniteError, match=f"{name} is inf"):
    state_lib.check_finite(1, measurements, ok)


def test_warm_start_initializes_only_what_was_not_loaded():
  loaded = np.arange(16., dtype=np.float32).reshape(8, 2)
  state, _, _ = _make(_task(
      _partial, load=lambda shapes: {"params": {"w": loaded}}))
  np.testing.assert_array_equal(state["params"]["w"], loaded)
  assert state["params"]["w"].addressable_shards[0].data.shape == (1, 2)
  np.testing.assert_allclose(state["params"]["t"], np.log(10.), rtol=1e-6)


def test_the_update_sees_frozen_and_the_state_does_not_keep_it():
  def update(state, batch, rng):
    del rng
    return {}, {"training_loss": state["frozen"]["teacher"] + batch["x"].sum()}
  state, frozen, step = _make(_task(
      update, frozen=lambda: {"teacher": np.float32(5)}))
  state, measurements, _ = step(state, frozen, _batch(0.), ())
  assert float(measurements["training_loss"]) == 5
  assert "frozen" not in state
  assert not frozen["teacher"].is_deleted()


def test_frozen_is_placed_by_the_rules_that_match_it():
  """Rules that match parameters only are skipped without an error."""
  task = _task(_partial, frozen=lambda: {
      "images": np.zeros((16, 3), np.float32), "t": np.float32(1)})
  strategy = [("params/w", "fsdp('data', 0)"), (".*images", "fsdp('data', 0)"),
              (".*", "replicate")]
  mesh = sharding.make_mesh()
  frozen = state_lib.put_frozen(task, strategy, mesh)
  assert frozen["images"].addressable_shards[0].data.shape == (2, 3)
  assert frozen["t"].sharding.is_fully_replicated
  assert state_lib.put_frozen(_task(), strategy, mesh) == {}


def test_each_value_of_a_static_choice_compiles_once():
  def update(state, batch, rng, size=1):
    del state, rng
    return {}, {"training_loss": batch["x"][:size].sum()}
  state, frozen, step = _make(_task(update))
  sums = []
  for size in (2, 3, 2):
    state, measurements, _ = step(state, frozen, _batch(), (("size", size),))
    sums.append(float(measurements["training_loss"]))
  assert sums == [4, 6, 4] and step._cache_size() == 2


@pytest.mark.parametrize("changed, message", [
    ({"params": {"w": jnp.zeros((8, 2))}}, r"lost \['params/t'\]"),
    ({"params": {"w": jnp.zeros((8, 3)), "t": jnp.zeros(())}},
     r"params/w from float32\[8,2\] to float32\[8,3\]"),
    ({"params": {"w": jnp.zeros((8, 2), jnp.bfloat16), "t": jnp.zeros(())}},
     r"params/w .* to bfloat16"),
    ({"ema": jnp.zeros(())}, "'ema'.*init did not make")])
def test_changed_types_are_named(changed, message):
  state, frozen, update = _make(_task(
      lambda state, batch, rng: (changed, {"training_loss": batch["x"].sum()})))
  with pytest.raises(ValueError, match=message):
    update(state, frozen, _batch(), ())


@pytest.mark.parametrize("measurements, message", [
    ({"loss": jnp.zeros(())}, "must measure 'training_loss'"),
    ({"training_loss": jnp.zeros(8)}, r"'training_loss' has shape \(8,\)")])
def test_measurements_are_checked(measurements, message):
  state, frozen, update = _make(_task(
      lambda state, batch, rng: ({}, measurements)))
  with pytest.raises(ValueError, match=message):
    update(state, frozen, _batch(), ())


def test_init_must_not_make_the_loops_entries():
  task = Task(lambda rng, batch, given: {"step": jnp.zeros(())}, _update, {})
  with pytest.raises(ValueError, match="'step'"):
    _make(task)
