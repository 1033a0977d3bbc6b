# Sourced by the scripts that start train.py and eval.py.
# shellcheck shell=bash

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034  # the scripts that source this read it
device_target=${DEVICE_TARGET:-Ascend} # CPU runs the same script without a card

# The Python that has MindSpore: PYTHON in the environment, else the project's .venv, else the PATH's.
if [ -z "${PYTHON:-}" ]; then
  if [ -x "$project/.venv/bin/python" ]; then PYTHON=$project/.venv/bin/python; else PYTHON=python; fi
fi

# usage_error MESSAGE USAGE: both to standard error, exit 2.
usage_error() {
  echo "error: $1" >&2
  echo "usage: $2" >&2
  exit 2
}

# need_device_id VALUE USAGE, need_file NAME VALUE USAGE: exit 2 unless the argument is one.
need_device_id() {
  [[ $1 =~ ^[0-9]+$ ]] || usage_error "DEVICE_ID must be a number such as 0, not '$1'" "$2"
}
need_file() {
  [ -f "$2" ] || usage_error "$1 '$2' is no file" "$3"
}

# resolve train|eval CONFIG FLAG...: sets the array `flags` to the flags with every path absolute; exit 2 if one is wrong.
resolve() {
  local paths
  paths=$("$PYTHON" "$project/scripts/absolute_flags.py" "$@") || exit
  eval "flags=($paths)" # they come quoted
  flags=("${@:3}" "${flags[@]}")
}

# keep_log FILE: give a log that says something, such as why a run died, another name: log.1.txt and so on.
keep_log() {
  local number=1
  [ -s "$1" ] || return 0
  while [ -e "${1%.txt}.$number.txt" ]; do number=$((number + 1)); done
  mv "$1" "${1%.txt}.$number.txt"
}
