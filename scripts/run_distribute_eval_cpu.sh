#!/usr/bin/env bash
# Evaluate a checkpoint with several processes on the CPU; the result is that of one process.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/distribute.sh"

device_target=CPU
distribute eval WORKERS "$@"
