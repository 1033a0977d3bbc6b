#!/usr/bin/env bash
# Accuracy and speed of an exported network on Ascend 310: labels, build, inference, accuracy.
# Everything goes to the current folder: preprocess_Result/, result_Files/, time_Result/, report.json, acc.log, and the
# logs of the other steps: preprocess.log, build.log, infer.log.
#
# In the environment: MS_LITE_HOME, the unpacked MindSpore Lite package (ascend310_infer/build.sh says more);
# DEVICE_TARGET=CPU runs the same without a card; PYTHON, the Python to use.
set -Eeuo pipefail
# shellcheck disable=SC2154 # code is set in the trap itself
trap 'code=$?; echo "error: $0 failed with code $code at line $LINENO, after ${log_of_step:-no step}: $BASH_COMMAND" >&2
  exit $code' ERR
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

usage="bash $0 [MINDIR_PATH] [DATASET_NAME] [DATASET_PATH] [DEVICE_ID]
  MINDIR_PATH   the network, with the .json that export.py wrote beside it
  DATASET_NAME  imagenet2012
  DATASET_PATH  the val/ folder: a folder of images a class
  DEVICE_ID     which card; 0 if left out"
[ $# -eq 3 ] || [ $# -eq 4 ] || usage_error "three or four arguments are needed" "$usage"
need_file MINDIR_PATH "$1" "$usage"
[ "$2" = imagenet2012 ] || usage_error "DATASET_NAME must be imagenet2012, not '$2'" "$usage"
[ -d "$3" ] || usage_error "DATASET_PATH '$3' is no folder" "$usage"
device_id=${4:-0}
need_device_id "$device_id" "$usage"
[ "$device_target" = Ascend ] || [ "$device_target" = CPU ] ||
  usage_error "DEVICE_TARGET must be Ascend or CPU, not '$device_target'" "$usage"
mindir=$1 data=$3 build=${BUILD_DIR:-$project/ascend310_infer/build}

# step LOG COMMAND...: run it with its output in LOG; on failure show the log's end and stop the flow.
# Code 3 of the program, some images could not be decoded, is no failure yet.
undecodable=0
step() {
  local log=$1 code=0
  log_of_step=$PWD/$log
  shift
  "$@" >"$log" 2>&1 || code=$?
  if [ "$code" = 3 ] && [ "$log" = infer.log ]; then
    undecodable=1
  elif [ "$code" != 0 ]; then
    echo "error: this failed with code $code: $*" >&2
    echo "the last lines of $PWD/$log:" >&2
    tail -n 15 "$log" >&2
    exit "$code"
  fi
}

infer() (
  # shellcheck source=/dev/null
  source "$build/env.sh"
  "$build/main" --mindir_path "$mindir" --dataset_path "$data" --converted_path preprocess_Result/converted \
    --result_path result_Files --time_path time_Result --device_target "$device_target" --device_id "$device_id"
)

rm -f acc.log report.json time_Result/test_perform_static.txt preprocess_Result/imagenet_label.json
step preprocess.log "$PYTHON" "$project/preprocess.py" --mindir_path "$mindir" --data_path "$data"
BUILD_DIR=$build PYTHON=$PYTHON step build.log bash "$project/ascend310_infer/build.sh"
step infer.log infer
step acc.log "$PYTHON" "$project/postprocess.py" --mindir_path "$mindir"
cat time_Result/test_perform_static.txt
tail -n 2 acc.log
if [ "$undecodable" = 1 ]; then
  echo "error: some images could not be decoded and count as wrong; $PWD/infer.log names them" >&2
  exit 3
fi
