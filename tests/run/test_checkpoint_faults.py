"""Tests checkpoints with killed processes, full disks and lost files."""

import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

from big_vision import tree
from big_vision.run import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest

# orbax leaves unclosed resources behind after a failed read or write.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning")

ROOT = pathlib.Path(__file__).parents[2]
SMALL, BIG = 1 << 13, 1 << 17


def _values(step, size=SMALL):
  """Makes a state on the host: incompressible, and different for every step."""
  draw = lambda i, *shape: np.random.default_rng([step, i]).normal(size=shape)
  # Several sharded arrays: reading must not mix up their collectives.
  split = {f"split{i}": np.float32(draw(i, 16, size // 64)) for i in range(4)}
  return {"params": {**split, "whole": draw(9, 5).astype(jnp.bfloat16)},
          "step": np.int32(step)}


def _shapes(size=SMALL):
  """Returns the shapes of `_values` with shardings over all devices."""
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("data",))
  def shape(x):
    names = ("data",) if x.ndim == 2 else ()
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=(
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*names))))
  return jax.tree.map(shape, _values(0, size))


def _state(step, size=SMALL):
  return jax.tree.map(
      lambda shape, x: jax.make_array_from_callback(
          shape.shape, shape.sharding, lambda index: x[index]),
      _shapes(size), _values(step, size))


def _assert_is_of(state, step, size=SMALL):
  """Asserts that all shards of this process have the values of `step`."""
  expected = dict(tree.flatten_with_names(_values(step, size)))
  named = dict(tree.flatten_with_names(state))
  assert set(named) == set(expected)
  for name, leaf in named.items():
    for shard in leaf.addressable_shards:
      np.testing.assert_array_equal(
          shard.data, expected[name][shard.index], err_msg=name)


def _python(code, *args, before=()):
  """Starts a process with one device that can import this file."""
  return subprocess.Popen(
      [*before, sys.executable, "-c", code, *map(str, args)], cwd=ROOT,
      text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={
          **os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu",
          "PYTHONPATH": os.pathsep.join(
              [str(ROOT), str(ROOT / "tests" / "run")])})


# Imports are slow, so every process to kill is forked from one that has done
# them, before jax starts any thread.
_SAVES_UNTIL_KILLED = """
import os, sys
from big_vision.run import checkpoints
import test_checkpoint_faults as test

for _ in sys.stdin:
  pid = os.fork()
  if pid == 0:
    saver = checkpoints.Checkpoints(sys.argv[1], keep_every=7)
    restored = saver.restore(test._shapes(test.BIG))
    first = 0
    if restored is not None:
      first, state, _ = restored
      test._assert_is_of(state, first, test.BIG)
    print("continues after", first, flush=True)
    for step in range(first + 1, 10_000):
      saver.save(step, test._state(step, test.BIG), {"note": step})
    os._exit(1)
  print(pid, flush=True)
  code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  print("ended by", code, flush=True)
"""


def test_kill_9_while_saving(tmp_path):
  """Committed steps are restored and no remains are left, whenever it dies."""
  directory = tmp_path / "checkpoints"
  shapes = _shapes(BIG)
  rng, best, interrupted = random.Random(3), 0, 0
  with _python(_SAVES_UNTIL_KILLED, directory) as zygote:
    def tell():
      line = zygote.stdout.readline()
      assert line, "The process ended by itself."
      return line.split()[-1]
    for trial in range(8):
      print("go", file=zygote.stdin, flush=True)
      pid = int(tell())
      assert int(tell()) >= best
      if trial:  # The first is killed at once, before any step is complete.
        until = time.monotonic() + 30
        while not checkpoints.list_steps(directory)[-1:] > [best]:
          assert time.monotonic() < until
          time.sleep(.01)
        time.sleep(rng.uniform(0, .2))
      os.kill(pid, signal.SIGKILL)
      assert tell() == "-9"
      committed = checkpoints.list_steps(directory)
      names = {path.name for path in directory.iterdir()} - {"saving.txt"}
      interrupted += names != set(map(str, committed))
      with checkpoints.Checkpoints(str(directory), keep_every=7) as saver:
        restored = saver.restore(shapes)
        if committed:
          step, state, meta = restored
          assert step == committed[-1] >= best and meta == {"note": step}
          _assert_is_of(state, step, BIG)
          best = step
        else:
          assert restored is None
        names = {path.name for path in directory.iterdir()}
        assert names == set(map(str, saver.steps()))
    zygote.stdin.close()
  assert best > 0 and interrupted > 0
  assert set(range(7, best, 7)) <= set(checkpoints.list_steps(directory))


