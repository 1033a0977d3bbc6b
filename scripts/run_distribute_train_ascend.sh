#!/usr/bin/env bash
# Train on the cards that a rank table lists for this server, one process each; waits until all have ended.
# Several servers: run it on each with the same table; SERVER_ID names this one's entry where its address does not.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/distribute.sh"

usage_of "[RANK_TABLE_FILE] [CONFIG_PATH]"
take_options "$@"
set -- "${rest[@]}"
[ $# -ge 2 ] || usage_error "RANK_TABLE_FILE and CONFIG_PATH are needed" "$usage"
need_file RANK_TABLE_FILE "$1" "$usage"
need_file CONFIG_PATH "$2" "$usage"
resolve "${@:2}"
distribute train_parallel train.py --rank_table "$1"
