#!/usr/bin/env bash
# Evaluate a checkpoint on one card; waits for the result, which also goes to eval/log.txt.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

usage="bash $0 [DEVICE_ID] [CONFIG_PATH] [CHECKPOINT_PATH] [FLAG VALUE ...]"
[ $# -ge 3 ] || usage_error "DEVICE_ID, CONFIG_PATH and CHECKPOINT_PATH are needed" "$usage"
need_device_id "$1" "$usage"
need_file CONFIG_PATH "$2" "$usage"
need_file CHECKPOINT_PATH "$3" "$usage"
resolve eval "$2" --pretrained "$3" "${@:4}"

mkdir -p eval
cd eval
"$PYTHON" "$project/eval.py" --device_id "$1" --device_target "$device_target" "${flags[@]}" 2>&1 | tee log.txt
