#!/usr/bin/env bash
# Evaluate an exported ONNX file in ONNX Runtime; waits for the result, which also goes to eval_onnx/log.txt.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

usage="bash $0 [DEVICE_TARGET] [CONFIG_PATH] [ONNX_PATH] [FLAG VALUE ...]"
[ $# -ge 3 ] || usage_error "DEVICE_TARGET, CONFIG_PATH and ONNX_PATH are needed" "$usage"
[[ $1 =~ ^(CPU|GPU|Ascend)$ ]] || usage_error "DEVICE_TARGET must be CPU, GPU or Ascend, not '$1'" "$usage"
need_file CONFIG_PATH "$2" "$usage"
need_file ONNX_PATH "$3" "$usage"
resolve eval "$2" --pretrained "$3" "${@:4}"

mkdir -p eval_onnx
cd eval_onnx
"$PYTHON" "$project/eval_onnx.py" --device_target "$1" "${flags[@]}" 2>&1 | tee log.txt
