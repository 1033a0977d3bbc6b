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
set -Eeuo pipefail
# shellcheck disable=SC2154 # code is set in the trap itself
trap 'code=$?; echo "error: $0 failed with code $code at line $LINENO: $BASH_COMMAND" >&2; exit $code' ERR

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=${BUILD_DIR:-$here/build}
python=${PYTHON:-python3}
wheel=mindspore_lite-2.0.0-cp37-cp37m-manylinux1_x86_64.whl
packages="Debian, Ubuntu: apt-get install cmake make g++ libjpeg-dev libpng-dev zlib1g-dev;"
packages+=" openEuler, CentOS: yum install cmake make gcc-c++ libjpeg-turbo-devel libpng-devel zlib-devel"

fail() {
  echo "error:" "$@" >&2
  exit 2
}

# Builds that run at the same time wait for each other, where the system has flock.
lock() {
  mkdir -p "$(dirname "$2")" || fail "$(dirname "$2"): the folder cannot be made"
  eval "exec $1>\"\$2\"" || fail "$2: cannot be written"
  ! command -v flock >/dev/null || flock "$1"
}

# first_of NAME FOLDER...: the first file of that name, or with more after it (a version), in one of the folders.
first_of() {
  local name=$1 folder file
  shift
  for folder in "$@"; do
    for file in "$folder/$name"*; do
      if [ -f "$file" ]; then
        echo "$file"
        return
      fi
    done
  done
}

for tool in cmake make g++; do
  command -v "$tool" >/dev/null || fail "$tool is needed ($packages)"
done

if [ -n "${MS_LITE_HOME:-}" ]; then
  [ -f "$MS_LITE_HOME/runtime/include/api/model.h" ] ||
    fail "MS_LITE_HOME=$MS_LITE_HOME: no runtime/include/api/model.h there; it must be the unpacked mindspore-lite package"
  lite=$(cd "$MS_LITE_HOME" && pwd)
  include=$lite/runtime
  library=$lite/runtime/lib/libmindspore-lite.so
  [ -f "$library" ] ||
    fail "MS_LITE_HOME=$MS_LITE_HOME: no runtime/lib/libmindspore-lite.so there; it must be the package for servers"
  # Packages for x86-64 have glog in a folder of its own, those for aarch64 beside the library.
  glog=$(first_of libmindspore_glog.so "$lite/runtime/third_party/glog" "$lite/runtime/third_party/glog/lib" "$lite/runtime/lib")
  libraries=$lite/runtime/lib
  for folder in runtime/third_party/glog runtime/third_party/dnnl tools/converter/lib; do
    [ ! -d "$lite/$folder" ] || libraries=$libraries:$lite/$folder
  done
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
cmake -S "$here" -B "$build" -DMS_LITE_INCLUDE="$include" -DMS_LITE_LIBRARY="$library" -DMS_LITE_GLOG="${glog:-}" "$@" >"$build.log" 2>&1 || {
  tail -n 15 "$build.log" >&2
  missing=$(grep -o 'Could NOT find [A-Z]*' "$build.log" | sort -u | tr '\n' ';') || missing=
  fail "cmake failed${missing:+: ${missing%;} ($packages)}; the whole log: $build.log"
}
cmake --build "$build" --parallel "$(nproc)" >>"$build.log" 2>&1 || {
  tail -n 30 "$build.log" >&2
  fail "the build failed; the whole log: $build.log"
}
mv "$build.log" "$build/build.log"

# shellcheck disable=SC2016 # expanded where env.sh is sourced
printf 'export LD_LIBRARY_PATH=%q${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\n' "$libraries" >"$build/env.sh.new"
mv "$build/env.sh.new" "$build/env.sh"
echo "built $build/main; source $build/env.sh before running it (LD_LIBRARY_PATH=$libraries)"
