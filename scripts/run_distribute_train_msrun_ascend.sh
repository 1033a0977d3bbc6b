#!/usr/bin/env bash
# Train on several cards without a rank table, as msrun would start them.
# Several servers: run it on each, with MASTER_ADDR (the first one's address), SERVER_NUM and NODE_RANK (0, 1, ...) in
# the environment; MASTER_PORT (8118) and the port after it must be free on the first.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/distribute.sh"

distribute train CARDS "$@"
