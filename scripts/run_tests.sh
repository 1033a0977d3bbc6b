#!/usr/bin/env bash
# Install what the tests need and run them. MINDSPORE=2.7.0 in the environment chooses another MindSpore, PYTHON=python3.12
# another Python; each has a virtual environment of its own.
set -euo pipefail

usage="bash $0 [PYTEST_ARGUMENT ...]   such as tests/test_args.py, -k resume, or -m fast (under 3 minutes)"
if [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
  echo "usage: $usage" >&2
  exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

need_command() { command -v "$1" >/dev/null || install_debian "${@:2}"; }
need_command cmake cmake make
need_command g++ g++
for header in jpeglib.h:libjpeg-dev png.h:libpng-dev zlib.h:zlib1g-dev; do
  echo "#include <cstdio>
#include <${header%%:*}>" | g++ -E -x c++ - >/dev/null 2>&1 || install_debian "${header##*:}"
done

venv=$(test_venv)
make_venv "$venv" -r requirements-test.txt ${MINDSPORE:+"mindspore==$MINDSPORE"}
exec "$venv/bin/python" -m pytest -n 2 --dist loadfile "$@"
