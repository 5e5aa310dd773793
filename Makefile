# SPDX-License-Identifier: Apache-2.0
# Thin wrappers around CMake that also install what they need (tools/bootstrap.sh).
#   make demo      the main job on real input: quantize a model, check it, time it
#   make test      all tests this machine can run; with nvcc, the minimal kernel set
#   make test-all  the same with the default kernel set and the static checks
# Variables: JOBS (parallel compilers, all cores), PRESET (a name from CMakePresets.json).
SHELL := /bin/bash
.DEFAULT_GOAL := help

JOBS ?= $(shell nproc)
NVCC := $(firstword $(wildcard $(CUDACXX)) $(shell command -v nvcc 2>/dev/null) \
  $(wildcard /usr/local/cuda/bin/nvcc))
ifneq ($(NVCC),)
export CUDACXX := $(NVCC)
endif
PRESET ?= $(if $(NVCC),cuda-minimal,cpu)
PRESET_ALL := $(if $(NVCC),cuda,cpu)

# $(call build,PRESET[,TARGET][,OPTIONS])
build = cmake --preset $(1) $(3) $(if $(VERBOSE),,--log-level=WARNING) && \
  cmake --build --preset $(1) -j $(JOBS) $(if $(2),--target $(2))
say_what = @$(if $(NVCC),echo "make: CUDA compiler $(NVCC)",\
  echo "make: no CUDA compiler found, building for the CPU only")

.PHONY: help
help:
	@sed -n '3,6s/^# *//p' $(firstword $(MAKEFILE_LIST))
	@echo "make bundle    static programs under build/bundle, to carry to a GPU machine"
	@echo "make budget    what building every kernel costs, against the budget in the manifest"
	@echo "make asan tsan fuzz-smoke    the tests under sanitizers; a short run of each fuzzer"
	@echo "make format format-check     clang-format 14 on all C++, C and CUDA files"
	@echo "make clean     remove build/"

.PHONY: bootstrap
bootstrap:
	@tools/bootstrap.sh build

# The Python package is built and tested with the interpreter of .venv. `make test` leaves out the
# benchmark programs, which no test runs; `make test-all` builds them, and each file by itself, which
# finds missing includes.
with_python := -DMIXGEMM_PYTHON=ON -DPython_EXECUTABLE=$(CURDIR)/.venv/bin/python
.PHONY: build
build: bootstrap
	@tools/bootstrap.sh python
	$(say_what)
	$(call build,$(PRESET),,$(with_python) -DMIXGEMM_BENCH=OFF -DMIXGEMM_UNITY=ON)

.PHONY: demo
demo: bootstrap
	@tools/bootstrap.sh demo
	$(say_what)
	$(call build,$(PRESET),mixgemm_cli)
	@tools/demo.py --mixgemm build/$(PRESET)/bin/mixgemm

.PHONY: test
test: build
	ctest --preset $(PRESET) -j $(JOBS)

.PHONY: test-all
test-all: bootstrap
	@tools/bootstrap.sh python
	$(say_what)
	$(call build,$(PRESET_ALL),,$(with_python) -DMIXGEMM_BENCH=ON -DMIXGEMM_UNITY=OFF)
ifneq ($(NVCC),)
	@tools/bootstrap.sh sass
	tools/static_checks.py build/$(PRESET_ALL) --sass
endif
	ctest --preset $(PRESET_ALL) -j $(JOBS)

# Every kernel of the manifest, built from nothing and held against the manifest's budget.
.PHONY: budget
budget: bootstrap
	tools/check_budget.py -j $(JOBS)

.PHONY: bundle
bundle: bootstrap
	$(call build,bundle)

.PHONY: asan tsan
asan tsan: bootstrap
	$(call build,$@)
	ctest --preset $@ -j $(JOBS)

.PHONY: fuzz-smoke
fuzz-smoke: bootstrap
	@tools/bootstrap.sh ci
	$(call build,fuzz)
	ctest --preset fuzz

SOURCES = git ls-files -z '*.hpp' '*.h' '*.cpp' '*.c' '*.cu' '*.cuh'
.PHONY: format format-check
format:
	$(SOURCES) | xargs -0 clang-format-14 -i
format-check:
	$(SOURCES) | xargs -0 clang-format-14 --dry-run -Werror

.PHONY: clean
clean:
	rm -rf build
