# Sourced by the scripts that start one process a card: reads their arguments and becomes the launcher of the ranks.
# shellcheck shell=bash

source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

# distribute PROGRAM RANKS ARGUMENT...: PROGRAM is train or eval; RANKS says what the first argument is: RANK_TABLE_FILE,
# or the number of this server's ranks, CARDS or WORKERS. eval takes a checkpoint too.
distribute() {
  local program=$1 ranks=$2 needed usage which
  shift 2
  if [ "$program" = eval ]; then needed=3; else needed=2; fi
  usage="bash $0 [$ranks] [CONFIG_PATH]${eval_usage[$needed]} [--detach] [--max_restarts N] [FLAG VALUE ...]
  --detach: in the background; --max_restarts N: start all ranks again after a failure"
  take_options "$@"
  set -- "${rest[@]}"
  [ $# -ge "$needed" ] || usage_error "${needs[$needed]//RANKS/$ranks}" "$usage"
  if [ "$ranks" = RANK_TABLE_FILE ]; then
    need_file "$ranks" "$1" "$usage"
    which=--rank_table
  else
    need_count "$ranks" "$1" "$usage"
    which=--workers
  fi
  need_file CONFIG_PATH "$2" "$usage"
  if [ "$program" = eval ]; then
    need_file CHECKPOINT_PATH "$3" "$usage"
    resolve eval "$2" --pretrained "$3" "${@:4}"
  else
    resolve train "${@:2}"
  fi
  # Rank 0 writes to the caller's folder, not to its own; --train_url in the flags comes later and wins.
  PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" -m src.launcher.supervisor "$which" "$1" \
    "${options[@]}" --folder "${program}_parallel" --device_target "$device_target" --restart_flags="--resume auto" -- \
    "$PYTHON" "$project/$program.py" --device_target "$device_target" --train_url "$PWD" "${flags[@]}"
}

# By the number of arguments that are needed: 2 to train, 3 to evaluate.
eval_usage=([2]="" [3]=" [CHECKPOINT_PATH]")
needs=([2]="RANKS and CONFIG_PATH are needed" [3]="RANKS, CONFIG_PATH and CHECKPOINT_PATH are needed")

# take_options ARGUMENT...: what is the launcher's goes to the array `options`, the rest to `rest`; reads `usage`.
take_options() {
  options=() rest=()
  while [ $# -gt 0 ]; do
    case $1 in
      --detach) options+=("$1") ;;
      --max_restarts)
        [[ ${2:-} =~ ^[0-9]{1,9}$ ]] || usage_error "--max_restarts must be followed by a number, not '${2:-}'" "$usage"
        options+=("$1" "$2")
        shift
        ;;
      *) rest+=("$1") ;;
    esac
    shift
  done
}

# need_count NAME VALUE USAGE: exit 2 unless the argument can be the number of a server's ranks.
need_count() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || usage_error "$1 must be a number such as 8, not '$2'" "$3"
  [ ${#2} -le 4 ] && [ "$2" -le 1024 ] || usage_error "$1 must be a number from 1 to 1024, not '$2'" "$3"
}
