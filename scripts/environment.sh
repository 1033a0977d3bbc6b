# Sourced by the scripts that run on a bare machine: finds Python, makes a virtual environment.
# shellcheck shell=bash

# suits PYTHON: whether there is a MindSpore wheel for it.
suits() {
  "$1" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

# version_of PYTHON: as in 3.11
version_of() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

# Print the command of a Python that has a MindSpore wheel. PYTHON in the environment names one, and then it is that one.
find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    if suits "$PYTHON"; then
      echo "$PYTHON"
    elif candidate=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); then
      echo "error: PYTHON=$PYTHON: is Python $candidate; MindSpore has wheels for 3.9 to 3.12" >&2
      return 1
    else
      echo "error: PYTHON=$PYTHON: cannot be run$(why_not "$PYTHON"); name a Python 3.9 to 3.12, or unset PYTHON" >&2
      return 1
    fi
    return
  fi
  for candidate in python3 python3.11 python3.12 python3.10 python3.9; do
    if suits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    install_debian python3 python3-venv >&2 && suits python3 && echo python3 && return
  fi
  echo "error: no Python 3.9 to 3.12 found; install one, or name it: PYTHON=/path/to/python3.11 bash $0" >&2
  return 1
}

# why_not COMMAND: the first line that it says instead of running, in brackets.
why_not() {
  local said
  said=$("$1" -c pass 2>&1 | head -n 1) || true
  echo "${said:+ ($said)}"
}

# install_debian PACKAGE...: install what is missing, where that is allowed, and say so.
install_debian() {
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "error: missing: $*; install them with your package manager" >&2
    return 1
  fi
  echo "installing what is missing: apt-get install $*"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@"
}

# make_venv FOLDER PIP_ARGUMENT...: a virtual environment with these packages; nothing is done where it is there.
make_venv() {
  local folder=$1 python stamp
  shift
  if [ -x "$folder/bin/python" ] && [ -n "${PYTHON:-}" ]; then
    python=$(find_python) || return
    if [ "$(version_of "$python")" != "$(version_of "$folder/bin/python")" ]; then
      echo "error: PYTHON=$PYTHON is $(version_of "$python"), but $folder was made with" \
        "$(version_of "$folder/bin/python"); remove $folder, or unset PYTHON" >&2
      return 1
    fi
  fi
  stamp="$folder/.installed-$({ echo "$@" && cat requirements*.txt pyproject.toml; } | cksum | cut -d ' ' -f 1)"
  [ -f "$stamp" ] && return
  if [ ! -x "$folder/bin/python" ]; then
    python=$(find_python) || return
    echo "making $folder with $("$python" --version) (minutes the first time: MindSpore alone is 800 MB)"
    if ! "$python" -m venv "$folder" >/dev/null 2>&1; then
      install_debian python3-venv && "$python" -m venv "$folder" || return
    fi
  fi
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" || return
  "$folder/bin/python" -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null || install_debian libgomp1 || return
  touch "$stamp"
}

# test_venv: the name of the tests' environment, one for each MindSpore and Python that the environment names.
test_venv() {
  local folder=.venv-test python
  if [ -n "${PYTHON:-}" ]; then
    python=$(find_python) || return
    folder=$folder-$(version_of "$python")
  fi
  echo "$folder${MINDSPORE:+-$MINDSPORE}"
}
