"""Starting and stopping processes."""

import os
import signal
import subprocess
import sys

from big_vision import config as config_lib
from big_vision.run import launch
import pytest
import yaml

from tests import processes

SCRIPTS = processes.ROOT / "big_vision" / "launch_scripts"
# As `srun -n 2` of SLURM 22.05 set them for its first task.
SLURM = {
    "SLURM_JOB_ID": "61", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
# As `mpirun -np 2` of Open MPI 4.1 set them.
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_MCA_orte_hnp_uri":
        "689766400.0;tcp://192.0.2.2:35763;tcp6://[fd00::2]:51893",
    "PMIX_NAMESPACE": "689766401"}
# A pod of an indexed Job.
POD = {"JAX_NUM_PROCESSES": "2", "JOB_COMPLETION_INDEX": "0",
       "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
INDEX = {"slurm": ("SLURM_PROCID", "SLURM_LOCALID"),
         "open_mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
         "kubernetes": ("JOB_COMPLETION_INDEX",)}


@pytest.mark.parametrize("launcher", [
    "slurm", *(pytest.param(launcher, marks=pytest.mark.slow)
               for launcher in ("open_mpi", "kubernetes"))])
def test_two_processes_train_as_their_launcher_says(tmp_path, launcher):
  address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{processes.free_port()}"}
  environ = {
      # A job of its own, so that its port is.
      "slurm": {**SLURM, "SLURM_JOB_ID": str(os.getpid())},
      "open_mpi": {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": f"{os.getpid()}.0;x"},
      "kubernetes": {**POD, **address}}[launcher]
  both = [
      processes.start(tmp_path, config="tests/fault_config.py:steps=4", **{
          **environ, **{name: str(index) for name in INDEX[launcher]}})
      for index in range(2)]
  outputs = [processes.finish(process) for process in both]
  assert "2 process(es)" in outputs[0] and "step 4/4" in outputs[0]
  assert "Process 1 of 2" in outputs[1] and "step 4/4" not in outputs[1]
  assert [row["step"] for row in processes.rows(tmp_path)] == [0, 1, 2, 3, 4]


def test_slurm_tells_who_is_who():
  def find(**changes):
    return launch.find_processes({**SLURM, **changes})
  assert find()[1:] == (2, 0, [0], "started by SLURM")
  assert find(SLURM_PROCID="1", SLURM_LOCALID="1")[1:4] == (2, 1, [1])
  assert find().address == find(SLURM_PROCID="1").address
  assert find().address != find(SLURM_STEP_ID="1").address
  for nodes, first in [("node1", "node1"), ("a-1,b-2", "a-1"),
                       ("n[003-010,12],m", "n003"), ("gpu[7,9]", "gpu7")]:
    host, port = find(SLURM_STEP_NODELIST=nodes).address.split(":")
    assert host == first and 1024 < int(port) < 65536
  # One task on a node has all of its GPUs; as does one to whom SLURM gave one.
  assert find(SLURM_STEP_TASKS_PER_NODE="1(x2)").local_devices is None
  assert find(SLURM_STEP_TASKS_PER_NODE="2(x3),1", SLURM_NODEID="3",
              SLURM_LOCALID="0").local_devices is None
  assert find(SLURM_LOCALID="1", CUDA_VISIBLE_DEVICES="3"
              ).local_devices is None
  assert find(SLURM_LOCALID="1", CUDA_VISIBLE_DEVICES="2,3"
              ).local_devices == [1]


def test_slurm_without_srun_is_one_process(capsys):
  """As in a shell that `salloc -n 2` gave, and in a batch script."""
  environ = {"SLURM_JOB_ID": "6", "SLURM_NTASKS": "2", "SLURM_NODELIST": "vm",
             "SLURM_JOB_NODELIST": "vm"}
  assert launch.find_processes(environ) is None
  assert "not started by srun: it runs alone" in capsys.readouterr().out
  # `srun --pty` of one task in such a shell.
  assert launch.find_processes(
      {**SLURM, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}) is None
  assert not capsys.readouterr().out


def test_open_mpi_tells_who_is_who():
  def find(*given, **changes):
    return launch.find_processes({**OPEN_MPI, **changes}, *given)
  assert find()[1:] == (2, 0, [0], "started by Open MPI")
  assert find().address.startswith("127.0.0.1:")  # All on one host.
  many = {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
  assert find(**many).address.startswith("192.0.2.2:")
  assert find(**many).local_devices is None
  # Version 5 does not tell where mpirun runs.
  with pytest.raises(config_lib.ConfigError, match=(
      "process 0 of several, and --coordinator_address=HOST:PORT cannot")):
    find(OMPI_MCA_orte_hnp_uri="", **many)
  assert find("node1:77", OMPI_MCA_orte_hnp_uri="", **many)[:3] == (
      "node1:77", 2, 0)


def test_kubernetes_tells_who_is_who():
  """And the manifest says what is needed, the same in all places."""
  manifest = yaml.safe_load((SCRIPTS / "kubernetes.yaml").read_text())
  job, = manifest["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  container, = spec["template"]["spec"]["containers"]
  environ = {item["name"]: item["value"] for item in container["env"]}
  found = launch.find_processes({**environ, "JOB_COMPLETION_INDEX": "1"})
  assert found == (
      f"{manifest['metadata']['name']}-{job['name']}-0-0."
      f"{manifest['metadata']['name']}:1234", spec["parallelism"], 1, None,
      "as told")
  assert spec["completions"] == spec["parallelism"]
  restarted = {launch.EXIT_DONE, launch.EXIT_HUNG, launch.EXIT_PREEMPTED,
               launch.EXIT_INTERRUPTED}
  rule, = spec["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["containerName"] == container["name"]
  assert not restarted & set(rule["onExitCodes"]["values"])
  assert restarted | set(rule["onExitCodes"]["values"]) == {
      value for name, value in vars(launch).items() if name.startswith("EXIT_")}
  # A pod of an indexed job that is not told where the first is.
  assert launch.find_processes({"JOB_COMPLETION_INDEX": "0"}) is None
  with pytest.raises(config_lib.ConfigError, match="num_processes=1 for"):
    launch.find_processes({"JOB_COMPLETION_INDEX": "1"})
  assert launch.find_processes({"JOB_COMPLETION_INDEX": "1"}, None, 1) is None


def test_arguments_come_before_the_environment():
  assert launch.find_processes({**SLURM, **POD}, "a:1", 3, 2)[:3] == (
      "a:1", 3, 2)
  assert launch.find_processes(SLURM, None, 1) is None
  assert launch.find_processes({}) is None
  with pytest.raises(config_lib.ConfigError, match="no process 3 of 3"):
    launch.find_processes({}, "a:1", 3, 3)
  with pytest.raises(config_lib.ConfigError, match="is HOST:PORT"):
    launch.find_processes({}, "a", 3, 1)


def test_half_of_the_coordinator_s_flags_is_an_error():
  with pytest.raises(config_lib.ConfigError, match="--process_id cannot be"):
    launch.start_processes("127.0.0.1:1", 2)


def test_one_machine_needs_nothing(monkeypatch):
  for name in {*SLURM, *OPEN_MPI, *POD, "JAX_COORDINATOR_ADDRESS"}:
    monkeypatch.delenv(name, raising=False)
  launch.start_processes()  # Would hang or raise if it looked for others.


def test_the_batch_script_starts_one_process_a_node_and_comes_back(tmp_path):
  """With commands in the place of SLURM's that say what they were called with.

  Under a real SLURM it was tried by hand.
  """
  calls = tmp_path / "calls"
  for name, code in ("srun", "${SRUN_CODE}"), ("scontrol", "0"):
    command = tmp_path / name
    command.write_text(f'#!/bin/sh\necho {name} "$@" >> {calls}\nexit {code}\n')
    command.chmod(0o755)

  def run(code, restarts=0):
    calls.write_text("")
    done = subprocess.run(
        ["bash", str(SCRIPTS / "slurm.sh"), "--config", "a b.py"], check=False,
        capture_output=True, env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "SRUN_CODE": str(code),
            "SLURM_JOB_ID": "5", "SLURM_RESTART_COUNT": str(restarts)})
    assert done.returncode == code, done.stderr
    return calls.read_text()

  for code in launch.EXIT_HUNG, launch.EXIT_PREEMPTED, 137:
    assert run(code).endswith(
        "-m big_vision.train --config a b.py\nscontrol requeue 5\n")
  for code in (launch.EXIT_DONE, launch.EXIT_ERROR, launch.EXIT_CONFIG,
               launch.EXIT_NON_FINITE, launch.EXIT_STORAGE, launch.EXIT_DATA):
    assert "requeue" not in run(code)
  assert "requeue" not in run(launch.EXIT_HUNG, restarts=20)


def test_workdir_that_cannot_be_made(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(config_lib.ConfigError, match="cannot be written"):
    launch.check_workdir(str(tmp_path / "file" / "workdir"))
  launch.check_workdir(str(tmp_path / "a" / "b"))
  assert os.listdir(tmp_path / "a" / "b") == []


def test_the_lock_of_a_workdir(tmp_path):
  """Runs in real processes: test_faults.py."""
  with launch.lock_workdir(str(tmp_path)):
    with pytest.raises(config_lib.ConfigError, match=(
        f"in use by another run, process {os.getpid()} on ")):
      with launch.lock_workdir(str(tmp_path)):
        pass
  with launch.lock_workdir(str(tmp_path)):
    pass
  with launch.lock_workdir("gs://bucket/run"):
    pass  # It knows no locks, and nothing is made here.
  assert not os.path.exists("gs:")


@pytest.mark.parametrize("error, code", [
    ("config_lib.ConfigError('x')", launch.EXIT_CONFIG),
    ("launch.Interrupted(3, 143)", launch.EXIT_PREEMPTED),
    ("KeyError('x')", launch.EXIT_ERROR)])
def test_exit_codes_and_tracebacks(error, code):
  done = subprocess.run(
      [sys.executable, "-c",
       "from big_vision import launch, config as config_lib\n"
       "with launch.exit_codes({config_lib.ConfigError: launch.EXIT_CONFIG}):\n"
       f"  raise {error}"], capture_output=True, text=True, check=False)
  assert done.returncode == code
  assert ("Traceback" in done.stderr) == (code == launch.EXIT_ERROR)


@pytest.mark.parametrize("number, code", [
    (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_becomes_a_question_and_the_second_one_kills(number, code):
  done = subprocess.run(
      [sys.executable, "-c",
       "import os\n"
       "from big_vision import launch\n"
       "interrupts = launch.Interrupts()\n"
       "assert interrupts.exit_code(1) is None\n"
       f"os.kill(os.getpid(), {int(number)})\n"
       f"assert interrupts.exit_code(2) == {code}\n"
       "print('asked', flush=True)\n"
       f"os.kill(os.getpid(), {int(number)})\n"
       "print('not reached')"], capture_output=True, text=True, check=False)
  assert done.returncode == -number and done.stdout == "asked\n", done.stderr
