# Sourced by the scripts that run on a bare machine: finds Python, makes a virtual environment.
# shellcheck shell=bash

# Print the command of a Python that has a MindSpore wheel; PYTHON in the environment chooses one.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.10 python3.9}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    install_debian python3 python3-venv >&2 && PYTHON=python3 && command -v python3 && return
  fi
  echo "error: no Python 3.9 to 3.12 found; install one, or name it: PYTHON=/path/to/python3.11 bash $0" >&2
  return 1
}

# install_debian PACKAGE...: install what is missing, where that is allowed.
install_debian() {
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "error: missing: $*; install them with your package manager" >&2
    return 1
  fi
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@"
}

# make_venv FOLDER PIP_ARGUMENT...: a virtual environment with these packages; nothing is done where it is there.
make_venv() {
  local folder=$1 python stamp
  shift
  stamp="$folder/.installed-$({ echo "$@" && cat requirements.txt; } | cksum | cut -d ' ' -f 1)"
  [ -f "$stamp" ] && return
  python=$(find_python) || return
  echo "making $folder with $("$python" --version) (minutes the first time: MindSpore alone is 800 MB)"
  if ! "$python" -m venv "$folder" >/dev/null 2>&1; then
    install_debian python3-venv && "$python" -m venv "$folder" || return
  fi
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" || return
  "$folder/bin/python" -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null || install_debian libgomp1 || return
  touch "$stamp"
}
