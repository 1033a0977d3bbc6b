#!/usr/bin/env bash
# Train with several processes on the CPU, over MindSpore's dynamic cluster; waits until all have ended.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/distribute.sh"
device_target=CPU

usage_of "[WORKERS] [CONFIG_PATH]"
take_options "$@"
set -- "${rest[@]}"
[ $# -ge 2 ] || usage_error "WORKERS and CONFIG_PATH are needed" "$usage"
need_count WORKERS "$1" "$usage"
need_file CONFIG_PATH "$2" "$usage"
resolve "${@:2}"
distribute train_parallel train.py --workers "$1"
