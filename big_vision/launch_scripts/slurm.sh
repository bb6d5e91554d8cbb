#!/usr/bin/env bash
# Trains on SLURM: one process on each node, with all of the node's GPUs.
#
# Once, on a file system that all nodes see, from the project's folder:
#
#   EXTRAS=gpu bash run.sh big_vision.run.cluster   # makes .venv
#
# Then, from there too; options of sbatch come first, those of the run last:
#
#   sbatch --nodes=4 big_vision/launch_scripts/slurm.sh \
#       --config big_vision/configs/vit_s16_i1k.py --workdir /shared/runs/s16
#
# Nothing has to be said about who is who: that comes from srun. In a shell that
# salloc gave, put srun before the command; without it, it runs once, alone.
#
#SBATCH --job-name=big_vision
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# Two minutes before the time is up, SIGTERM to the processes (not to this
# script): they save and end with 143, and the job goes to the queue again. With
# a large model, give the time that saving takes.
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -uo pipefail

# sbatch copies this file, so the place it was submitted from counts.
cd "${SLURM_SUBMIT_DIR:-.}"
python="${BIG_VISION_PYTHON:-${BIG_VISION_VENV:-.venv}/bin/python}"

# --wait: all end together by themselves; whoever does not is ended.
srun --wait=120 "$python" -m big_vision.train "$@"
code=$?

# Exit codes are in the README. Stopped (143), hung or lost a peer (4), killed by
# a signal (above 128): the same command continues. A mistake in the config or in
# the data would only be repeated.
if [[ $code -eq 4 || $code -gt 128 ]] && [[ -n ${SLURM_JOB_ID:-} ]]; then
  if [[ ${SLURM_RESTART_COUNT:-0} -lt ${BIG_VISION_MAX_RESTARTS:-20} ]]; then
    echo "Exit code $code: the job goes to the queue again."
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
