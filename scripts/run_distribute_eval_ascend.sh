#!/usr/bin/env bash
# Evaluate a checkpoint on the cards that a rank table lists for this server; the result is that of one card.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/distribute.sh"

distribute eval RANK_TABLE_FILE "$@"
