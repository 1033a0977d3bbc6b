#!/usr/bin/env bash
# Builds the program for Ascend 310 (and for the CPU: one program serves both).
#
#   bash build.sh [CMAKE_OPTION ...]
#
# MS_LITE_HOME   the unpacked MindSpore Lite package for servers, which drives the card. Without it, the Python wheel
#                mindspore-lite 2.0.0 (x86-64), which brings the headers and a CPU runtime, is fetched with pip.
# BUILD_DIR      where to build; default: build/ beside this script
# PYTHON         the Python whose pip is used; default python3
#
# The last line that it prints says what LD_LIBRARY_PATH the program needs; env.sh in the build folder sets it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=${BUILD_DIR:-$here/build}
python=${PYTHON:-python3}
wheel=mindspore_lite-2.0.0-cp37-cp37m-manylinux1_x86_64.whl

fail() {
  echo "error: $*" >&2
  exit 2
}

# Builds that run at the same time wait for each other, where the system has flock.
lock() {
  mkdir -p "$(dirname "$2")"
  eval "exec $1>\"\$2\""
  ! command -v flock >/dev/null || flock "$1"
}

for tool in cmake g++; do
  command -v "$tool" >/dev/null || fail "$tool is needed (Debian, Ubuntu: apt-get install cmake g++ libjpeg62-turbo-dev libpng-dev)"
done

if [ -n "${MS_LITE_HOME:-}" ]; then
  include=$MS_LITE_HOME/runtime/include
  library=$MS_LITE_HOME/runtime/lib/libmindspore-lite.so
  [ -f "$include/api/model.h" ] || fail "MS_LITE_HOME=$MS_LITE_HOME: no runtime/include/api/model.h there; it must be the unpacked mindspore-lite package"
  [ -f "$library" ] || fail "MS_LITE_HOME=$MS_LITE_HOME: no runtime/lib/libmindspore-lite.so there; it must be the package for servers"
  include=$MS_LITE_HOME/runtime
  glog=$(find "$MS_LITE_HOME/runtime/third_party/glog" -name 'libmindspore_glog.so*' 2>/dev/null | sort | head -n 1)
  libraries=$MS_LITE_HOME/runtime/lib:$MS_LITE_HOME/runtime/third_party/glog:$MS_LITE_HOME/runtime/third_party/dnnl:$MS_LITE_HOME/tools/converter/lib
else
  [ "$(uname -m)" = x86_64 ] || fail "set MS_LITE_HOME to the unpacked mindspore-lite package; there is no wheel to build with for $(uname -m)"
  third_party=$here/third_party
  package=$third_party/mindspore_lite
  lock 8 "$third_party/.lock"
  if [ ! -f "$package/.complete" ]; then
    if [ ! -f "$third_party/$wheel" ]; then
      "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.7 \
        --platform manylinux1_x86_64 --dest "$third_party" mindspore-lite==2.0.0 ||
        fail "the wheel mindspore-lite 2.0.0 cannot be fetched with $python -m pip; set MS_LITE_HOME to an unpacked mindspore-lite package instead"
    fi
    rm -rf "$package"
    (cd "$third_party" && "$python" -m zipfile -e "$wheel" .) || fail "$third_party/$wheel is damaged; delete it and try again"
    touch "$package/.complete"
  fi
  include=$package
  library=$package/lib/libmindspore-extendrt_python.so
  glog=$package/lib/libmindspore_glog.so.0
  libraries=$package/lib
fi

lock 9 "$build.lock"
cmake -S "$here" -B "$build" -DMS_LITE_INCLUDE="$include" -DMS_LITE_LIBRARY="$library" -DMS_LITE_GLOG="${glog:-}" "$@" >"$build.log" 2>&1 ||
  { tail -n 15 "$build.log" >&2; fail "cmake failed; the whole log: $build.log"; }
cmake --build "$build" --parallel "$(nproc)" >>"$build.log" 2>&1 ||
  { tail -n 30 "$build.log" >&2; fail "the build failed; the whole log: $build.log"; }
mv "$build.log" "$build/build.log"

# shellcheck disable=SC2016 # expanded where env.sh is sourced
printf 'export LD_LIBRARY_PATH=%q${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\n' "$libraries" >"$build/env.sh.new"
mv "$build/env.sh.new" "$build/env.sh"
echo "built $build/main; source $build/env.sh before running it (LD_LIBRARY_PATH=$libraries)"
