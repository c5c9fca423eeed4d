#!/usr/bin/env bash
# The CPU kernels under ASan with UBSan, then under TSan, for every instruction set of this machine; NEON in an emulator
# where one and a cross compiler are found (Debian: g++-aarch64-linux-gnu, qemu-user).
set -euo pipefail
cd "$(dirname "$0")/../.."
out=build/sanitize
mkdir -p "$out"
simde=$("${PYTHON:-python3}" -c "import importlib.util as u; print(u.find_spec('simde_py').submodule_search_locations[0])")

drive() {  # runner, compiler, isa, lanes, flags
  build "$@" -ffp-contract=fast tests/sanitize/distill.cpp kernels/distill/cpu_*.cpp
  build "$@" -ffp-contract=off tests/sanitize/sampling.cpp kernels/sampling/cpu_*.cpp
  build "$@" -ffp-contract=off tests/sanitize/draw.cpp kernels/sampling/cpu_*.cpp
  build "$@" -ffp-contract=fast tests/sanitize/choose.cpp
  build "$@" -ffp-contract=fast tests/sanitize/topk.cpp kernels/sparse_mlp/cpu_*.cpp
  build "$@" -ffp-contract=fast tests/sanitize/mlp.cpp kernels/sparse_mlp/cpu_*.cpp
  build "$@" -ffp-contract=fast tests/sanitize/collect.cpp
  build "$@" -ffp-contract=fast tests/sanitize/encode.cpp kernels/ann/cpu_{assign,encode,rank}.cpp
  build "$@" -ffp-contract=fast -isystem "$simde/simde" tests/sanitize/search.cpp kernels/ann/cpu_{scan,search}.cpp
}

build() {
  local runner=$1 compiler=$2 isa=$3 lanes=$4
  shift 4
  echo "$isa $*"
  "$compiler" -std=c++17 -g -pthread -DTAMIS_CHECKED "-DTAMIS_ISA=$isa" "-DTAMIS_LANES=$lanes" "$@" -Wno-psabi \
    -Wno-maybe-uninitialized -o "$out/driver"
  $runner "$out/driver"
}

for sanitizer in address,undefined thread; do
  flags=(-O1 "-fsanitize=$sanitizer" -fno-sanitize-recover=all)
  if [ "$(uname -m)" = x86_64 ]; then
    drive "" "${CXX:-g++}" v2 4 -march=x86-64-v2 "${flags[@]}"
    if grep -q avx2 /proc/cpuinfo; then drive "" "${CXX:-g++}" v3 8 -march=x86-64-v3 "${flags[@]}"; fi
    if grep -q avx512bw /proc/cpuinfo; then drive "" "${CXX:-g++}" v4 16 -march=x86-64-v4 "${flags[@]}"; fi
  else
    drive "" "${CXX:-g++}" neon 4 "${flags[@]}"
  fi
done
if command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null; then
  drive qemu-aarch64 aarch64-linux-gnu-g++ neon 4 -march=armv8-a -O2 -static
fi
