"""How the processes of a run are found, started and restarted."""

import os
import socket
import subprocess
import sys
import time

from big_vision import config as config_lib
from big_vision.run import cluster
from big_vision.run import exit_codes
from big_vision.run import launchers
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
def test_the_variables_of_a_launcher_suffice_to_train(tmp_path, launcher):
  address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{processes.free_port()}"}
  environ = {
      # A job of its own has a port of its own.
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


def test_slurm_variables_describe_the_processes():
  def find(**changes):
    return launchers.find_processes({**SLURM, **changes})
  assert find()[1:] == (2, 0, [0], "started by SLURM")
  assert find(SLURM_PROCID="1", SLURM_LOCALID="1")[1:4] == (2, 1, [1])
  assert find().address == find(SLURM_PROCID="1").address
  assert find().address != find(SLURM_STEP_ID="1").address
  for nodes, first in [("node1", "node1"), ("a-1,b-2", "a-1"),
                       ("n[003-010,12],m", "n003"), ("gpu[7,9]", "gpu7")]:
    host, port = find(SLURM_STEP_NODELIST=nodes).address.split(":")
    assert host == first and 1024 < int(port) < 65536
  # A single task on a node uses all GPUs it sees, as does one that SLURM gave
  # a GPU of its own.
  assert find(SLURM_STEP_TASKS_PER_NODE="1(x2)").local_devices is None
  assert find(SLURM_STEP_TASKS_PER_NODE="2(x3),1", SLURM_NODEID="3",
              SLURM_LOCALID="0").local_devices is None
  assert find(SLURM_LOCALID="1", CUDA_VISIBLE_DEVICES="3"
              ).local_devices is None
  assert find(SLURM_LOCALID="1", CUDA_VISIBLE_DEVICES="2,3"
              ).local_devices == [1]


def test_slurm_without_srun_is_one_process(capsys):
  """A shell from `salloc -n 2` and a batch script have the job's variables."""
  environ = {"SLURM_JOB_ID": "6", "SLURM_NTASKS": "2", "SLURM_NODELIST": "vm",
             "SLURM_JOB_NODELIST": "vm"}
  assert launchers.find_processes(environ) is None
  assert "not started by srun: it runs alone" in capsys.readouterr().out
  # `srun --pty` starts one task in such a shell.
  assert launchers.find_processes(
      {**SLURM, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}) is None
  assert not capsys.readouterr().out


def test_open_mpi_variables_describe_the_processes():
  def find(*given, **changes):
    return launchers.find_processes({**OPEN_MPI, **changes}, *given)
  assert find()[1:] == (2, 0, [0], "started by Open MPI")
  assert find().address.startswith("127.0.0.1:")  # All on one host.
  many = {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
  assert find(**many).address.startswith("192.0.2.2:")
  assert find(**many).local_devices is None
  # Version 5 does not say where mpirun runs.
  with pytest.raises(config_lib.ConfigError, match=(
      "process 0 of several, but the environment does not say "
      "--coordinator_address=HOST:PORT. Give")):
    find(OMPI_MCA_orte_hnp_uri="", **many)
  assert find("node1:77", OMPI_MCA_orte_hnp_uri="", **many)[:3] == (
      "node1:77", 2, 0)


def test_the_kubernetes_manifest_describes_the_processes():
  """Names, counts and exit codes agree in all places of the manifest."""
  manifest = yaml.safe_load((SCRIPTS / "kubernetes.yaml").read_text())
  job, = manifest["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  container, = spec["template"]["spec"]["containers"]
  environ = {item["name"]: item["value"] for item in container["env"]}
  found = launchers.find_processes({**environ, "JOB_COMPLETION_INDEX": "1"})
  assert found == (
      f"{manifest['metadata']['name']}-{job['name']}-0-0."
      f"{manifest['metadata']['name']}:1234", spec["parallelism"], 1, None,
      "from flags or JAX_* variables")
  assert spec["completions"] == spec["parallelism"]
  restarted = {exit_codes.DONE, exit_codes.HUNG, exit_codes.PREEMPTED,
               exit_codes.INTERRUPTED}
  rule, = spec["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["containerName"] == container["name"]
  assert not restarted & set(rule["onExitCodes"]["values"])
  assert restarted | set(rule["onExitCodes"]["values"]) == {
      value for name, value in vars(exit_codes).items() if name.isupper()}
  # A pod of an indexed job that does not know the address of the first one.
  assert launchers.find_processes({"JOB_COMPLETION_INDEX": "0"}) is None
  with pytest.raises(config_lib.ConfigError, match="num_processes=1 to run"):
    launchers.find_processes({"JOB_COMPLETION_INDEX": "1"})
  assert launchers.find_processes(
      {"JOB_COMPLETION_INDEX": "1"}, None, 1) is None


def test_arguments_override_the_environment():
  assert launchers.find_processes({**SLURM, **POD}, "a:1", 3, 2)[:3] == (
      "a:1", 3, 2)
  assert launchers.find_processes(SLURM, None, 1) is None
  assert launchers.find_processes({}) is None
  with pytest.raises(config_lib.ConfigError, match="no process 3 of 3"):
    launchers.find_processes({}, "a:1", 3, 3)
  with pytest.raises(config_lib.ConfigError, match="is HOST:PORT"):
    launchers.find_processes({}, "a", 3, 1)


@pytest.mark.parametrize("port", ["0", "65536", "999999", "-1", "x"])
def test_ports_that_do_not_exist(port):
  with pytest.raises(config_lib.ConfigError, match="is HOST:PORT"):
    launchers.find_processes({}, f"a:{port}", 3, 1)


@pytest.mark.parametrize("name", [
    "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JOB_COMPLETION_INDEX"])
def test_variables_that_are_no_numbers(name):
  with pytest.raises(config_lib.ConfigError,
                     match=f"The variable {name} is 'two'; it must be a num"):
    launchers.find_processes({name: "two"})


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_a_port_that_is_taken(host):
  """jax would end process 0 with a segmentation fault."""
  with socket.create_server((host, 0)) as server:
    address = f"127.0.0.1:{server.getsockname()[1]}"
    done = subprocess.run(
        [sys.executable, "-m", "big_vision.train", "--config",
         "tests/tiny_config.py", "--workdir", "never_made", "--num_processes=2",
         "--process_id=0", f"--coordinator_address={address}"],
        cwd=processes.ROOT, env=processes.environ(), capture_output=True,
        text=True, check=False, timeout=100)
  assert done.returncode == exit_codes.CONFIG, done.stderr
  assert done.stderr == (
      f"ConfigError: Process 0 cannot listen at {address}: Address already in "
      "use. Give all processes another --coordinator_address=HOST:PORT, with a "
      "port that no other program uses.\n")
  assert not (processes.ROOT / "never_made").exists()


def test_a_port_that_a_run_has_just_used_is_free():
  """The kernel keeps its connections for a minute."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    address = server.getsockname()
    with socket.create_connection(address):
      connection, _ = server.accept()
      connection.close()  # The side that closes first waits.
  cluster._check_port(f"127.0.0.1:{address[1]}")
  cluster._check_port(f"elsewhere:{address[1]}")


def test_a_process_that_waits_says_so(capsys, monkeypatch):
  monkeypatch.setattr(cluster, "_SAY_EVERY_S", 0.05)
  with cluster._waiting_for("process 0 at a:1"):
    time.sleep(0.4)
  said = capsys.readouterr().out
  assert said.startswith("Still waiting for process 0 at a:1, after 0 s.\n")
  time.sleep(0.2)
  assert not capsys.readouterr().out


def test_the_tpu_runtime_is_not_loaded_where_there_is_no_tpu(tmp_path):
  """It prints five lines of errors. It is installed for `tools.plan`."""
  (tmp_path / "libtpu.py").write_text(
      "def get_library_path():\n"
      "  import traceback\n"
      "  names = [f.name for f in traceback.extract_stack()]\n"
      "  if 'make_tpu_client' in names or 'tpu_client_timer_callback' in names:"
      "\n    print('libtpu was looked for', flush=True)\n"
      "  return '/nowhere'\n")
  code = "import jax\n{}print(jax.devices()[0].platform)"
  # The kernels for TPUs can still be imported.
  start = ("from big_vision.run import cluster\n"
           "cluster.start_processes()\n"
           "import jax.experimental.pallas.tpu\n")
  for text, looked_for in (code.format(""), True), (code.format(start), False):
    environ = processes.environ(
        PYTHONPATH=f"{tmp_path}:{processes.ROOT}", JAX_PLATFORMS="")
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, env=environ, text=True,
        capture_output=True, check=False)
    assert ("libtpu was looked for" in done.stdout) == looked_for, done.stderr
    assert done.stdout.endswith("cpu\n"), done.stderr


def test_missing_coordinator_flags_are_an_error():
  with pytest.raises(config_lib.ConfigError, match="does not say --process_id"):
    cluster.start_processes("127.0.0.1:1", 2)


def test_a_single_machine_needs_no_flags(monkeypatch):
  for name in {*SLURM, *OPEN_MPI, *POD, "JAX_COORDINATOR_ADDRESS"}:
    monkeypatch.delenv(name, raising=False)
  cluster.start_processes()  # Would hang or raise if it expected others.


def test_the_batch_script_requeues_hung_and_preempted_runs_only(tmp_path):
  """Scripts that record their arguments stand in for SLURM's commands.

  The batch script was tried under a real SLURM by hand.
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

  for code in exit_codes.HUNG, exit_codes.PREEMPTED, 137:
    assert run(code).endswith(
        "-m big_vision.train --config a b.py\nscontrol requeue 5\n")
  for code in (exit_codes.DONE, exit_codes.ERROR, exit_codes.CONFIG,
               exit_codes.NON_FINITE, exit_codes.STORAGE, exit_codes.DATA):
    assert "requeue" not in run(code)
  assert "requeue" not in run(exit_codes.HUNG, restarts=20)
