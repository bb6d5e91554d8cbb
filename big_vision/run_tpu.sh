#!/usr/bin/env bash
# Runs a module on a Cloud TPU VM. To run it on every worker of a slice:
#
#   gcloud compute tpus tpu-vm ssh $NAME --zone=$ZONE --worker=all \
#     --command "bash big_vision/run_tpu.sh big_vision.train --config ..."
#
# The first run makes a virtual environment; without arguments, nothing else
# happens. Only the folder that holds this file is needed.
set -euo pipefail
package="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cd "$package/.."

venv="${BIG_VISION_VENV:-bv_venv}"
if [[ ! -x $venv/bin/python ]]; then
  source "$package/launch_scripts/find_python.sh"
  python="$(find_python)"
  "$python" -m venv "$venv"
fi

wanted="$(cat "$package/requirements.txt")"
if [[ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]]; then
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --requirement "$package/requirements.txt" "jax[${BIG_VISION_JAX:-tpu}]"
  echo "$wanted" > "$venv/installed"
fi

if [[ $# -gt 0 ]]; then
  exec "$venv/bin/python" -m "$@"
fi
