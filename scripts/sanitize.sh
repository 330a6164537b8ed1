#!/usr/bin/env bash
# Fuzz the native console under sanitizers: `sanitize.sh BIN [SECONDS]`, called by `make sanitize`.
#
# Address and undefined-behaviour sanitizers over random play, random save and restore, broken
# save-states and cartridges; then the thread sanitizer over the same (batches use threads).
set -euo pipefail
bin=${1:?expected the folder of the virtual environment\'s programs}
seconds=${2:-60}
cd "$(dirname "$0")/.."
compiler=${CXX:-g++}
command -v "$compiler" >/dev/null || { echo "sanitize: no $compiler; install a C++17 compiler or set CXX" >&2; exit 2; }

rom=$("$bin/python" -c 'from mario.game.console.cartridge import rom_path; print(rom_path())')
sources=$(find mario/game/native -name '*.cpp' ! -name module.cpp | sort)
mkdir -p build/sanitize

# build_and_run NAME FLAGS: compiles the fuzz with FLAGS and runs it.
build_and_run() {
    local name=$1 program=build/sanitize/fuzz-$1
    shift
    echo "==> $name: $*"
    # shellcheck disable=SC2086  # one word for each source file
    "$compiler" -std=c++17 -O1 -g -fno-omit-frame-pointer -Wall -Wextra "$@" \
        -Imario/game/native tests/native/fuzz.cpp $sources -o "$program" -pthread
    "$program" "$rom" "$seconds" "${FUZZ_SEED:-1}"
}

export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1
build_and_run address -fsanitize=address,undefined -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS
build_and_run thread -fsanitize=thread
