#!/usr/bin/env bash
# Trains on SLURM: one process on each node, which uses all of the node's GPUs.
#
# Run this once in the project's folder, on a file system that all nodes share:
#
#   EXTRAS=gpu bash run.sh big_vision.run.cluster   # makes .venv
#
# Then start the run in the same folder. Options of sbatch come before the
# script, those of the run after it:
#
#   sbatch --nodes=4 big_vision/launch_scripts/slurm.sh \
#       --config big_vision/configs/vit_s16_i1k.py --workdir /shared/runs/s16
#
# The processes find each other by the variables that srun sets. In a shell
# that salloc opened, put srun before the training command; otherwise a single
# process runs.
#
#SBATCH --job-name=big_vision
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# Two minutes before the time is up, SLURM sends SIGTERM to the processes (not
# to this script). They save and exit with code 143, and the job is queued
# again. A large model may need more time for saving.
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -uo pipefail

# sbatch runs a copy of this file, so its own folder says nothing.
cd "${SLURM_SUBMIT_DIR:-.}"
python="${BIG_VISION_PYTHON:-${BIG_VISION_VENV:-.venv}/bin/python}"

# The processes end together; --wait kills one that does not.
srun --wait=120 "$python" -m big_vision.train "$@"
code=$?

# docs/faults.md lists the exit codes. After a stop (143), a hang or a lost
# process (4) or a signal (above 128), the same command continues the run. Other
# errors, in the config or in the data, would only be repeated.
if [[ $code -eq 4 || $code -gt 128 ]] && [[ -n ${SLURM_JOB_ID:-} ]]; then
  if [[ ${SLURM_RESTART_COUNT:-0} -lt ${BIG_VISION_MAX_RESTARTS:-20} ]]; then
    echo "Exit code $code: the job is queued again."
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
