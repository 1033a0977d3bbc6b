# Sourced by the scripts that start one process a card: hands over to the supervisor of the ranks.
# shellcheck shell=bash

source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

# usage_of ARGUMENTS: sets `usage`, for usage_error.
usage_of() {
  usage="bash $0 $1 [--detach] [--max_restarts N] [FLAG VALUE ...]
  --detach: in the background; --max_restarts N: start all ranks again after a failure"
}

# take_options ARGUMENT...: what is the supervisor's goes to the array `options`, the rest to `rest`.
take_options() {
  options=() rest=()
  while [ $# -gt 0 ]; do
    case $1 in
      --detach) options+=("$1") ;;
      --max_restarts)
        [[ ${2:-} =~ ^[0-9]+$ ]] || usage_error "--max_restarts must be followed by a number, not '${2:-}'" "$usage"
        options+=("$1" "$2")
        shift
        ;;
      *) rest+=("$1") ;;
    esac
    shift
  done
}

# need_count NAME VALUE USAGE: exit 2 unless the argument is a number from 1.
need_count() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || usage_error "$1 must be a number such as 8, not '$2'" "$3"
}

# distribute FOLDER PROGRAM RANKS...: becomes the supervisor of PROGRAM with the array `flags`; RANKS says which ranks.
distribute() {
  local folder=$1 program=$2
  shift 2
  # Rank 0 writes to the caller's folder, not to its own; --train_url in the flags comes later and wins.
  PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" -m src.launcher.supervisor "$@" "${options[@]}" \
    --folder "$folder" --device_target "$device_target" --restart_flags="--resume auto" -- \
    "$PYTHON" "$project/$program" --device_target "$device_target" --train_url "$PWD" "${flags[@]}"
}