@pytest.fixture
def small_files():
  """Limits files to 64 kB; yields a function that lifts the limit."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  def lift():
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
  yield lift
  lift()
  signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("noticed_by", ["wait", "save", "close"])
def test_a_failed_save_raises_and_leaves_no_step(
    tmp_path, small_files, noticed_by):
  saver = checkpoints.Checkpoints(str(tmp_path))
  saver.save(1, _state(1))
  saver.wait()
  saver.save(2, _state(2, BIG))
  with pytest.raises(
      checkpoints.StorageError, match=rf"(?s)step 2 to {tmp_path}/2 .*\[1\]"):
    {"wait": saver.wait, "close": saver.close,
     "save": lambda: saver.save(3, _state(3))}[noticed_by]()
  assert saver.latest() == 1
  assert not (tmp_path / "2").exists() and not (tmp_path / "3").exists()
  step, state, _ = saver.restore(_shapes())
  assert step == 1
  _assert_is_of(state, 1)
  small_files()
  for step in (2, 3):  # The one that failed, and the next.
    saver.save(step, _state(step, BIG))
    saver.wait()
    assert saver.latest() == step
    _assert_is_of(saver.restore(_shapes(BIG))[1], step, BIG)
  saver.close()
  assert {path.name for path in tmp_path.iterdir()} == {"2", "3"}


_FILLS_THE_DISK = """
import pathlib, sys
from big_vision.run import checkpoints
import test_checkpoint_faults as test

directory = pathlib.Path(sys.argv[1]) / "checkpoints"
saver = checkpoints.Checkpoints(str(directory))
saver.save(1, test._state(1))
saver.wait()

def save_2(size):
  try:
    saver.save(2, test._state(2, size))
    saver.wait()
    print("not noticed")
  except checkpoints.StorageError as error:
    print("noticed:", error)
  print("latest", saver.latest(), [*directory.glob("2*")])

save_2(test.BIG)
filler = directory.parent / "filler"
try:
  with open(filler, "wb", buffering=0) as file:
    while True:
      file.write(bytes(1 << 12))
except OSError:
  pass
save_2(test.SMALL)  # There is no room for the first of its files.
filler.unlink()
saver.save(3, test._state(3))
saver.close()
step, state, _ = checkpoints.Checkpoints(
    str(directory), read_only=True).restore(test._shapes())
test._assert_is_of(state, step)
print("restored", step)
"""


def test_a_full_disk(tmp_path):
  """Uses a file system of its own with 400 kB."""
  mount = 'mount -t tmpfs -o size=400k tmpfs "$0" && exec "$@"'
  for options in (["-m"], ["-r", "-m"]):
    before = ["unshare", *options, "sh", "-c", mount, tmp_path]
    allowed = subprocess.run(
        [*before, "true"], capture_output=True, check=False)
    if allowed.returncode == 0:
      break
  else:  # Without permission to mount, the test above has to suffice.
    return
  process = _python(_FILLS_THE_DISK, tmp_path, before=before)
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 0, output
  assert output.count("noticed: Saving step 2") == 2, output
  assert output.lower().count("no space left") == 2, output
  assert output.count("latest 1 []\n") == 2, output
  assert "not noticed" not in output and "restored 3" in output
  assert not list(tmp_path.iterdir()), "The file system was not mounted."


_ONE_OF_TWO = """
import json, pathlib, sys
import jax, numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
address = f"127.0.0.1:{sys.argv[2]}"
jax.distributed.initialize(
    address, 2, int(sys.argv[3]), coordinator_bind_address=address,
    cluster_detection_method="deactivate", shutdown_timeout_seconds=10)
from jax.experimental import multihost_utils
from big_vision.run import checkpoints
import test_checkpoint_faults as test

directory = pathlib.Path(sys.argv[1])
shapes = test._shapes()

