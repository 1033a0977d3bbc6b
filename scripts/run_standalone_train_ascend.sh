#!/usr/bin/env bash
# Train on one card, in the background, from the folder train_standalone/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

usage="bash $0 [DEVICE_ID] [CONFIG_PATH] [FLAG VALUE ...]   log: train_standalone/log.txt"
[ $# -ge 2 ] || usage_error "DEVICE_ID and CONFIG_PATH are needed" "$usage"
need_device_id "$1" "$usage"
need_file CONFIG_PATH "$2" "$usage"
resolve train "${@:2}"

mkdir -p train_standalone
cd train_standalone
keep_log log.txt
nohup "$PYTHON" "$project/train.py" --device_id "$1" --device_target "$device_target" "${flags[@]}" \
  >log.txt 2>&1 </dev/null &
echo "training in the background, process $!; log: $PWD/log.txt"
