#!/usr/bin/env bash
# Evaluate a checkpoint with several processes on the CPU; the result is that of one process.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/distribute.sh"
device_target=CPU

usage_of "[WORKERS] [CONFIG_PATH] [CHECKPOINT_PATH]"
take_options "$@"
set -- "${rest[@]}"
[ $# -ge 3 ] || usage_error "WORKERS, CONFIG_PATH and CHECKPOINT_PATH are needed" "$usage"
need_count WORKERS "$1" "$usage"
need_file CONFIG_PATH "$2" "$usage"
need_file CHECKPOINT_PATH "$3" "$usage"
resolve "$2" --pretrained "$3" "${@:4}"
distribute eval_parallel eval.py --workers "$1"