def restore():
  step, state, meta = saver.restore(shapes)
  test._assert_is_of(state, step)
  return [step, saver.latest(), saver.steps(), meta]

seen = []
with checkpoints.Checkpoints(str(directory)) as saver:
  seen.append(saver.restore(shapes))
  for step in (1, 2):
    saver.save(step, test._state(step), {"note": step})
  # An array of the host, which every process has, is stored once.
  saver.save(3, {**test._state(3), "step": np.int32(3)}, {"note": 3})
  saver.wait()
  seen.append(restore())

  # Only the second process reads these files.
  files = [*(directory / "3/state/ocdbt.process_1/d").iterdir()]
  assert files
  multihost_utils.sync_global_devices("listed")
  if jax.process_index() == 0:
    for file in files:
      file.unlink()
  multihost_utils.sync_global_devices("removed")
  seen.append(restore())

  saver.save(3, test._state(3), {"note": 33})
  seen.append(restore())
  try:
    saver.restore({"step": shapes["step"]})
  except checkpoints.CheckpointMismatch as error:
    seen.append(str(error))
  try:
    saver.save(2, test._state(3))
  except checkpoints.StorageError as error:
    seen.append(str(error))
  # Only what the first process sees of the directory counts.
  if jax.process_index() == 1:
    checkpoints.folders.list_steps = lambda unused: [1000]
  seen.append(saver.latest())
print("SEEN", json.dumps(seen), flush=True)
"""


def test_two_processes_agree(tmp_path, capfd):
  """Neither waits forever when the other one cannot read."""
  with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
  processes = [_python(_ONE_OF_TWO, tmp_path, port, i) for i in range(2)]
  try:
    outputs = [process.communicate(timeout=60)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0, 0], outputs
  seen = [json.loads(re.search("^SEEN (.*)$", output, re.M)[1])
          for output in outputs]
  assert seen[0] == seen[1]
  assert seen[0][:4] == [
      None,
      [3, 3, [2, 3], {"note": 3}],
      [2, 2, [2], {"note": 2}],
      [3, 3, [2, 3], {"note": 33}]]
  assert "only stored: params/split0" in seen[0][4]
  assert "2 exists and has other values" in seen[0][5]
  assert seen[0][6:] == [3]
  assert outputs[0].count("It is set aside as 3.damaged. Taking step 2") == 1
  assert "It is set aside" not in outputs[1]
  assert "The arrays of" in capfd.readouterr().err, (
      "The process that failed says why.")
  assert (tmp_path / "3.damaged").is_dir()
  # In this process, on eight devices.
  step, state, _ = checkpoints.Checkpoints(
      str(tmp_path), read_only=True).restore(_shapes())
  assert step == 3
  _assert_is_of(state, 3)
  assert len(state["params"]["split0"].sharding.device_set) == 8


def test_a_directory_that_is_removed_while_the_run_goes_on(tmp_path):
  """The next save makes it again; what remains of one does not disturb."""
  directory, state = tmp_path / "checkpoints", {"x": jnp.arange(4.0)}
  with checkpoints.Checkpoints(str(directory)) as saver:
    saver.save(2, state)
    saver.wait()
    shutil.rmtree(directory)
    saver.save(4, state)
    saver.wait()
    assert saver.steps() == [4]
    saver.save(6, state)
    shutil.rmtree(directory, ignore_errors=True)
    try:  # The save was done, or it fails and the next command continues.
      saver.wait()
    except checkpoints.StorageError as error:
      assert "the same command continues" in str(error)
    saver.save(8, state)
  shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state)
  step, restored, _ = checkpoints.Checkpoints(str(directory)).restore(shapes)
  assert step == 8 and (restored["x"] == state["x"]).all()


def test_what_remains_of_an_incomplete_step_is_not_a_lost_run(tmp_path):
  folder = tmp_path / "6.damaged" / "state"
  folder.mkdir(parents=True)
  (folder / "manifest").write_text("partial")
  state = {"x": jnp.arange(4.0)}
  shapes = {"x": jax.ShapeDtypeStruct((4,), jnp.float32)}
  with checkpoints.Checkpoints(str(tmp_path)) as saver:
    assert saver.restore(shapes) is None
    saver.save(6, state)
  assert checkpoints.list_steps(str(tmp_path)) == [6] and folder.exists()
