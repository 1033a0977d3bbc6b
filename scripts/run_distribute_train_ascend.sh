#!/usr/bin/env bash
# Train on the cards that a rank table lists for this server, one process each; waits until all have ended.
# Several servers: run it on each with the same table; SERVER_ID names this one's entry where its address does not.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/distribute.sh"

distribute train RANK_TABLE_FILE "$@"
