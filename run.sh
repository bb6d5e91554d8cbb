#!/usr/bin/env bash
# Sets up what is needed, once, then runs a module of this project or its tests.
#
#   bash run.sh big_vision.train --config big_vision/configs/quickstart.py
#   bash run.sh pytest
#
# The virtual environment is .venv (or $BIG_VISION_VENV). It is installed anew
# when pyproject.toml or requirements.txt change. EXTRAS=gpu adds extras.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if [[ $# -eq 0 ]]; then
  sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 2
fi

venv="${BIG_VISION_VENV:-.venv}"
extras="${EXTRAS:-}"
if [[ $1 == pytest ]]; then
  extras="${extras:+$extras,}dev"
fi

source big_vision/launch_scripts/find_python.sh
if [[ ! -x $venv/bin/python ]]; then
  python="$(find_python)"
  echo "Making the virtual environment $venv with $("$python" --version) ..." >&2
  "$python" -m venv "$venv"
fi

# One stamp per set of extras: nothing is reinstalled the second time.
wanted="$(cat pyproject.toml big_vision/requirements.txt)"
stamp="$venv/installed-${extras//,/-}"
if [[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]]; then
  echo "Installing (a few minutes the first time) ..." >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --editable ".${extras:+[$extras]}"
  echo "$wanted" > "$stamp"
fi

if [[ $1 == pytest ]]; then
  shift
  exec "$venv/bin/python" -m pytest -n 2 --dist loadfile "$@"
fi
exec "$venv/bin/python" -m "$@"
