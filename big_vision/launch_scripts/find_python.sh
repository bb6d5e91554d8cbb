# run.sh and run_tpu.sh source this file. `find_python` prints the name of the
# first suitable Python, or an error that says what is needed.
find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python 3.11, 3.12 or 3.13 with venv is needed (TensorFlow has no build for others); found: $(python3 --version 2>&1). On Ubuntu 22.04 and Debian 12: sudo apt-get install python3.11-venv" >&2
  return 1
}
