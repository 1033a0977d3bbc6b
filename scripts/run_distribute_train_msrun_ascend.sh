#!/usr/bin/env bash
# Train on several cards without a rank table, over MindSpore's dynamic cluster (what msrun sets up).
# Several servers: run it on each, with MASTER_ADDR (the first one's address), SERVER_NUM and NODE_RANK (0, 1, ...) in
# the environment; MASTER_PORT (8118) and the port after it must be free on the first.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/distribute.sh"

usage_of "[CARDS] [CONFIG_PATH]"
take_options "$@"
set -- "${rest[@]}"
[ $# -ge 2 ] || usage_error "CARDS (of this server) and CONFIG_PATH are needed" "$usage"
need_count CARDS "$1" "$usage"
need_file CONFIG_PATH "$2" "$usage"
resolve "${@:2}"
distribute train_parallel train.py --workers "$1"
