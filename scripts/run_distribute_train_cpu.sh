#!/usr/bin/env bash
# Train with several processes on the CPU; waits until all have ended.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/distribute.sh"

device_target=CPU
distribute train WORKERS "$@"
