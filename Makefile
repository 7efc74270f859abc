# SPDX-License-Identifier: MIT
# The front door. Meson and ninja do the work; these are the words to remember.
#
#   BUILD=dir         where to build: a release build; default build
#   MESON_FLAGS=...   for meson setup, such as -During=disabled
#   TEST_FLAGS=...    for meson test, such as --suite project

BUILD ?= build
PREFIX ?= /usr/local
DESTDIR ?=
MESON_FLAGS ?=
TEST_FLAGS ?=

setup = tools/setup
release = $(setup) $(BUILD) --buildtype=release $(MESON_FLAGS)

.PHONY: help run test bench asan tsan coverage lint format install clean
.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

run: ## build, then copy a real directory tree with it, and verify the copy
	@tools/install-deps test
	@$(release)
	@ninja -C $(BUILD) program
	@tools/demo-copy $(BUILD)

test: ## build, then run all tests
	@tools/install-deps test
	@$(release)
	@ninja -C $(BUILD)
	@tools/run-tests $(BUILD) $(TEST_FLAGS)

bench: ## measure beside fio, liburing, pread and libuv; writes docs/performance.md
	@tools/install-deps bench
	@$(release)
	@ninja -C $(BUILD)
	@bench/compare --build $(BUILD)

asan: ## run all tests under the address and undefined-behaviour sanitizers
	@tools/install-deps test
	@tools/sanitize address,undefined build-asan $(TEST_FLAGS)

tsan: ## run all tests under the thread sanitizer
	@tools/install-deps test
	@tools/sanitize thread build-tsan $(TEST_FLAGS)

coverage: ## run all tests, show which lines and branches of src/ they reach
	@tools/install-deps coverage
	@tools/coverage build-coverage $(TEST_FLAGS)

lint: ## compile with clang, warnings as errors, and run clang-tidy
	@tools/install-deps lint
	@tools/lint build-lint

format: ## bring all C files into the house style
	@tools/install-deps lint
	@git ls-files '*.c' '*.h' | xargs clang-format -i

install: ## install library, headers, program and man page; PREFIX, DESTDIR
	@tools/install-deps test
	@$(setup) $(BUILD) --buildtype=release --prefix=$(PREFIX) $(MESON_FLAGS)
	@ninja -C $(BUILD)
	@DESTDIR=$(DESTDIR) meson install -C $(BUILD) --no-rebuild
	@[ -n "$(DESTDIR)" ] || [ "$$(id -u)" != 0 ] || ldconfig 2>/dev/null || true

clean: ## remove what the targets above have built
	rm -rf $(BUILD) build-asan build-tsan build-coverage build-lint
