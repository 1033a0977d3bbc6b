#!/usr/bin/env bash
# Evaluate a checkpoint on the cards that a rank table lists for this server; the result is that of one card.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/distribute.sh"

usage_of "[RANK_TABLE_FILE] [CONFIG_PATH] [CHECKPOINT_PATH]"
take_options "$@"
set -- "${rest[@]}"
[ $# -ge 3 ] || usage_error "RANK_TABLE_FILE, CONFIG_PATH and CHECKPOINT_PATH are needed" "$usage"
need_file RANK_TABLE_FILE "$1" "$usage"
need_file CONFIG_PATH "$2" "$usage"
need_file CHECKPOINT_PATH "$3" "$usage"
resolve "$2" --pretrained "$3" "${@:4}"
distribute eval_parallel eval.py --rank_table "$1"
